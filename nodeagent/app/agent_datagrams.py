"""UDP in the agent: services and policies of the whole mesh turned into what the programs go by."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeagent.app.agent_bypass import local_workloads
from nodeagent.app.agent_datagram_sockets import DatagramSockets
from nodeagent.app.agent_enrolment import Enrolment
from nodeagent.app.agent_identity import Identities
from nodeagent.app.agent_policies import Policies
from nodeagent.app.agent_ports import Datagrams, Engine
from nodeagent.compiler.workloads import IndexChange, ServiceEntry, WorkloadEntry, WorkloadIndex
from nodeagent.errors import DataplaneError
from nodeagent.snapshot.address import is_v4

if TYPE_CHECKING:
    from nodeagent.dataplane.bypass_layout import ServiceKey
    from nodeagent.dataplane.bypass_services import Slots
    from nodeagent.dataplane.datagram_plan import Receiver
    from nodeagent.snapshot.policies import Rules

logger = logging.getLogger(__name__)

DELAY: Final = 0.05
"""Seconds: what comes in a burst is put in force together."""
SHARE: Final = 0.05
"""Of the agent's time that this may take: after a long change the next one waits."""
UDP: Final = 17
_ANY_VIEW: Final = 0


class DatagramKeeper:
    """Keeps UDP by what the control plane tells. It is to be told when any of it changes."""

    def __init__(
        self,
        datagrams: Datagrams,
        engine: Engine,
        index: WorkloadIndex,
        policies: Policies,
        enrolment: Enrolment,
        identities: Identities,
        *,
        has_identities: bool,
        is_synced: Callable[[], bool],
    ) -> None:
        """`is_synced` tells whether index and policies are those of the whole mesh; before, what an earlier agent knew
        holds."""
        # Importing it loads the extension.
        from nodeagent.dataplane.datagram_plan import DatagramPlanner

        self._datagrams = datagrams
        self._engine = engine
        self._index = index
        self._policies = policies
        self._enrolment = enrolment
        self._identities = identities
        self._is_synced = is_synced
        self._has_identities = has_identities
        self._planner = DatagramPlanner(identities=has_identities)
        self._sockets = DatagramSockets(datagrams)
        self._stale: set[str] = set()
        """Services that are to be looked at again."""
        self._keys: dict[str, tuple[ServiceKey, ...]] = {}
        """What each service has in the map."""
        self._handle: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self.error = ""

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be put in force, and connected sockets have been looked at once."""
        return self._handle is None and self._sockets.settled

    # -- what changes --

    def index_changed(self, change: IndexChange) -> None:
        """Services or workloads came, changed or went."""
        self._stale |= change.services
        self.changed()

    def changed(self) -> None:
        """Policies, workloads of this node or their identities have changed."""
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_at(max(loop.time() + DELAY, self._not_before), self._put_in_force)

    def _put_in_force(self) -> None:
        self._handle = None
        if not self._is_synced():
            return
        started = time.monotonic()
        here = list(local_workloads(self._engine, self._enrolment, self._identities))
        receivers = self._receivers([workload.addresses for workload, _ in here])
        if receivers is None:
            return
        stale, self._stale = self._stale, set()
        try:
            plan = self._planner.plan(receivers, [workload for workload, _ in here])
            if plan.excludes:
                plan.members = frozenset(self._members_of_mesh())
            self._sockets.changed(self._datagrams.apply(self._changes(stale), plan), plan, here)
            self._datagrams.guard((workload.cookie, namespace) for workload, namespace in here)
        except DataplaneError as error:
            self._stale |= stale
            if str(error) != self.error:
                logger.error("UDP is as it was, at least in part: %s", error)
            self.error = str(error)
        else:
            self.error = ""
        spent = time.monotonic() - started
        self._not_before = asyncio.get_running_loop().time() + spent / SHARE

    async def stop(self) -> None:
        """Wait for what is under way."""
        if self._handle is not None:
            self._handle.cancel()
        await self._sockets.stop()

    def _members_of_mesh(self) -> Iterator[bytes]:
        """Addresses of those whose nodes judge what they send."""
        for entry in self._index.workloads():
            if entry.hbone and _has_own_addresses(entry):
                yield from entry.addresses

    def _receivers(self, here: Iterable[tuple[bytes, ...]]) -> list[Receiver] | None:
        """None while policies are not known. `here` are the addresses of each of this node's workloads, by one of
        which the mesh knows it. Those that nobody captures have no policy, as by TCP."""
        from nodeagent.dataplane.datagram_plan import Receiver

        found = []
        own = {address: addresses for addresses in here for address in addresses}
        known: dict[tuple[str, tuple[str, ...]], tuple[Rules, ...] | None] = {}
        for entry in self._index.workloads():
            key = entry.ref.namespace, entry.policies
            if key not in known:
                known[key] = self._policies.every(entry.ref.namespace, entry, l4_only=True)
            rules = known[key]
            if rules is None:
                return None
            if not rules or not _has_own_addresses(entry):
                continue
            addresses = next((own[each] for each in entry.addresses if each in own), ())
            if addresses:
                every = tuple(dict.fromkeys(entry.addresses + addresses))
                found.append(Receiver(every, rules, tuple(_served_ports(entry))))
            elif entry.hbone or not self._has_identities:
                found.append(Receiver(entry.addresses, rules))
        return found

    # -- services --

    def _changes(self, stale: set[str]) -> dict[ServiceKey, Slots | None]:
        changes: dict[ServiceKey, Slots | None] = {}
        for name in stale:
            changes.update(dict.fromkeys(self._keys.pop(name, ())))
        services = {name: self._index.service(name) for name in stale}
        wanted = {
            name: service
            for name, service in services.items()
            if service is not None and _may_have_udp(service)
        }
        members = self._members(wanted) if wanted else {}
        for name, service in wanted.items():
            if slots := dict(self._slots(name, service, members.get(name, ()))):
                self._keys[name] = tuple(slots)
                changes.update(slots)
        return changes

    def _members(self, services: Collection[str]) -> dict[str, list[WorkloadEntry]]:
        """In an order of their own, so that nothing changes where they do not."""
        found: dict[str, list[WorkloadEntry]] = {}
        for entry in self._index.workloads():
            for name, _ in entry.services:
                if name in services and not self._index.is_elsewhere(entry):
                    found.setdefault(name, []).append(entry)
        for members in found.values():
            members.sort(key=lambda entry: entry.ref.uid)
        return found

    def _slots(
        self, name: str, service: ServiceEntry, members: Sequence[WorkloadEntry]
    ) -> Iterator[tuple[ServiceKey, Slots]]:
        """What the service's addresses mean. Those of a service that nobody serves mean what the network makes of
        them."""
        from nodeagent.dataplane.bypass_layout import Backend, ServiceKey

        ports = [port for port in service.ports if port.http is None] if members else []
        for port in ports:
            found = [
                Backend(address, 0, target)
                for entry in members
                for address, target in _endpoints(entry, name, port.port)
                if entry.healthy or service.lists_unhealthy
            ]
            for vip in service.addresses:
                slots = tuple(each for each in found if is_v4(each.address) == is_v4(vip))
                yield ServiceKey(vip, _ANY_VIEW, port.port, UDP), slots


def _may_have_udp(service: ServiceEntry) -> bool:
    """UDP is no protocol that a resource could name: such a port has none. What is for one namespace alone is left to
    the network."""
    return not service.private and any(port.http is None for port in service.ports)


def _has_own_addresses(entry: WorkloadEntry) -> bool:
    return not entry.host_network and not entry.machine


def _served_ports(entry: WorkloadEntry) -> set[int]:
    """Those that services lead to, whichever protocol is declared: HTTP may come by UDP, too."""
    return {target for _, ports in entry.services for _, target in ports}


def _endpoints(entry: WorkloadEntry, service: str, port: int) -> Iterator[tuple[bytes, int]]:
    for name, ports in entry.services:
        for number, target in ports if name == service else ():
            if number == port:
                for address in entry.addresses:
                    yield address, target


class DatagramCollector(Collector):
    """What was decided of UDP, for Prometheus."""

    def __init__(self, datagrams: Datagrams) -> None:
        self._datagrams = datagrams

    def collect(self) -> Iterator[Metric]:
        """All families."""
        decisions = CounterMetricFamily(
            "nodeagent_udp_decisions",
            "Connects of UDP sockets, datagrams of those that are not connected, and those of outsiders on arrival, "
            "by what was decided.",
            labels=["decision"],
        )
        for name, value in self._datagrams.counters().items():
            decisions.add_metric([name], value)
        yield decisions
        denials = CounterMetricFamily(
            "nodeagent_udp_denied_by_policy",
            "Those that a policy denied; none: no ALLOW rule matched.",
            labels=["policy"],
        )
        for policy, value in self._datagrams.denials().items():
            denials.add_metric([policy or "none"], value)
        yield denials
        yield CounterMetricFamily(
            "nodeagent_udp_sockets_ended",
            "Connected UDP sockets ended because they may not send any more, or their endpoints were gone.",
            value=self._datagrams.ended,
        )
