"""Owner of the C engine: workloads, configuration in, needs and reports out.

Threads. The engine wants one caller at a time; a lock here sees to it. All calls are short and may be made
from the event loop, except stop(), which waits for the drain in a thread of its own. While it does, the
engine reports nothing; afterwards what is left can be drained, until close().
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.access import AccessAnswer, AccessQuestion, explain_access
from nodeagent.dataplane.builder import (
    ChangeWriter,
    ClusterTag,
    Rejection,
    Tagged,
    view_of,
)
from nodeagent.dataplane.bypass_services import Place
from nodeagent.dataplane.flow_names import FlowDirectory, FlowNamer
from nodeagent.dataplane.flow_reader import FlowLimits, FlowReader
from nodeagent.dataplane.listener_kinds import CAPTURE_LISTENERS, DNS_LISTENER, HBONE_LISTENER, Listener
from nodeagent.dataplane.listeners import (
    KeptListeners,
    Opened,
    Opener,
    open_dns_sockets,
    open_each,
    open_listeners,
)
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.report import AccessRecord, Connection, Counter, Decision, LineFormat, Lines, StatRow
from nodeagent.dataplane.report_reader import ReportReader
from nodeagent.dataplane.route_choice import RouteChoice, RouteQuestion, explain_route
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.dataplane.tags import TagTable
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError
from nodeagent.snapshot.diff import Changes, diff
from nodeagent.snapshot.values import (
    EMPTY,
    DestinationNeeded,
    DestinationUse,
    HostNeeded,
    Need,
    RouteTable,
    Snapshot,
    Use,
    VirtualHostUse,
)

log = logging.getLogger(__name__)

_EVENT_BATCH: Final = 64
_USAGE_BATCH: Final = 1024
_NAME_BYTES: Final = 512
_LOCAL_ENDPOINT: Final = struct.Struct("=16sH2xI")
_GONE_POLL_SECONDS: Final = 0.02
_GONE_GRACE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """na_config: limits of the engine. 0 takes the default that engine.h names."""

    workers: int = 1
    max_connections: int = 0
    max_head_bytes: int = 0
    max_headers: int = 0
    max_request_line: int = 0
    buffer_bytes: int = 0
    detect_timeout_ms: int = 0
    head_timeout_ms: int = 0
    idle_timeout_ms: int = 0
    request_idle_timeout_ms: int = 0
    pool_idle_timeout_ms: int = 0
    pool_max_idle: int = 0
    on_demand_timeout_ms: int = 0
    max_parked: int = 0
    stat_rows: int = 0
    access_records: int = 0
    access_log: bool = False
    events: int = 0
    jwt_cache_tokens: int = 0
    jwt_cache_bytes: int = 0
    callout_max_calls: int = 0
    callout_max_channels: int = 0
    dns_flows: int = 0
    """Descriptor of the map of a capture mode (capture_mode.Mode.dns_flows)."""


class EngineOwner:
    """The engine of this process. Create, start(), use, stop(), close()."""

    def __init__(
        self,
        settings: EngineSettings,
        opener: Opener = open_listeners,
        dns_opener: Opener = open_dns_sockets,
    ) -> None:
        """`opener` makes the listening sockets, `dns_opener` those for DNS. EngineError if a limit is out of range."""
        self._lock = threading.Lock()
        self._open = opener
        self._open_dns = dns_opener
        self._workers = settings.workers
        self._engine = self._create(settings)
        self._stopping = False
        self._applied = EMPTY
        self._tags: TagTable[Tagged] = TagTable()
        self._table_views: dict[str, str] = {}
        self._rejected: dict[tuple[str, str], Rejection] = {}
        self._ids: dict[str, int] = {}
        self._uids: TagTable[str] = TagTable()
        self._listening = KeptListeners()
        self._reader = ReportReader(self._tags, self._uids)
        self._watched: asyncio.AbstractEventLoop | None = None
        self._access_log = settings.access_log
        self._flows: FlowReader | None = None
        self._on_need: Callable[[Need], None] = lambda need: None

    @staticmethod
    def _create(settings: EngineSettings) -> Any:
        config = ffi.new("na_config *")
        for name in settings.__slots__:
            setattr(config, name, int(getattr(settings, name)))
        slot = ffi.new("na_engine **")
        if (code := lib.na_engine_new(config, slot)) < 0:
            raise EngineError(f"the engine does not take its settings ({os.strerror(-code)}): {settings}")
        return slot[0]

    # -- lifecycle --

    def start(self) -> None:
        """Start the workers."""
        with self._lock:
            self._check(lib.na_engine_start(self._engine), "start")

    async def stop(self, drain_ms: int) -> None:
        """Close listeners, let requests end for at most `drain_ms`, cut the rest and join the workers."""
        self.unwatch()
        self._stopping = True
        await asyncio.to_thread(self._stop, drain_ms)

    def _stop(self, drain_ms: int) -> None:
        with self._lock:
            self._listening.gone()
            try:
                self._check(lib.na_engine_stop(self._engine, drain_ms), "stop")
            finally:
                self._stopping = False

    def close(self) -> None:
        """Free the stopped engine; may be called again."""
        if self._flows is not None:
            self._flows.close()
        with self._lock:
            if self._engine is not None:
                lib.na_engine_free(self._engine)
                self._engine = None

    def _check(self, code: int, what: str) -> int:
        if code < 0:
            message = ffi.string(lib.na_engine_error(self._engine)).decode(errors="replace")
            raise EngineError(f"the engine cannot {what}: {message or os.strerror(-code)}")
        return code

    @property
    def _reports(self) -> bool:
        """Whether the engine can be asked: not while it stops, nor when it is closed."""
        return self._engine is not None and not self._stopping

    # -- workloads --

    def add_workload(
        self,
        uid: str,
        namespace: NetworkNamespace | None,
        view: str,
        addresses: Iterable[bytes],
        listeners: Sequence[Listener] = CAPTURE_LISTENERS,
        *,
        identity: str = "",
        baggage: str = "",
        search: str = "",
    ) -> None:
        """Serve a workload: its listeners open in `namespace` (None: the agent's own), which stays the
        caller's and may be a share (NamespaceShare).

        `addresses` are its own, 16 bytes each. With an `identity` (a name of set_identity(), which may come
        later) it also takes HBONE, and may use tunnels; with a `search` list (dns.h) its DNS. All or nothing:
        NetnsError if a port cannot be had, EngineError if the engine refuses.

        Connections are served from here on by the snapshot in force. Capture may be in place already, from an
        earlier run; so apply a snapshot with the workload's view and inbound configuration before.
        """
        if uid in self._ids:
            raise EngineError(f"workload {uid} is served already")
        if identity:
            listeners = (*listeners, HBONE_LISTENER)
        if search and not isinstance(namespace, NamespaceShare):  # there DNS is not captured
            listeners = (*listeners, DNS_LISTENER)
        opened = self._listening.take(uid) or self._open_listeners(namespace, listeners)
        workload, _ = self._uids.assign(uid, uid)
        try:
            with self._lock:
                self._register(uid, workload, namespace, view, b"".join(addresses))
                if isinstance(namespace, NamespaceShare):
                    ports = namespace.share.ports
                    code = lib.na_workload_share(self._engine, workload, ports, len(ports))
                    self._check(code, f"let workload {uid} share its namespace")
                self._describe(uid, workload, identity, baggage, search)
            self._put_inbound(uid)
            with self._lock:
                self._hand_over(uid, workload, opened)
        except EngineError:
            self._withdraw(uid, workload)
            raise
        finally:
            for _, _, descriptor in opened:
                os.close(descriptor)

    def _describe(self, uid: str, workload: int, identity: str, baggage: str, search: str) -> None:
        """Tell the engine what is known of a workload; empty: it is not."""
        texts = (
            ("identity", identity, lib.na_workload_identity),
            ("baggage", baggage, lib.na_workload_baggage),
            ("search list", search, lib.na_workload_search),
        )
        for what, text, tell in texts:
            if text:
                self._check(
                    tell(self._engine, workload, c_string(text)), f"give workload {uid} the {what} {text}"
                )

    def _withdraw(self, uid: str, workload: int) -> None:
        """Take a failed registration back, however far it came."""
        with self._lock:
            self._listening.gone(uid)
            if self._ids.pop(uid, None) is not None:
                lib.na_workload_remove(self._engine, workload, 0)
            self._uids.release(uid)

    def _register(
        self, uid: str, workload: int, namespace: NetworkNamespace | None, view: str, addresses: bytes
    ) -> None:
        fd = -1 if namespace is None else namespace.fd
        packed = ffi.from_buffer("uint8_t[]", addresses)
        code = lib.na_workload_add(self._engine, workload, fd, c_string(view), packed, len(addresses) // 16)
        self._check(code, f"take on workload {uid}")
        self._ids[uid] = workload

    def add_proxy(self, uid: str, view: str, ports: Sequence[int]) -> None:
        """Be an explicit proxy on ports of the agent's own namespace: a connection means what the view says
        of the address that it was made to. Errors as in add_workload()."""
        self.add_workload(uid, None, view, (), [Listener(lib.NA_LISTENER_PLAIN, port) for port in ports])

    def _open_listeners(self, namespace: NetworkNamespace | None, listeners: Sequence[Listener]) -> Opened:
        wanted = [
            (each.kind, self._open_dns if each is DNS_LISTENER else self._open, each.port)
            for each in listeners
        ]
        return open_each(wanted, namespace, self._workers)

    def _hand_over(self, uid: str, workload: int, opened: Opened) -> None:
        """Give the sockets to the engine, which closes them also on error; takes them out of `opened`."""
        while opened:
            kind, worker, descriptor = opened.pop()
            code = lib.na_workload_listen(self._engine, workload, kind, worker, descriptor)
            self._check(code, f"listen for workload {uid}")
            self._listening.gave(uid, kind, worker, descriptor)

    @contextlib.contextmanager
    def keeping_listeners(self, uid: str) -> Iterator[None]:
        """A workload that is removed and added again within keeps the sockets that it listens on."""
        with self._lock:
            self._listening.keep(uid)
        try:
            yield
        finally:
            self._listening.release(uid)

    def _put_inbound(self, uid: str) -> None:
        """Before it listens: without its inbound configuration it would refuse what comes in."""
        inbound = self._applied.inbound.get(uid)
        if inbound is not None:
            changes = Changes(inbound=[(uid, inbound)])
            self._note_rejections(changes, self._publish(changes, {}))

    async def remove_workload(self, uid: str, drain_ms: int) -> None:
        """Close its listeners at once and return when its connections are gone, after `drain_ms` at most by
        force. Nothing happens if it is not served."""
        with self._lock:
            workload = self._ids.pop(uid, None)
            if workload is None or self._engine is None:
                return
            self._listening.gone(uid)
            self._check(lib.na_workload_remove(self._engine, workload, drain_ms), f"let go of workload {uid}")
            # Reports of what drains still find the values. If the uid comes back meanwhile, it is another
            # workload.
            self._uids.release(uid)
            self._tags.release(("inbound", uid))
        deadline = asyncio.get_running_loop().time() + drain_ms / 1000 + _GONE_GRACE_SECONDS
        while self._reports and not self._gone(workload):
            if asyncio.get_running_loop().time() > deadline:
                log.warning("connections of workload %s outlast their drain of %d ms", uid, drain_ms)
                break
            await asyncio.sleep(_GONE_POLL_SECONDS)

    def _gone(self, workload: int) -> bool:
        with self._lock:
            return self._engine is None or lib.na_workload_gone(self._engine, workload) != 0

    def number(self, uid: str) -> int | None:
        """By which the engine knows a workload; None if it does not."""
        return self._ids.get(uid)

    # -- identities --

    def set_identity(
        self, name: str, chain_pem: str, key_pem: str, bundle_pem: str, trust_domains: Sequence[str] = ()
    ) -> None:
        """Put a certificate in force for the workloads of an identity, in place of its last one.

        Peers must be of one of `trust_domains`; none: of the certificate's own. New tunnels use it; connections go on
        with the one that they began with. EngineError if it cannot be used; the last one then stays.
        """
        if not self._reports:
            return
        texts = (name, chain_pem, key_pem, bundle_pem)
        with self._lock:
            domains = [ffi.new("char[]", c_string(domain)) for domain in trust_domains]
            code = lib.na_identity_set(self._engine, *map(c_string, texts), domains, len(domains))
            self._check(code, f"use the certificate of {name}")

    def remove_identity(self, name: str) -> None:
        """An identity has no valid certificate any more: its workloads make and take no tunnels. Nothing happens if it
        had none."""
        if not self._reports:
            return
        with self._lock:
            code = lib.na_identity_remove(self._engine, c_string(name))
            if code != -errno.ENOENT:
                self._check(code, f"drop the identity {name}")

    # -- configuration --

    def apply(self, snapshot: Snapshot) -> tuple[Rejection, ...]:
        """Put a snapshot in force, by what differs from the last one, as one change.

        Returns the virtual hosts of the snapshot that the engine cannot use (a bad regex). For each, what was
        in force under its name stays, as long as all that it needs does. EngineError if the change as a whole
        is refused; then nothing has changed.
        """
        changes = diff(self._applied, snapshot)
        if changes:
            views = self._table_views | {
                table.name: view_of(table.name, table.xds_name) for table in changes.tables
            }
            self._note_rejections(changes, self._publish(changes, views))
            for name in changes.tables_removed:
                del views[name]
            self._table_views = views
        self._applied = snapshot
        return tuple(self._rejected.values())

    def _publish(self, changes: Changes, views: Mapping[str, str]) -> list[Rejection]:
        with self._lock:
            writer = ChangeWriter(self._engine, self._tags)
            try:
                writer.write(changes, self._ids, views)
                writer.commit()
            except EngineError:
                if not writer.rejections:
                    raise
                # Perhaps what was to stay in their place leads to what is gone now.
                writer.abort()
                writer = ChangeWriter(self._engine, self._tags)
                writer.write(changes, self._ids, views, keep=False)
                writer.commit()
            finally:
                writer.abort()
        return writer.rejections

    def _note_rejections(self, changes: Changes, rejections: Iterable[Rejection]) -> None:
        settled = {(table, host.name) for table, host in changes.virtual_hosts}
        settled.update(changes.virtual_hosts_removed)
        removed = {*changes.tables_removed, *(uid for uid, _ in changes.inbound), *changes.inbound_removed}
        self._rejected = {
            key: value
            for key, value in self._rejected.items()
            if key not in settled and key[0] not in removed
        }
        self._rejected.update({(each.table, each.virtual_host): each for each in rejections})

    @property
    def applied(self) -> Snapshot:
        """The snapshot in force."""
        return self._applied

    def settled(self) -> bool:
        """Whether every worker goes by the last change."""
        if not self._reports:
            return True
        with self._lock:
            return bool(lib.na_engine_settled(self._engine) >= lib.na_engine_committed(self._engine))

    def committed(self) -> int:
        """How many changes have been published."""
        if not self._reports:
            return 0
        with self._lock:
            return int(lib.na_engine_committed(self._engine))

    def note_local(self, cluster: str, places: Mapping[Place, int]) -> None:
        """Say which endpoints of a cluster connect() may reach past the engine, and the numbers of the workloads there,
        in place of what was said before. A captured connection goes to the one that was drawn for it. Nothing happens
        if there is no such cluster."""
        if not self._reports:
            return
        packed = b"".join(_LOCAL_ENDPOINT.pack(*place, places[place]) for place in sorted(places))
        local = ffi.cast("na_local_endpoint *", ffi.from_buffer(packed))
        with self._lock:
            code = lib.na_cluster_local(self._engine, c_string(cluster), local, len(places))
            if code != -errno.ENOENT:
                self._check(code, f"tell the local endpoints of cluster {cluster}")

    def explain_route(self, table: str, question: RouteQuestion) -> RouteChoice | None:
        """Which way a request would take by a route table (RouteTable.name); None: no route takes it. EngineError if no
        such request can be."""
        with self._lock:
            return explain_route(self._engine, table, question)

    def explain_access(self, uid: str, question: AccessQuestion) -> AccessAnswer:
        """What the guards of a workload's port say to a question. EngineError if it is not served here, or has no
        inbound configuration, or no such request can be."""
        with self._lock:
            workload = self._ids.get(uid)
            if workload is None or not self._reports:
                raise EngineError(f"workload {uid} is not served here")
            return explain_access(self._engine, workload, question)

    def explain_name(self, question: str, search: str) -> tuple[bytes, ...]:
        """The addresses that a name (lower case, no dot at its end) is answered with to workloads with a search list;
        none: their name servers are asked."""
        name, packed = ffi.new("char[]", _NAME_BYTES), ffi.new("uint8_t[]", 16 * lib.NA_DNS_MAX_ADDRESSES)
        texts = (c_string(question), c_string(search))
        with self._lock:
            if not self._reports:
                return ()
            count = lib.na_engine_explain_name(
                self._engine, *texts, name, _NAME_BYTES, packed, lib.NA_DNS_MAX_ADDRESSES
            )
        raw = bytes(ffi.buffer(packed))
        return tuple(raw[16 * i : 16 * i + 16] for i in range(max(count, 0)))

    # -- needs and use --

    def watch(self, loop: asyncio.AbstractEventLoop, on_need: Callable[[Need], None]) -> None:
        """Call `on_need` from the loop for each thing that traffic waits for."""
        self.unwatch()
        self._watched = loop
        self._on_need = on_need
        loop.add_reader(lib.na_engine_event_fd(self._engine), self._dispatch, on_need)

    def unwatch(self) -> None:
        """End watch(); nothing happens without it."""
        if self._watched is not None:
            self._watched.remove_reader(lib.na_engine_event_fd(self._engine))
            self._watched = None

    def _dispatch(self, on_need: Callable[[Need], None]) -> None:
        for need in self.needs():
            try:
                on_need(need)
            except Exception:
                log.exception("cannot see to %s", need)

    def needs(self) -> list[Need]:
        """What traffic waits for and has not been told before; each is told again after a second while it
        lasts."""
        found: list[Need] = []
        events = ffi.new("na_event[]", _EVENT_BATCH)
        count = _EVENT_BATCH
        while self._reports and count == _EVENT_BATCH:
            with self._lock:
                count = lib.na_engine_events(self._engine, events, _EVENT_BATCH)
            found.extend(need for need in map(self._need, events[0:count]) if need is not None)
        return found

    def _need(self, event: Any) -> Need | None:
        uid = self._uids.resolve(event.workload) or ""
        view = ffi.string(event.view).decode(errors="replace")
        if event.kind == lib.NA_EVENT_DESTINATION:
            return DestinationNeeded(uid, view, bytes(ffi.buffer(event.address)), event.port)
        table = self._tags.resolve(event.tag)
        if event.kind != lib.NA_EVENT_HOST or not isinstance(table, RouteTable):
            return None
        return HostNeeded(uid, view, table.name, ffi.string(event.host).decode(errors="replace"))

    def usage(self) -> list[Use]:
        """Destinations, virtual hosts and clusters that were used since the last call, each once."""
        found: list[Use] = []
        numbers = ffi.new("uint32_t[]", _USAGE_BATCH)
        count = _USAGE_BATCH
        while self._reports and count == _USAGE_BATCH:
            with self._lock:
                count = lib.na_engine_usage(self._engine, numbers, _USAGE_BATCH)
            for value in map(self._tags.resolve, numbers[0:count]):
                match value:
                    case ClusterTag(use=use):
                        found.append(use)
                    case DestinationUse() | VirtualHostUse():
                        found.append(value)
        return found

    # -- reports --

    def follow_flows(self, ring: int, directory: FlowDirectory, limit: int) -> FlowReader:
        """Report of connections past the engine, too, of at most `limit` at once, which the ring buffer `ring` (its
        descriptor stays the caller's) tells of. EngineError if it cannot be read, or is already."""
        namer = FlowNamer(
            directory, lambda: self._applied, self._tags.tag_of, self.explain_access, self._on_need
        )
        limits = FlowLimits(directory.life, limit, access_log=self._access_log)
        self._flows = FlowReader(self._engine, self._lock, ring, limits, namer)
        return self._flows

    def drain_stats(self) -> list[StatRow]:
        """The statistics gathered since the last call. Rows of several workers are not merged."""
        if not self._reports:
            return []
        self._read_flows()
        with self._lock:
            return self._reader.stats(self._engine)

    def drain_decisions(self) -> dict[Decision, int]:
        """How often policies decided, as far as drain_stats() has read it since the last call."""
        with self._lock:
            return self._reader.decisions()

    def drain_access(self) -> list[AccessRecord]:
        """The access records since the last call; none unless the settings ask for them."""
        if not self._reports:
            return []
        self._read_flows()
        with self._lock:
            return self._reader.access(self._engine)

    def drain_access_lines(self, form: LineFormat) -> list[Lines]:
        """The same, as lines of a log: much cheaper than records."""
        found: list[Lines] = []
        more = self._reports
        while more:
            more = self._read_flows()
            with self._lock:
                found += self._reader.lines(self._engine, form)
        return found

    def _read_flows(self) -> bool:
        """Whether there is more to read once records have been taken."""
        try:
            return self._flows is not None and self._flows.read()
        except EngineError as error:
            log.error("connections past the engine are missing in metrics and access log: %s", error)
            return False

    def counters(self) -> list[Counter]:
        """Engine-wide counters and gauges."""
        if not self._reports:
            return []
        with self._lock:
            return self._reader.counters(self._engine)

    def connections(self, limit: int) -> list[Connection]:
        """Up to `limit` live downstream connections."""
        if not self._reports:
            return []
        with self._lock:
            return self._reader.connections(self._engine, limit)
