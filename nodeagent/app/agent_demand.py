"""What the workloads of a view have asked for: destinations and hosts, bounded, and forgotten after
disuse."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.compiler.gateways import Gateways
from nodeagent.compiler.view import OwnCluster, Want
from nodeagent.compiler.workloads import ServiceEntry, WorkloadIndex
from nodeagent.snapshot.address import format_address, is_v4
from nodeagent.snapshot.values import Cluster, DestinationKey, Endpoint

UNKNOWN_SHARE: Final = 4
"""One in this many of the hosts may be one that does not exist: a client that makes names up must not drive
out those that are used."""


def want_for(index: WorkloadIndex, address: bytes, port: int, waypoints: Waypoints | None = None) -> Want:
    """What to ask for when a connection goes to address:port: the names that istiod gives to what it implies.

    A listener is of the address (TCP, undeclared protocols) or of the port (HTTP); which of them exists is
    for the control plane to say. What has a waypoint is its waypoint's to route.
    """
    service = index.service_at(address, port)
    key = (address, port)
    by_waypoint = waypoints.cluster_for(service, address, port) if waypoints is not None else None
    if by_waypoint is not None:
        return Want(key, (), own=by_waypoint)
    anywhere = _any_listeners(address, port)
    if service is None:
        own = (_listener(address, port),) if index.workload_at(address) is not None else ()
        return Want(key, (*own, *anywhere), routes=(str(port),))
    host = service.ref.host
    listeners = dict.fromkeys((_listener(address, port), *_siblings(service, port), *anywhere))
    return Want(key, tuple(listeners), host, f"outbound|{port}||{host}", _routes(service, port))


@dataclass(frozen=True, slots=True)
class Waypoints:
    """The ways that workloads of one identity (a SPIFFE ID) take, where it is not the listeners that know them: through
    waypoints, and through tunnels to workloads' own addresses."""

    gateways: Gateways
    principal: str

    def cluster_for(self, service: ServiceEntry | None, address: bytes, port: int) -> OwnCluster | None:
        """The way to an address and port of a service that has a waypoint, or else of a workload that has one or is
        reached by HBONE."""
        place = f"{port}|{format_address(address)}"
        if service is not None:
            found = self.gateways.of_service(service, address, port, self.principal)
            name = f"waypoint|{place}|{service.ref.host}"
            return None if found is None else OwnCluster(name, found, service.ref, port)
        found = self.gateways.of_workload(address, port, self.principal)
        if found is not None:
            return OwnCluster(f"waypoint|{place}|", found, None, port)
        found = self.gateways.of_address(address, port)
        return None if found is None else OwnCluster(f"workload|{place}|", found, None, port)

    def endpoints_of(self, cluster: Cluster) -> tuple[Endpoint, ...] | None:
        """Scope.waypoint_of."""
        return self.gateways.of_cluster(cluster, self.principal)


def _routes(service: ServiceEntry, port: int) -> tuple[str, ...]:
    declared = service.port(port)
    assert declared is not None
    if declared.http is None:
        return (f"{service.ref.host}:{port}",)
    return (str(port),) if declared.http else ()


def _listener(address: bytes, port: int) -> str:
    return f"{format_address(address)}_{port}"


def _siblings(service: ServiceEntry, port: int) -> Iterator[str]:
    """A dual-stack service has one listener, named after one of its addresses."""
    return (_listener(other, port) for other in service.addresses)


def _any_listeners(address: bytes, port: int) -> tuple[str, ...]:
    first = f"0.0.0.0_{port}"
    return (first,) if is_v4(address) else (first, f"[::]_{port}", f"::_{port}")


@dataclass(slots=True)
class DemandCounters:
    """What the limits have done since the start."""

    evicted: int = 0
    """Names dropped because others needed their place."""
    expired: int = 0
    """Names dropped after disuse."""


class Demand:
    """The wanted destinations and hosts of a view, least recently used first."""

    def __init__(
        self,
        limit: int,
        ttl: float,
        negative_ttl: float,
        counters: DemandCounters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._ttl = ttl
        self._negative_ttl = negative_ttl
        self._clock = clock
        self._destinations: OrderedDict[DestinationKey, tuple[Want, float]] = OrderedDict()
        self._hosts: OrderedDict[str, float] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._counters = counters

    @property
    def destinations(self) -> dict[DestinationKey, Want]:
        """The wanted destinations."""
        return {key: want for key, (want, _) in self._destinations.items()}

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that requests have asked for, `<route configuration>/<host>`, known or not."""
        return frozenset((*self._hosts, *self._unknown))

    def want(self, want: Want) -> bool:
        """A connection waits for the destination; False if it is wanted already, just so."""
        known = self._destinations.pop(want.key, None)
        self._destinations[want.key] = (want, self._clock())
        if known is None and len(self._destinations) > self._limit:
            self._destinations.popitem(last=False)
            self._counters.evicted += 1
        return known is None or known[0] != want

    def revise(self, want: Want) -> bool:
        """Another understanding of a destination that is wanted; False if it is the same one."""
        known = self._destinations.get(want.key)
        if known is None or known[0] == want:
            return False
        self._destinations[want.key] = (want, known[1])
        return True

    def want_host(self, name: str) -> bool:
        """A request waits for a host; False if it is wanted already."""
        known = self._hosts.pop(name, None)
        if known is None and name in self._unknown:
            return False
        self._hosts[name] = self._clock()
        if known is None and len(self._hosts) > self._limit:
            self._hosts.popitem(last=False)
            self._counters.evicted += 1
        return known is None

    def settle_hosts(self, is_there: Callable[[str], bool | None]) -> None:
        """Tell hosts that do not exist from those that do, by what the control plane has said (None: nothing
        yet)."""
        for name in [name for name in self._hosts if is_there(name) is False]:
            self._unknown[name] = self._hosts.pop(name)
        for name in [name for name in self._unknown if is_there(name)]:
            self._hosts[name] = self._unknown.pop(name)
        while len(self._unknown) > self._limit // UNKNOWN_SHARE:
            self._unknown.popitem(last=False)
            self._counters.evicted += 1

    def touch(self, key: DestinationKey) -> None:
        """A destination was used."""
        known = self._destinations.pop(key, None)
        if known is not None:
            self._destinations[key] = (known[0], self._clock())

    def touch_hosts(self, names: Iterable[str]) -> None:
        """Hosts were used; with them the destinations whose service they are."""
        used = set(names)
        for name in used & self._hosts.keys():
            del self._hosts[name]
            self._hosts[name] = self._clock()
        for key, (want, _) in list(self._destinations.items()):
            if want.host and any(f"{route}/{want.host}" in used for route in want.routes):
                self.touch(key)

    def expire(self) -> bool:
        """Drop what has not been used for long; True if something went."""
        now = self._clock()
        old = [key for key, (_, used) in self._destinations.items() if now - used > self._ttl]
        old_hosts = [name for name, used in self._hosts.items() if now - used > self._ttl]
        old_unknown = [name for name, used in self._unknown.items() if now - used > self._negative_ttl]
        for key in old:
            del self._destinations[key]
        for name in old_hosts:
            del self._hosts[name]
        for name in old_unknown:
            del self._unknown[name]
        gone = len(old) + len(old_hosts) + len(old_unknown)
        self._counters.expired += gone
        return gone > 0
