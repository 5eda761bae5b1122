"""Waypoints and network gateways: which tunnels lead to what is behind them.

A waypoint stands before a service or a workload: connections to the service's address and port, or to the workload's,
are sent to it through a tunnel, and it decides what becomes of them (Istio ambient). The gateway of another network
passes a second tunnel on, which is made within the first (double HBONE).

The service or workload is named in its own resource; what it names is looked up among all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from nodeagent.compiler.workloads import (
    GatewayRef,
    IndexChange,
    ServiceEntry,
    WorkloadEntry,
    WorkloadIndex,
)
from nodeagent.snapshot.values import Cluster, Endpoint, ServiceRef, Tunnel, TunnelKind, WorkloadRef

Way: TypeAlias = tuple[WorkloadRef, Tunnel]
"""A workload of a gateway, and the tunnel to it."""


class Gateways:
    """Finds what is behind GatewayRefs, and remembers it until the index says that it has changed."""

    def __init__(self, index: WorkloadIndex) -> None:
        self._index = index
        self._ways: dict[GatewayRef, tuple[Way, ...]] = {}

    def forget(self, change: IndexChange) -> bool:
        """The index has changed; True if some of what was said here may have, too."""
        stale = [
            ref
            for ref in self._ways
            if ref.service in change.services or ref.address in change.addresses or change.gateways
        ]
        for ref in stale:
            del self._ways[ref]
        return bool(stale) or change.gateways

    def ways(self, ref: GatewayRef) -> tuple[Way, ...]:
        """The tunnels to the healthy workloads of a gateway; none while it is not known who they are."""
        if ref not in self._ways:
            self._ways[ref] = tuple(self._find(ref))
        return self._ways[ref]

    def _find(self, ref: GatewayRef) -> list[Way]:
        name = ref.service or self._index.service_named_at(ref.address)
        service = self._index.service(name) if name else None
        if service is not None:
            members = self._index.members(name)
            return [
                _way(member, _target(member, name, ref.port), service.identities)
                for member in members
                if member.healthy and member.addresses
            ]
        entry = self._index.entry_at(ref.address) if ref.address else None
        return [_way(entry, ref.port, ())] if entry is not None else []

    # -- waypoints --

    def of_service(
        self, service: ServiceEntry, address: bytes, port: int, own: str
    ) -> tuple[Endpoint, ...] | None:
        """How a service's address and port are reached through its waypoint, which `own` (a SPIFFE ID) is not;
        None: there is none."""
        return self._endpoints(service.waypoint, address, port, own)

    def of_workload(self, address: bytes, port: int, own: str) -> tuple[Endpoint, ...] | None:
        """The same for a workload, by one of its own addresses."""
        entry = self._index.entry_at(address, port)
        return None if entry is None else self._endpoints(entry.waypoint, address, port, own)

    def of_cluster(self, cluster: Cluster, own: str) -> tuple[Endpoint, ...] | None:
        """The endpoints of a cluster whose service has a waypoint; None: those that it has."""
        if cluster.service is None:
            return None
        service = self._index.service(_name_of(cluster.service))
        if service is None or service.waypoint is None or not service.addresses:
            return None
        return self.of_service(service, service.addresses[0], cluster.port, own)

    def _endpoints(
        self, ref: GatewayRef | None, address: bytes, port: int, own: str
    ) -> tuple[Endpoint, ...] | None:
        if ref is None:
            return None
        ways = self.ways(ref)
        if any(own in tunnel.identities for _, tunnel in ways):
            return None
        return tuple(Endpoint(address, port, workload=workload, tunnel=tunnel) for workload, tunnel in ways)

    def of_address(self, address: bytes, port: int) -> tuple[Endpoint, ...] | None:
        """How a workload's own address is reached: through a tunnel, whatever the port (of a machine: at the ports of
        its workloads); None: as it is."""
        tunnel = self.tunnel_to(address, port=port)
        if tunnel is None:
            return None
        return (Endpoint(address, port, workload=self._index.workload_at(address, port), tunnel=tunnel),)

    # -- networks --

    def tunnel_to(self, address: bytes, target: str = "", port: int = 0) -> Tunnel | None:
        """How the workload at an address is reached by HBONE, or by a sidecar's mTLS; None if by neither. `target` is
        the service's `host:port` that it is reached for: in another network it has no address. `port` is the
        workload's, by which those of a machine are told apart."""
        entry = self._index.entry_at(address, port)
        if entry is not None and entry.mtls:
            return Tunnel((entry.ref.principal,), kind=TunnelKind.MTLS)
        if entry is None or not entry.hbone:
            return None
        if not target or not self._index.is_elsewhere(entry) or entry.gateway is None:
            return Tunnel((entry.ref.principal,))
        ways = self.ways(entry.gateway)
        service = self._index.service_of_host(target.rpartition(":")[0])
        inner = (entry.ref.principal, *(service.identities if service is not None else ()))
        if not ways:
            # Nobody answers there: refused, and never sent on in another way.
            return Tunnel((entry.ref.principal,), inner=inner, authority=target)
        return replace(
            _merged(ways),
            inner=tuple(dict.fromkeys(inner)),
            authority=target,
            network=self._index.network,
        )

    def beyond(self, cluster: Cluster) -> tuple[Endpoint, ...]:
        """The endpoints of a cluster's service in other networks that have no address here: each of their gateways'
        workloads stands for them. Subsets are none of theirs: labels are not told."""
        name = _name_of(cluster.service) if cluster.service is not None else ""
        members = self._index.members_beyond(name) if not cluster.subset else ()
        service = self._index.service(name) if members else None
        if service is None:
            return ()
        weights: dict[tuple[Tunnel, WorkloadRef], int] = {}
        for member in members:
            for workload, tunnel in self._ways_to(member, service, f"{service.ref.host}:{cluster.port}"):
                weights[tunnel, workload] = weights.get((tunnel, workload), 0) + member.capacity
        return tuple(
            Endpoint(tunnel.address, cluster.port, max(1, weight), workload=workload, tunnel=tunnel)
            for (tunnel, workload), weight in weights.items()
        )

    def _ways_to(self, member: WorkloadEntry, service: ServiceEntry, target: str) -> Iterator[Way]:
        inner = dict.fromkeys(name for name in (member.ref.principal, *service.identities) if name)
        if not inner or not member.hbone or not member.healthy or member.gateway is None:
            return
        if not self._index.is_elsewhere(member):
            return
        for workload, tunnel in self.ways(member.gateway):
            network = self._index.network
            yield workload, replace(tunnel, inner=tuple(inner), authority=target, network=network)


def _merged(ways: tuple[Way, ...]) -> Tunnel:
    """The first way to a gateway, at which any of its workloads may answer."""
    identities = dict.fromkeys(name for _, tunnel in ways for name in tunnel.identities)
    return replace(ways[0][1], identities=tuple(identities))


def _way(entry: WorkloadEntry, port: int, identities: tuple[str, ...]) -> Way:
    names = dict.fromkeys((entry.ref.principal, *identities))
    return entry.ref, Tunnel(tuple(name for name in names if name), port, entry.addresses[0])


def _target(entry: WorkloadEntry, service: str, port: int) -> int:
    """The workload's port for a port of a service of it, if it tells; else the same."""
    ports = next((ports for name, ports in entry.services if name == service), ())
    return dict(ports).get(port) or port


def _name_of(service: ServiceRef) -> str:
    """The name of a service's resource."""
    return f"{service.namespace}/{service.host}"
