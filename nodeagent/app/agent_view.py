"""One view: the outbound and inbound configuration of workloads that the control plane treats alike.

It has an xDS stream of its own, in the name of one of the workloads. What is subscribed follows from what
is wanted and from what has come: each time something changes, the view is assembled anew, and assembling
names all resources that it depends on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.app.agent_demand import Demand, DemandCounters, Waypoints, want_for
from nodeagent.compiler.cluster import compile_cluster, compile_endpoints
from nodeagent.compiler.inbound import L4_ONLY, VIRTUAL_INBOUND, compile_inbound
from nodeagent.compiler.listener import compile_listener
from nodeagent.compiler.pieces import InboundPiece, Scope
from nodeagent.compiler.route import compile_route_configuration, compile_virtual_host
from nodeagent.compiler.view import (
    CLUSTERS,
    ENDPOINTS,
    HOSTS,
    LISTENERS,
    ROUTES,
    Assembly,
    Pieces,
    Wants,
    assemble,
    replace_endpoints,
)
from nodeagent.compiler.workloads import WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.snapshot.values import DestinationKey, DestinationUse, Use, View, VirtualHostUse
from nodeagent.xds.lastgood import Held
from nodeagent.xds.protocol import Update
from nodeagent.xds.store import WILDCARD, TypeState
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.transport import Transport
from nodeagent.xds.types import (
    CLUSTER,
    L7_TYPES,
    LISTENER,
    ROUTE,
    VIRTUAL_HOST,
    Message,
    short_name,
)
from nodeagent.xds.types import (
    ENDPOINTS as ENDPOINTS_URL,
)

logger = logging.getLogger(__name__)

_KINDS: Final = {
    LISTENERS: LISTENER,
    ROUTES: ROUTE,
    HOSTS: VIRTUAL_HOST,
    CLUSTERS: CLUSTER,
    ENDPOINTS: ENDPOINTS_URL,
}
_WILDCARD_KINDS: Final = frozenset((LISTENERS, CLUSTERS))


@dataclass(slots=True)
class ViewEvents:
    """Whom to tell what; each is called on the event loop."""

    view_changed: Callable[[ViewController], None]
    inbound_changed: Callable[[ViewController], None]
    stored: Callable[[ViewController], None]
    """What is worth keeping on disk has changed."""


class ViewController:
    """Owns a view's stream, pieces and wants. The result is `view` and `inbound`."""

    def __init__(
        self,
        name: str,
        node: Message,
        config: AgentConfig,
        index: WorkloadIndex,
        scope: Scope,
        events: ViewEvents,
        counters: DemandCounters,
        access: Callable[[], Transport],
        waypoints: Waypoints | None = None,
    ) -> None:
        """`access` tells before each connection to the control plane how to connect."""
        self.name = name
        self._waypoints = waypoints
        self.view = View(name)
        self.inbound: InboundPiece | None = None
        """In force, with all clusters that its callouts ask in `view`."""
        self._next_inbound: InboundPiece | None = None
        """Received, and waiting for such clusters."""
        self.stream = DeltaStream(name, access().address, node, L7_TYPES, self, choose=access)
        self.warnings: dict[tuple[str, str], tuple[str, ...]] = {}
        self.users: set[str] = set()
        """Uids of the workloads that use it."""
        self.inbound_ready = asyncio.Event()
        self._auto = config.xds_mode == "auto"
        self._wildcard = config.xds_mode == "wildcard"
        self._ttl = config.on_demand_ttl
        self._index = index
        self._scope = scope
        self._events = events
        self._pieces = Pieces(self._known)
        self._demand = Demand(
            config.on_demand_limit, config.on_demand_ttl, config.on_demand_negative_ttl, counters
        )
        self._restored: dict[str, set[str]] = {}
        self._restored_until = 0.0
        self._scheduled: asyncio.Handle | None = None
        self._moved_endpoints: set[str] | None = set()
        """Load assignments that came since the last assembly, if nothing else did; else None."""
        self._assembly: Assembly | None = None
        self._task: asyncio.Task[None] | None = None

    # -- lifecycle --

    def start(self) -> None:
        """Subscribe to what is always needed, and connect."""
        # By name, too: what a server leaves out of everything may be on its way, what it denies is not there.
        self.stream.subscribe(LISTENER, [WILDCARD, VIRTUAL_INBOUND] if self._wildcard else [VIRTUAL_INBOUND])
        if self._wildcard:
            self.stream.subscribe(CLUSTER, [WILDCARD])
        self._changed()
        self._task = asyncio.create_task(self.stream.run(), name=f"xds {self.name}")

    async def stop(self) -> None:
        """End the stream."""
        if self._scheduled is not None:
            self._scheduled.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def restore(self, held: Mapping[str, Held]) -> None:
        """Take what an earlier run held. It stays, wanted or not, for as long as unused configuration
        does."""
        for url in L7_TYPES:
            if url in held:
                self.stream.protocol.restore(url, held[url].resources, held[url].absent)
        if VIRTUAL_INBOUND in self._state(LISTENERS).absent:
            self._lack_inbound()
        self._restored_until = time.monotonic() + self._ttl
        self._restored = {
            kind: set(held[url].resources) | held[url].absent for kind, url in _KINDS.items() if url in held
        }

    def identify(self, node: Message) -> None:
        """Ask in another name, or with other properties, from now on."""
        if node != self.stream.node:
            self.stream.identify(node)

    # -- updates (the stream's consumer) --

    def apply(self, update: Update) -> Mapping[str, str]:
        """Compile what came; the view is assembled once the stream has taken note of it."""
        rejected: dict[str, str] = {}
        for received in update.resources:
            try:
                warnings = self._put(update.type_url, received.name, received.message)
            except ValueError as error:
                rejected[received.name] = str(error)
                continue
            self._note_warnings(update.type_url, received.name, warnings)
        for name in update.removed:
            self._remove(update.type_url, name)
        names = (*(received.name for received in update.resources), *update.removed)
        self._changed(names if update.type_url == ENDPOINTS_URL else None)
        self._events.stored(self)
        return rejected

    def _put(self, type_url: str, name: str, message: Any) -> tuple[str, ...]:
        """Compile a resource into its place; ValueError if it cannot be used (the old one stays)."""
        if type_url == LISTENER and name == VIRTUAL_INBOUND:
            inbound = compile_inbound(message, self._scope)
            self._receive_inbound(inbound)
            return inbound.warnings
        if type_url == LISTENER:
            listener = self._pieces.listeners[name] = compile_listener(message, self._scope)
            return listener.warnings
        if type_url == ROUTE:
            route = self._pieces.routes[name] = compile_route_configuration(message, self._scope)
            return (*route.warnings, *(text for host in route.hosts for text in host.warnings))
        if type_url == VIRTUAL_HOST:
            host = self._pieces.hosts[name] = compile_virtual_host(message, self._scope)
            return host.warnings
        if type_url == CLUSTER:
            cluster = self._pieces.clusters[name] = compile_cluster(message, self._scope)
            return cluster.warnings
        endpoints = self._pieces.endpoints[name] = compile_endpoints(message, self._scope)
        return endpoints.warnings

    def _remove(self, type_url: str, name: str) -> None:
        self.warnings.pop((type_url, name), None)
        for kind, url in _KINDS.items():
            if url == type_url:
                getattr(self._pieces, kind).pop(name, None)
        if type_url == LISTENER and name == VIRTUAL_INBOUND:
            self._lack_inbound()

    def _lack_inbound(self) -> None:
        """There is no inbound listener. One that was there stays in force: its guards must not go with it. If there
        never was one, L4 policies are all that there is; but only if the server says so."""
        unanswered = VIRTUAL_INBOUND in self._state(LISTENERS).unanswered
        if self.inbound is None and self._next_inbound is None and not unanswered:
            self._receive_inbound(L4_ONLY)

    def _receive_inbound(self, inbound: InboundPiece) -> None:
        """Put inbound configuration in force, or have it wait for the clusters that it asks."""
        self._next_inbound = inbound
        if not inbound.clusters:
            self._promote_inbound()

    def _promote_inbound(self) -> None:
        waiting = self._next_inbound
        if waiting is None or not self.view.clusters.keys() >= set(map(self._scope.name, waiting.clusters)):
            return
        self.inbound, self._next_inbound = waiting, None
        self.inbound_ready.set()
        self._events.inbound_changed(self)
        self._changed()

    def _note_warnings(self, type_url: str, name: str, warnings: Iterable[str]) -> None:
        found = tuple(dict.fromkeys(warnings))
        if found == self.warnings.get((type_url, name), ()):
            return
        if found:
            self.warnings[type_url, name] = found
            logger.info("%s %s: %s", short_name(type_url), name, "; ".join(found))
        else:
            self.warnings.pop((type_url, name), None)

    def _known(self, kind: str, name: str) -> bool:
        state = self._state(kind)
        return state.known(name) or (state.wildcard and state.answered)

    def _state(self, kind: str) -> TypeState:
        return self.stream.protocol.types[_KINDS[kind]]

    # -- needs and use --

    def need_destination(self, address: bytes, port: int) -> None:
        """A connection waits for the meaning of address:port."""
        if self._demand.want(want_for(self._index, address, port, self._waypoints)):
            self._changed()

    def need_host(self, table: str, host: str) -> None:
        """A request waits for a virtual host; `table` is a RouteTable.name."""
        route = table.removeprefix(f"{self.name}/")
        if self._demand.want_host(f"{route}/{host}"):
            self._changed()

    def reconsider(self) -> None:
        """The services or waypoints have changed: what is wanted of a destination may be something else now."""
        if self._wildcard:
            self._changed()
            return
        if self._revise(self._demand.destinations) or self._waypoints is not None:
            self._changed()

    def refresh_workloads(self, addresses: set[bytes]) -> None:
        """Others are at some addresses now: endpoints there belong to them, and what goes there goes another way."""
        moved = []
        for name, piece in self._pieces.endpoints.items():
            if any(endpoint.address in addresses for endpoint in piece.endpoints):
                self._pieces.endpoints[name] = piece.resolved(self._scope)
                moved.append(name)
        if moved:
            self._changed(moved)
        if self._revise(key for key in self._demand.destinations if key[0] in addresses):
            self._changed()

    def _revise(self, keys: Iterable[DestinationKey]) -> bool:
        """Whether some destinations are to be understood in another way now."""
        revised = [
            self._demand.revise(want_for(self._index, address, port, self._waypoints))
            for address, port in keys
            if address is not None
        ]
        return any(revised)

    def touch(self, use: Use) -> None:
        """Something of the view was used."""
        if isinstance(use, DestinationUse):
            self._demand.touch(use.key)
        elif isinstance(use, VirtualHostUse):
            prefix = use.table.removeprefix(f"{self.name}/") + "/"
            self._demand.touch_hosts(
                name
                for name, piece in self._pieces.hosts.items()
                if piece.value.name == use.name and name.startswith(prefix)
            )

    def sweep(self) -> None:
        """Drop what has been out of use for too long."""
        over = self._restored and time.monotonic() > self._restored_until
        if over:
            self._restored = {}
        if self._demand.expire() or over:
            self._changed()

    # -- assembling --

    def _changed(self, endpoints: Iterable[str] | None = None) -> None:
        """Assemble at the next turn of the loop; what comes until then is taken along."""
        if endpoints is None:
            self._moved_endpoints = None
        elif self._moved_endpoints is not None:
            self._moved_endpoints.update(endpoints)
        if self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self._assemble)

    def _assemble(self) -> None:
        self._scheduled = None
        moved, self._moved_endpoints = self._moved_endpoints, set()
        before = self.view
        quick = self._move_endpoints(moved) if moved is not None else None
        self.view = quick if quick is not None else self._assemble_all()
        if self.view is not before:
            self._events.view_changed(self)
        self._promote_inbound()

    def _move_endpoints(self, names: set[str]) -> View | None:
        if self._assembly is None or self._assembly.pending:
            return None
        return replace_endpoints(self.view, self._scope, self._pieces, names)

    def _assemble_all(self) -> View:
        if self._auto and not self._wildcard and self._server_ignores_names():
            self._go_wildcard()
        self._demand.settle_hosts(self._host_is_there)
        self._assembly = assemble(self._scope, self._pieces, self._wants(), self.view)
        self._subscribe(self._assembly.needs)
        return self._assembly.view

    def _wants(self) -> Wants:
        """With everything at hand, HTTP services still need a destination of their own: a listener of a port
        cannot tell where what is not HTTP/1 is to go. So do those with a waypoint, which takes all."""
        asked = self.inbound.clusters if self.inbound is not None else frozenset()
        held = asked if self._next_inbound is not None else frozenset()
        if self._next_inbound is not None:
            asked |= self._next_inbound.clusters
        if not self._wildcard:
            return Wants(self._demand.destinations, self._demand.hosts, clusters=asked, held=held)
        keys = dict.fromkeys(self._index.http_destinations())
        if self._waypoints is not None:
            keys |= dict.fromkeys(self._index.waypoint_destinations())
        wants = {key: want for key, want in self._demand.destinations.items() if want.own is not None}
        for address, port in keys:
            wants[address, port] = want_for(self._index, address, port, self._waypoints)
        return Wants(wants, everything=True, clusters=asked, held=held)

    def _host_is_there(self, name: str) -> bool | None:
        if name in self._pieces.hosts:
            return True
        return False if self._known(HOSTS, name) else None

    def _server_ignores_names(self) -> bool:
        """Whether the server sent listeners or clusters that were not asked for: it knows no subscription to
        single ones (istiod)."""
        return any(self._state(kind).unrequested for kind in _WILDCARD_KINDS)

    def _go_wildcard(self) -> None:
        logger.info("view %s: the control plane sends everything; taking it", self.name)
        self._wildcard = True
        for kind in _WILDCARD_KINDS:
            self.stream.subscribe(_KINDS[kind], [WILDCARD])
        # The server believes that we have what was passed over; only a new stream gets it again.
        self.stream.reopen()

    def _subscribe(self, needs: Mapping[str, set[str]]) -> None:
        for kind, url in _KINDS.items():
            if self._wildcard and kind in _WILDCARD_KINDS:
                continue
            wanted = needs[kind] | self._restored.get(kind, set())
            if kind == LISTENERS:
                wanted = wanted | {VIRTUAL_INBOUND}
            held = self._state(kind).wanted
            unneeded = held - wanted
            if unneeded:
                self.stream.unsubscribe(url, unneeded)
                for name in unneeded:
                    self._remove(url, name)
            if wanted - held:
                self.stream.subscribe(url, wanted)

    # -- for people --

    @property
    def lacks_inbound(self) -> bool:
        """Whether the control plane says that there is no inbound configuration: then nothing is let in."""
        return self.inbound is None and self._known(LISTENERS, VIRTUAL_INBOUND)

    @property
    def from_disk(self) -> bool:
        """Whether all that it has is of an earlier run, not confirmed yet."""
        return bool(self._restored) and self.stream.state.connects == 0

    @property
    def mode(self) -> str:
        """wildcard or on-demand."""
        return "wildcard" if self._wildcard else "on-demand"

    @property
    def unsettled(self) -> str:
        """What is on its way into it; empty if nothing is."""
        if self._scheduled is not None:
            return "is being put together"
        if self._next_inbound is not None:
            return "waits for clusters that its guards ask"
        return self.stream.outstanding

    def incomplete(self) -> Iterator[str]:
        """Wanted destinations that are not complete."""
        if self._assembly is not None:
            yield from (str(key) for key in self._assembly.incomplete)
