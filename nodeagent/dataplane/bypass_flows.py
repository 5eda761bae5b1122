"""Connections that have passed the engine: which live, and the end of those that may not be any more.

Programs keep them in the map `bypassed` from the SYN to the end of the client's socket (bpf/include/flows.h). It
outlives agents, so some may be of an earlier one, whose numbers of workloads mean nothing now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from nodeagent.dataplane import sock_diag
from nodeagent.dataplane.bpf import BpfMap
from nodeagent.dataplane.bypass_layout import Ends, Flow, Redirected
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.sock_diag import CONNECTED, UNFINISHED, DiagSocket, TcpSocket, TcpState
from nodeagent.errors import NetnsError

logger = logging.getLogger(__name__)


class LocalWorkload(Protocol):
    """An enrolled workload."""

    @property
    def number(self) -> int:
        """The engine's."""

    @property
    def namespace(self) -> NetworkNamespace:
        """Stays the enrolment's."""


class LocalWorkloads(Protocol):
    """Who is enrolled on this node."""

    def by_cookie(self, cookie: int) -> LocalWorkload | None:
        """By the cookie of its namespace."""

    def by_address(self, address: bytes) -> LocalWorkload | None:
        """By one of its addresses, 16 bytes."""


@dataclass(frozen=True, slots=True)
class LiveFlow:
    """A connection past the engine, or one that is being made. `source` and `destination` are present numbers of
    workloads, 0 where none is enrolled any more."""

    ends: Ends
    flow: Flow
    source: int
    destination: int

    @property
    def port(self) -> int:
        """The destination's."""
        return self.ends.destination_port


@dataclass(frozen=True, slots=True)
class Sample:
    """Connected sockets in the namespaces that could be looked at, by their cookies; those of namespaces that nobody is
    enrolled of any more are looked at, and empty."""

    sockets: list[TcpSocket]
    looked_at: list[int]


class FlowTable:
    """The map, with who is enrolled. Calls block; they may come from several threads."""

    def __init__(
        self, flows: BpfMap, workloads: LocalWorkloads, life: int, redirected: BpfMap | None = None
    ) -> None:
        """`flows` (bypassed) and `redirected` stay the caller's; `life` is that of this agent."""
        self._flows = flows
        self._redirected = redirected
        self._workloads = workloads
        self._life = life
        self._missing: set[bytes] = set()
        self.on_doomed: Callable[[LiveFlow], None] = lambda live: None
        """Called before a connection is ended by revoke(), in its thread."""
        self.revoked = 0
        """Connections ended because they are not allowed any more."""
        self.swept = 0
        """Entries taken out whose sockets had gone without a word."""

    def count(self) -> int:
        """How many there are."""
        return self._flows.count()

    @property
    def limit(self) -> int:
        """Most connections at once."""
        return self._flows.memory_and_limit()[1]

    def live(self) -> Iterator[LiveFlow]:
        """All that are there now."""
        for key, value in self._flows.items():
            yield self._live(Ends.unpack(key), Flow.unpack(value))

    def _live(self, ends: Ends, flow: Flow) -> LiveFlow:
        if flow.life == self._life:
            return LiveFlow(ends, flow, flow.source, flow.destination)
        source = self._workloads.by_cookie(flow.netns_cookie)
        destination = self._workloads.by_address(ends.destination)
        return LiveFlow(ends, flow, source.number if source else 0, destination.number if destination else 0)

    def earlier(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of those that began under an earlier agent."""
        return ((key, value) for key, value in self._flows.items() if Flow.unpack(value).life != self._life)

    def sample(self, namespaces: Iterable[int]) -> Sample:
        """Look at the sockets in clients' namespaces (cookies)."""
        found = Sample([], [])
        for cookie in namespaces:
            sockets = self._sockets(cookie, CONNECTED)
            if sockets is not None:
                found.sockets.extend(sockets)
                found.looked_at.append(cookie)
        past_tcp = self._past_tcp()
        return (
            Sample([_add(past_tcp, each) for each in found.sockets], found.looked_at) if past_tcp else found
        )

    def _past_tcp(self) -> dict[int, Redirected]:
        """By the cookie of the client's socket."""
        if self._redirected is None:
            return {}
        return {each.cookie: each for each in map(Redirected.unpack, self._redirected.written())}

    def _sockets(self, cookie: int, states: Set[TcpState]) -> list[TcpSocket] | None:
        """None: they cannot be looked at."""
        client = self._workloads.by_cookie(cookie)
        if client is None:
            return []
        try:
            return client.namespace.run(partial(_connections, states))
        except NetnsError as error:
            logger.warning("connections of a workload cannot be looked at: %s", error)
            return None

    def sweep(self) -> int:
        """Take out entries whose sockets were not there at the last call either; returns how many. The kernel tells of
        the end of a connection, so there are some only after a defect, or for clients that are enrolled no more."""
        missing: dict[bytes, Flow] = {}
        alive: dict[int, Set[int] | None] = {}
        for key, value in self._flows.items():
            flow = Flow.unpack(value)
            if flow.netns_cookie not in alive:
                sockets = self._sockets(flow.netns_cookie, UNFINISHED)
                alive[flow.netns_cookie] = None if sockets is None else {each.cookie for each in sockets}
            known = alive[flow.netns_cookie]
            if known is not None and flow.socket_cookie not in known:
                missing[key] = flow
        swept = sum(self._discard(key, missing[key]) for key in self._missing & missing.keys())
        self._missing = set(missing)
        self.swept += swept
        return swept

    def _discard(self, key: bytes, flow: Flow) -> bool:
        """Unless another connection has the same ends by now."""
        value = self._flows.get(key)
        if value is None or Flow.unpack(value) != flow:
            return False
        self._flows.discard(key)
        return True

    def revoke(self, is_allowed: Callable[[LiveFlow], bool]) -> int:
        """End the connections that are not allowed, both ends of each; returns how many.

        None is missed that was let through before the call: the map knows a connection before its first packet leaves,
        and verdicts are asked for again where that arrives. NetnsError if some could not be ended, after trying all;
        CapabilityError if this kernel cannot end any (sock_diag.probe_destroy).
        """
        doomed: dict[int, list[LiveFlow]] = {}
        for each in self.live():
            if not is_allowed(each):
                self.on_doomed(each)
                doomed.setdefault(each.flow.netns_cookie, []).append(each)
        ended = 0
        failures: set[str] = set()
        for cookie, flows in doomed.items():
            try:
                ended += self._end(cookie, flows)
            except NetnsError as error:
                failures.add(str(error))
        self.revoked += ended
        if failures:
            raise NetnsError("; ".join(sorted(failures)))
        return ended

    def _end(self, cookie: int, flows: list[LiveFlow]) -> int:
        client = self._workloads.by_cookie(cookie)
        if client is not None:
            sockets = frozenset(each.flow.socket_cookie for each in flows)
            return client.namespace.run(partial(_destroy, sockets, frozenset()))
        return self._end_at_servers(flows)

    def count_of(self, cookie: int, addresses: Collection[bytes]) -> int:
        """How many a workload has at either end; it need not be enrolled any more."""
        return sum(_concerns(each, cookie, addresses) for each in self.live())

    def end_all_of(self, cookie: int, addresses: Collection[bytes], namespace: NetworkNamespace) -> int:
        """End those that a workload has at either end, in its own namespace; returns how many. NetnsError."""
        flows = [each for each in self.live() if _concerns(each, cookie, addresses)]
        sockets = {each.flow.socket_cookie for each in flows if each.flow.netns_cookie == cookie}
        ends = {_seen_by_server(each.ends) for each in flows if each.flow.netns_cookie != cookie}
        return namespace.run(partial(_destroy, sockets, ends)) if flows else 0

    def _end_at_servers(self, flows: list[LiveFlow]) -> int:
        """The client's namespace is not at hand any more."""
        doomed: dict[NetworkNamespace, set[sock_diag.Ends]] = {}
        for each in flows:
            server = self._workloads.by_address(each.ends.destination)
            if server is not None:
                doomed.setdefault(server.namespace, set()).add(_seen_by_server(each.ends))
        return sum(namespace.run(partial(_destroy, frozenset(), ends)) for namespace, ends in doomed.items())


def _concerns(live: LiveFlow, cookie: int, addresses: Collection[bytes]) -> bool:
    return live.flow.netns_cookie == cookie or live.ends.destination in addresses


def _add(past_tcp: dict[int, Redirected], found: TcpSocket) -> TcpSocket:
    """TCP's own counters do not know of that."""
    past = past_tcp.get(found.cookie)
    if past is None:
        return found
    return replace(found, sent=found.sent + past.sent, received=found.received + past.received)


def _seen_by_server(ends: Ends) -> sock_diag.Ends:
    return sock_diag.Ends(ends.destination, ends.destination_port, ends.source, ends.source_port)


def _connections(states: Set[TcpState]) -> list[TcpSocket]:
    """Those in the calling thread's namespace."""
    with DiagSocket() as diag:
        return diag.connections(states)


def _destroy(sockets: Set[int], ends: Set[sock_diag.Ends]) -> int:
    """End the connections of these sockets, and those between these ends, in the calling thread's namespace."""
    with DiagSocket() as diag:
        return sum(
            diag.destroy(found)
            for found in diag.connections(UNFINISHED)
            if found.cookie in sockets or found.ends in ends
        )
