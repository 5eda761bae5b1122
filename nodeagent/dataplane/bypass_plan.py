"""Which connections within the node are to pass the engine: from a snapshot and this node's workloads to entries of
BPF maps. Pure; the owner of the maps is bypass.py.

What is new is planned in parts, so that a large mesh keeps nobody waiting: what has no entries yet goes through the
engine. What is in force already is brought up to date at once. Only what has changed is looked at again: a view's
destinations are compared by identity, as diff.py does; a change of one set of endpoints concerns the destinations that
lead to it; guards are evaluated once for each peer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from nodeagent.dataplane.bypass_access import PortVerdicts
from nodeagent.dataplane.bypass_layout import ANY_SOURCE, Access, AccessKey, ServiceKey, Source
from nodeagent.dataplane.bypass_services import (
    LocalWorkload,
    Place,
    Slots,
    by_address,
    places_of,
    slots_of,
    why_not,
    why_not_directly,
)
from nodeagent.dataplane.bypass_verdict import ENGINE, Target, Verdict, why_not_judged
from nodeagent.snapshot.values import EMPTY, Destination, DestinationKey, Endpoint, Inbound, Snapshot, View

K = TypeVar("K")
V = TypeVar("V")

Port = tuple[int, int]
"""A workload's number, and a port of it."""
TCP: Final = 6
"""IPPROTO_TCP"""
STEP: Final = 2_000
"""Endpoints and verdicts that are planned at once of what is new: some 20 ms."""
_NO_VIEW: Final = View("")


@dataclass(slots=True)
class PlanChanges:
    """What is another thing now, by key; None: gone."""

    sources: dict[int, Source | None] = field(default_factory=dict)
    """By the cookie of the namespace."""
    services: dict[ServiceKey, Slots | None] = field(default_factory=dict)
    access: dict[AccessKey, Verdict | None] = field(default_factory=dict)
    places: dict[str, dict[Place, int]] = field(default_factory=dict)
    """By cluster: places_of() the services that lead to it. Also if they are the same, as endpoints that go and come
    back have to be told of again."""
    judge_again: bool = False
    """Live connections may be such now that would not be let past the engine any more."""


class Plan:
    """What is planned, kept up to date by update()."""

    def __init__(self, *, identities: bool) -> None:
        """`identities`: there is a CA, and who has no certificate in force gets and takes nothing."""
        self._identities = identities
        self._snapshot = EMPTY
        self._unusable: frozenset[str] = frozenset()
        self._workloads: dict[str, LocalWorkload] = {}
        self._by_cookie: dict[int, LocalWorkload] = {}
        self._by_number: dict[int, LocalWorkload] = {}
        self._local: dict[bytes, LocalWorkload] = {}
        self._views: dict[str, _ViewPlan] = {}
        self._last_view = 0
        self._verdicts: dict[Port, PortVerdicts] = {}
        self._entries: dict[Port, dict[int, Verdict]] = {}
        """By port, what is said there to a source, or to ANY_SOURCE."""
        self._spent = 0
        """Of the step that is under way."""
        self.sources: dict[int, Source] = {}

    # -- keeping up --

    @property
    def pending(self) -> bool:
        """Whether more is to be planned than the last update() did: call it again."""
        return any(view.waiting for view in self._views.values())

    def update(
        self, snapshot: Snapshot, workloads: Iterable[LocalWorkload], unusable: Collection[str] = ()
    ) -> PlanChanges:
        """Go by these from now on, as far as one step gets (`pending`). `unusable`: uids of
        workloads whose guards the engine could not make."""
        changes = PlanChanges()
        dirty = self._note_guards(snapshot, frozenset(unusable), changes)
        here = {each.uid: each for each in workloads}
        # Of those who arrive there may be connections that an earlier agent has let past.
        changes.judge_again |= not here.keys() <= self._workloads.keys()
        moved, clients = self._note_workloads(here, dirty)
        self._snapshot = snapshot
        self._note_views(moved, changes, dirty)
        self._note_sources(changes)
        for port in dirty:
            self._note_port(port, changes)
        for number in clients:
            self._note_client(number, dirty, changes)
        return changes

    def everything(self) -> PlanChanges:
        """All that is planned, for maps that are empty."""
        changes = PlanChanges(dict(self.sources))
        for view in self._views.values():
            changes.services.update((view.key(key), slots) for key, slots in view.services.items())
        for port, entries in self._entries.items():
            changes.access.update((_key(source, port), verdict) for source, verdict in entries.items())
        return changes

    def _note_guards(self, snapshot: Snapshot, unusable: frozenset[str], changes: PlanChanges) -> set[Port]:
        """Ports of workloads whose guards are others now."""
        before = self._snapshot.inbound
        concerned = {
            uid
            for uid in self._workloads
            if before.get(uid) is not snapshot.inbound.get(uid)
            or (uid in unusable) != (uid in self._unusable)
        }
        self._unusable = unusable
        changes.judge_again = bool(concerned)
        return self._forget_verdicts(self._workloads[uid].number for uid in concerned)

    def _forget_verdicts(self, numbers: Iterable[int]) -> set[Port]:
        """Those on the ports of some workloads; returns the ones of these that services lead to."""
        concerned = set(numbers)
        if not concerned:
            return set()
        for port in [port for port in self._verdicts if port[0] in concerned]:
            del self._verdicts[port]
        return {port for view in self._views.values() for port in view.ports if port[0] in concerned}

    def _note_workloads(
        self, workloads: dict[str, LocalWorkload], dirty: set[Port]
    ) -> tuple[set[bytes], set[int]]:
        """Take note of who is here. Returns the addresses at which another workload is now, or none any more, and the
        numbers of workloads that are others as clients."""
        others = [
            (self._workloads.get(uid), workloads.get(uid))
            for uid in self._workloads.keys() | workloads.keys()
            if self._workloads.get(uid) != workloads.get(uid)
        ]
        both = [workload for pair in others for workload in pair if workload is not None]
        dirty.update(self._forget_verdicts(workload.number for workload in both))
        moved = {
            address
            for old, new in others
            if _place(old) != _place(new)
            for workload in (old, new)
            if workload is not None
            for address in workload.addresses
        }
        self._workloads = workloads
        self._by_cookie = {each.cookie: each for each in workloads.values()}
        self._by_number = {each.number: each for each in workloads.values()}
        self._local = by_address(workloads.values()) if moved else self._local_now()
        return moved, {workload.number for workload in both}

    def _local_now(self) -> dict[bytes, LocalWorkload]:
        return {address: self._workloads[old.uid] for address, old in self._local.items()}

    # -- views and their services --

    def _note_views(self, moved: Collection[bytes], changes: PlanChanges, dirty: set[Port]) -> None:
        self._spent = 0
        wanted = {each.view for each in self._workloads.values()} & self._snapshot.views.keys()
        for name in self._views.keys() - wanted:
            view = self._views.pop(name)
            dirty.update(view.ports)
            changes.services.update(dict.fromkeys(map(view.key, view.services)))
        for name in wanted:
            if name not in self._views:
                self._last_view += 1
                self._views[name] = _ViewPlan(self._last_view)
            self._note_view(self._views[name], self._snapshot.views[name], moved, changes, dirty)

    def _note_view(
        self,
        plan: _ViewPlan,
        view: View,
        moved: Collection[bytes],
        changes: PlanChanges,
        dirty: set[Port],
    ) -> None:
        keys = plan.concerned(view, moved) | plan.waiting
        plan.view = view
        plan.waiting = set()
        for key in keys:
            if self._spent >= STEP and key not in plan.services:
                plan.waiting.add(key)
                continue
            old, new = plan.services.get(key), self._slots(plan, key)
            if new is not None:
                changes.places[view.destinations[key].clusters[0].cluster] = places_of(new)
            if old == new:
                continue
            changes.services[plan.key(key)] = new
            changes.judge_again |= bool({*(old or ())} - {*(new or ()), None})
            led_to = plan.replace(key, old, new)
            self._spent += len(led_to) * len(self._workloads)
            dirty.update(led_to)

    def _slots(self, plan: _ViewPlan, key: DestinationKey) -> Slots | None:
        destination = plan.view.destinations.get(key)
        plan.note_cluster(key, destination)
        self._spent += 1
        if destination is None or why_not(destination, plan.view):
            return None
        endpoints = plan.view.endpoints.get(destination.clusters[0].cluster, ())
        self._spent += len(endpoints)
        return slots_of(endpoints, self._local, identities=self._identities)

    # -- who may --

    def _note_sources(self, changes: PlanChanges) -> None:
        now = {
            each.cookie: Source(each.number, self._views[each.view].number)
            for each in self._workloads.values()
            if each.view in self._views and self._vouched(each)
        }
        for cookie in self.sources.keys() | now.keys():
            if self.sources.get(cookie) != now.get(cookie):
                changes.sources[cookie] = now.get(cookie)
        self.sources = now

    def _vouched(self, workload: LocalWorkload) -> bool:
        """Whether it may be client or server without the engine."""
        return not self._identities or (bool(workload.identity) and workload.in_force)

    def _note_port(self, port: Port, changes: PlanChanges) -> None:
        """The guards of a port are others, or who sees it."""
        before, now = self._entries.pop(port, {}), self._entries_of(port)
        if now:
            self._entries[port] = now
        for source, verdict in now.items():
            if before.get(source) != verdict:
                changes.access[_key(source, port)] = verdict
        changes.access.update((_key(source, port), None) for source in before if source not in now)

    def _note_client(self, number: int, noted: Collection[Port], changes: PlanChanges) -> None:
        """A workload is another one as a client. Of the ports that are `noted` that is known already."""
        source = self._by_number.get(number)
        seen: Collection[Port] = ()
        if source is not None and self._vouched(source) and source.view in self._views:
            seen = self._views[source.view].ports
        for port, entries in self._entries.items():
            if number in entries and port not in noted and port not in seen:
                del entries[number]
                changes.access[_key(number, port)] = None
        for port in seen:
            server = self._server(port)
            if source is not None and server is not None and port not in noted:
                self._note_entry(source, server, port, changes)

    def _note_entry(
        self, source: LocalWorkload, server: LocalWorkload, port: Port, changes: PlanChanges
    ) -> None:
        entries = self._entries.setdefault(port, {})
        verdict = self._verdicts_of(server, port).entry(source) if source is not server else None
        if entries.get(source.number) == verdict:
            return
        changes.access[_key(source.number, port)] = verdict
        if verdict is None:
            del entries[source.number]
        else:
            entries[source.number] = verdict

    def _entries_of(self, port: Port) -> dict[int, Verdict]:
        """The entries of a port, for those who see a service that leads to it."""
        seeing = {name for name, view in self._views.items() if port in view.ports}
        server = self._server(port)
        if not seeing or server is None:
            self._verdicts.pop(port, None)
            return {}
        verdicts = self._verdicts_of(server, port)
        if verdicts.anyone.access is not Access.ENGINE:
            return {ANY_SOURCE: verdicts.anyone}
        sources = (each for each in self._workloads.values() if each.view in seeing and self._vouched(each))
        found = {source.number: verdicts.entry(source) for source in sources if source is not server}
        return {number: verdict for number, verdict in found.items() if verdict is not None}

    def _server(self, port: Port) -> LocalWorkload | None:
        """Who has the port, if it may be served without the engine."""
        server = self._by_number.get(port[0])
        return server if server is not None and self._vouched(server) else None

    def _verdicts_of(self, workload: LocalWorkload, port: Port) -> PortVerdicts:
        found = self._verdicts.get(port)
        if found is None:
            found = self._verdicts[port] = PortVerdicts(
                self._inbound(workload), Target(workload.addresses, port[1]), identities=self._identities
            )
        return found

    def _inbound(self, workload: LocalWorkload) -> Inbound | None:
        return None if workload.uid in self._unusable else self._snapshot.inbound.get(workload.uid)

    # -- questions --

    def workload(self, uid: str) -> LocalWorkload | None:
        """By the uid of its enrolment."""
        return self._workloads.get(uid)

    def workload_at(self, address: bytes) -> LocalWorkload | None:
        """Who is connected to at an address."""
        return self._local.get(address)

    def workload_of(self, cookie: int) -> LocalWorkload | None:
        """Whose namespace it is."""
        return self._by_cookie.get(cookie)

    def verdict(self, source: LocalWorkload, destination: LocalWorkload, port: int) -> Verdict:
        """What policy says to a connection between two workloads, whether or not one would pass the engine now."""
        inbound = self._inbound(destination)
        if (found := self._verdicts.get((destination.number, port))) is None:
            target = Target(destination.addresses, port)
            found = PortVerdicts(inbound, target, identities=self._identities)
        return found.of(source) if inbound is not None else ENGINE

    def may_stay(self, cookie: int, asked: DestinationKey, address: bytes, port: int) -> bool:
        """Whether a live connection of the workload in a namespace, which asked for `asked` and got a workload's
        address and port, may go on. Of whom nothing is known here nothing is said: it may."""
        source, destination = self._by_cookie.get(cookie), self._local.get(address)
        if source is None or destination is None or destination.uid not in self._snapshot.inbound:
            return True
        if self.verdict(source, destination, port).access is not Access.ALLOW:
            return False
        return self._still_leads_to(source, asked, address, port, destination)

    def _still_leads_to(
        self,
        source: LocalWorkload,
        asked: DestinationKey,
        address: bytes,
        port: int,
        workload: LocalWorkload,
    ) -> bool:
        view = self._snapshot.views.get(source.view)
        destination = view.destinations.get(asked) if view is not None else None
        if view is None or destination is None:
            return True  # out of use, and forgotten
        return any(
            endpoint.address == address
            and endpoint.port == port
            and not why_not_directly(endpoint, workload, identities=self._identities)
            for share in destination.clusters
            for endpoint in view.endpoints.get(share.cluster, ())
        )

    def is_planned(self, view: str, key: DestinationKey) -> bool:
        """Whether a destination of a view is reached without the engine, as far as its endpoints are here."""
        return view in self._views and key in self._views[view].services

    def is_waiting(self, view: str, key: DestinationKey) -> bool:
        """Whether a destination of a view is to be planned yet."""
        return view in self._views and key in self._views[view].waiting

    def why_not_from(self, source: LocalWorkload) -> str:
        """Why all connections of a workload go through the engine; "" if they do not."""
        return "" if self._vouched(source) else "the client has no certificate in force"

    def why_not_to(self, destination: LocalWorkload, port: int) -> str:
        """Why the engine must have all connections to a workload's port; "" if it must not."""
        if not self._vouched(destination):
            return "the server has no certificate in force"
        inbound = self._inbound(destination)
        if inbound is None:
            return "the server's guards are not in force"
        return why_not_judged(inbound, port)


def _place(workload: LocalWorkload | None) -> object:
    """What endpoints depend on."""
    return None if workload is None else (workload.number, workload.addresses, workload.identity)


def _key(source: int, port: Port) -> AccessKey:
    return AccessKey(source, *port, TCP)


class _ViewPlan:
    """What is planned for a view."""

    __slots__ = ("_cluster", "_leading", "number", "ports", "services", "view", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number
        self.view = _NO_VIEW
        self.services: dict[DestinationKey, Slots] = {}
        self.ports: Counter[Port] = Counter()
        """Which ports its services lead to, and how often."""
        self.waiting: set[DestinationKey] = set()
        """Destinations that are to be planned yet; none of them is among the services."""
        self._leading: dict[str, list[DestinationKey]] = {}
        """By cluster: the destinations that lead to it."""
        self._cluster: dict[DestinationKey, str] = {}

    def key(self, key: DestinationKey) -> ServiceKey:
        """A destination's key among all services."""
        assert key[0] is not None
        return ServiceKey(key[0], self.number, key[1], TCP)

    def concerned(self, now: View, moved: Collection[bytes]) -> set[DestinationKey]:
        """Destinations that may have other slots by the view as it is now, and with others at the addresses."""
        keys = set(_differing(self.view.destinations, now.destinations))
        clusters = set(_differing(self.view.clusters, now.clusters))
        clusters.update(_differing(self.view.endpoints, now.endpoints))
        if moved:
            clusters.update(name for name, found in now.endpoints.items() if _any_at(found, moved))
        for name in clusters:
            keys.update(self._leading.get(name, ()))
        return keys

    def note_cluster(self, key: DestinationKey, destination: Destination | None) -> None:
        """Remember where a destination leads."""
        leads = destination is not None and key[0] is not None and len(destination.clusters) == 1
        name = destination.clusters[0].cluster if destination is not None and leads else ""
        before = self._cluster.get(key, "")
        if name == before:
            return
        if before:
            self._leading[before].remove(key)
            if not self._leading[before]:
                del self._leading[before]
            del self._cluster[key]
        if name:
            self._leading.setdefault(name, []).append(key)
            self._cluster[key] = name

    def replace(self, key: DestinationKey, old: Slots | None, new: Slots | None) -> set[Port]:
        """Put a destination's slots in place of its old ones; returns the ports that nothing led to before, or nothing
        leads to any more."""
        before, now = _ports_of(old), _ports_of(new)
        changed: set[Port] = set()
        for port in now - before:
            self.ports[port] += 1
            if self.ports[port] == 1:
                changed.add(port)
        for port in before - now:
            self.ports[port] -= 1
            if not self.ports[port]:
                del self.ports[port]
                changed.add(port)
        if new is None:
            self.services.pop(key, None)
        else:
            self.services[key] = new
        return changed


def _ports_of(slots: Slots | None) -> set[Port]:
    return {(backend.workload, backend.port) for backend in slots or () if backend is not None}


def _differing(old: Mapping[K, V], new: Mapping[K, V]) -> Iterator[K]:
    if old is new:
        return
    for key, value in new.items():
        if old.get(key) is not value:
            yield key
    yield from (key for key in old if key not in new)


def _any_at(endpoints: Iterable[Endpoint], addresses: Collection[bytes]) -> bool:
    return any(endpoint.address in addresses for endpoint in endpoints)
