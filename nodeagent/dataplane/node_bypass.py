"""Bypass on a node: what is planned, what is in force, and live connections, kept together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from nodeagent.dataplane.bypass import Bypass, BypassCounts
from nodeagent.dataplane.bypass_flows import FlowTable, LiveFlow
from nodeagent.dataplane.bypass_layout import Access
from nodeagent.dataplane.bypass_plan import Plan
from nodeagent.dataplane.bypass_services import LocalWorkload, Place, why_not, why_not_directly
from nodeagent.dataplane.ebpf_node import EbpfNode
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import BpfError
from nodeagent.snapshot.address import format_endpoint
from nodeagent.snapshot.values import DestinationKey, Snapshot

logger = logging.getLogger(__name__)

NoteLocal = Callable[[str, Mapping[Place, int]], None]
"""Tells the engine (EngineOwner.note_local)."""


@dataclass(frozen=True, slots=True)
class BypassState:
    """How bypass is doing, for people."""

    counts: BypassCounts
    revoked: int
    """Connections ended because they were not allowed any more."""
    error: str = ""
    """Why nothing passes the engine at present."""
    connections: int = 0
    """That live."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A workload as FlowTable wants it."""

    number: int
    namespace: NetworkNamespace


class NodeBypass:
    """Bypass by the maps of a started EbpfNode. Methods are for one thread, but for revoke()."""

    def __init__(self, node: EbpfNode, note_local: NoteLocal, *, identities: bool) -> None:
        """`identities`: the agent has a CA."""
        self._node = node
        self._note_local = note_local
        self._identities = identities
        self.plan = Plan(identities=identities)
        maps = node.bypass_maps()
        self.maps = Bypass(maps, node.count_full)
        self.flows = FlowTable(maps.bypassed, self, self.maps.life, maps.redirected)
        self._snapshot = Snapshot()
        self._namespaces: dict[int, NetworkNamespace] = {}
        self._named: dict[int, int] = {}
        self._revoking = threading.Lock()

    # -- keeping up --

    def update(
        self,
        snapshot: Snapshot,
        workloads: Iterable[tuple[LocalWorkload, NetworkNamespace]],
        unusable: Collection[str],
    ) -> bool:
        """Go by these (Plan.update) from now on; returns whether live connections are to be judged again: revoke()."""
        here = {workload.cookie: (workload, namespace) for workload, namespace in workloads}
        self._namespaces = {cookie: namespace for cookie, (_, namespace) in here.items()}
        named = [workload for workload, _ in here.values() if self._name(workload)]
        self._named = {workload.cookie: workload.number for workload in named}
        self._snapshot = snapshot
        changes = self.plan.update(snapshot, named, unusable)
        self.maps.apply(changes, self.plan.everything)
        for cluster, places in changes.places.items():
            self._note_local(cluster, places)
        return changes.judge_again

    @property
    def pending(self) -> bool:
        """Whether update() is to be called again: it does a part of what is new at a time."""
        return self.plan.pending

    def _name(self, workload: LocalWorkload) -> bool:
        """Tell the programs of its namespace who it is, before anybody is sent there; whether they know."""
        if self._named.get(workload.cookie) == workload.number:
            return True
        try:
            self._node.name_namespace(workload.cookie, self.maps.life, workload.number)
        except BpfError as error:
            logger.error("nothing passes the engine to or from workload %s: %s", workload.uid, error)
            return False
        return True

    def suspend(self, reason: str) -> None:
        """Let nothing pass the engine until the next update(), which begins anew."""
        self.plan = Plan(identities=self._identities)
        self.maps.suspend(reason)

    def revoke(self) -> int:
        """End live connections that would not be let past the engine now, and cannot be judged by it any more; returns
        how many. Blocks. NetnsError or CapabilityError if some could not be ended."""
        with self._revoking:
            return self.flows.revoke(self._may_stay)

    def count_of(self, cookie: int, addresses: Collection[bytes]) -> int:
        """How many connections a workload has past the engine, at either end. Blocks."""
        return self.flows.count_of(cookie, addresses)

    def end_all_of(self, cookie: int, addresses: Collection[bytes], namespace: NetworkNamespace) -> int:
        """End them; returns how many. Blocks. NetnsError if that cannot be."""
        with self._revoking:
            return self.flows.end_all_of(cookie, addresses, namespace)

    def _may_stay(self, live: LiveFlow) -> bool:
        flow, ends = live.flow, live.ends
        asked = flow.asked, flow.asked_port
        return self.plan.may_stay(flow.netns_cookie, asked, ends.destination, ends.destination_port)

    # -- who is enrolled (bypass_flows.LocalWorkloads) --

    def by_cookie(self, cookie: int) -> _Placed | None:
        """By its namespace."""
        return self._placed(self.plan.workload_of(cookie))

    def by_address(self, address: bytes) -> _Placed | None:
        """By one of its addresses."""
        return self._placed(self.plan.workload_at(address))

    def _placed(self, workload: LocalWorkload | None) -> _Placed | None:
        namespace = self._namespaces.get(workload.cookie) if workload is not None else None
        return _Placed(workload.number, namespace) if workload is not None and namespace is not None else None

    # -- whom events are about (flow_names.FlowDirectory) --

    @property
    def events(self) -> int:
        """The descriptor of the ring buffer; stays the node's."""
        return self._node.bypass_maps().events.fd

    @property
    def life(self) -> int:
        """Of this agent."""
        return self.maps.life

    def workload_of(self, cookie: int) -> LocalWorkload | None:
        """Whose namespace it is."""
        return self.plan.workload_of(cookie)

    def workload_at(self, address: bytes) -> LocalWorkload | None:
        """Who is connected to at an address."""
        return self.plan.workload_at(address)

    def policy(self, number: int) -> str:
        """The name of a denying policy; "" for none."""
        return self.maps.policy(number)

    # -- for people --

    def state(self) -> BypassState:
        """How it is doing."""
        return BypassState(self.maps.counts(), self.flows.revoked, self.maps.error, self.flows.count())

    def explain(self, uid: str, asked: DestinationKey) -> list[str]:
        """Whether a workload's connection to `asked` would pass the engine, and why not."""
        source = self.plan.workload(uid)
        view = self._snapshot.views.get(source.view) if source is not None else None
        destination = view.destinations.get(asked) if view is not None else None
        if source is None or view is None or destination is None:
            return [f"through the engine: {'no destination' if source else 'the client is not captured yet'}"]
        if self.maps.error:
            return [f"through the engine: {self.maps.error}"]
        if reason := why_not(destination, view):
            return [f"through the engine: {reason}"]
        if reason := self.plan.why_not_from(source):
            return [f"through the engine: {reason}"]
        endpoints = view.endpoints.get(destination.clusters[0].cluster, ())
        if self.plan.is_waiting(source.view, asked):
            return ["through the engine: it is not planned yet"]
        is_planned = self.plan.is_planned(source.view, asked)
        found = []
        for endpoint in endpoints:
            place = format_endpoint(endpoint.address, endpoint.port)
            workload = self.plan.workload_at(endpoint.address)
            if workload is None:
                continue
            why = why_not_directly(endpoint, workload, identities=self._identities)
            if not why and not is_planned:
                why = "the choice among the endpoints is not an even one"
            found.append(f"{place} {self._outcome(source, workload, endpoint.port, why)}")
        return found or ["through the engine: no endpoint is on this node"]

    def _outcome(self, source: LocalWorkload, workload: LocalWorkload, port: int, why: str) -> str:
        if source is workload:
            why = "a workload reaches itself by it"
        why = why or self.plan.why_not_to(workload, port)
        if why:
            return f"through the engine: {why}"
        verdict = self.plan.verdict(source, workload, port)
        match verdict.access:
            case Access.ALLOW:
                return "past the engine, on this node: allowed"
            case Access.DENY:
                return f"refused at connect(): {verdict.detail}"
            case Access.ENGINE:
                return "through the engine: policy depends on what only shows there"
