"""Compiled resources before they are put together: what one xDS resource means by itself.

A piece is made once, when its resource is received, and then shared by all snapshots until the resource
changes. Where a snapshot value names a cluster or table of its view, the piece has that full name already;
the xDS names that it depends on are listed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from nodeagent.compiler.tokens import RemoteKeys
from nodeagent.snapshot.policies import ConnectionStage, RequestStage, Slashes
from nodeagent.snapshot.values import (
    Cluster,
    Endpoint,
    Protocol,
    Tunnel,
    VirtualHost,
    WeightedCluster,
    WorkloadRef,
)

PASSTHROUGH: Final = "PassthroughCluster"
BLACKHOLE: Final = "BlackHoleCluster"


@dataclass(frozen=True, slots=True)
class Scope:
    """What compiling depends on besides the resource: whose view it is, who lives where, what the engine
    takes."""

    view: str
    workload_at: Callable[[bytes, int], WorkloadRef | None] = lambda *_: None
    check: Callable[[VirtualHost], None] = lambda _: None
    """Raises ValueError for what the engine would refuse (a bad regular expression)."""
    tunnel_to: Callable[[bytes, str, int], Tunnel | None] = lambda *_: None
    """How the workload at an address is reached by HBONE or mTLS, for a target and at a port (Gateways.tunnel_to);
    None: in plaintext."""
    waypoint_of: Callable[[Cluster], tuple[Endpoint, ...] | None] = lambda _: None
    """The endpoints of a cluster whose service has a waypoint (Gateways.of_cluster); None: its own."""
    beyond: Callable[[Cluster], tuple[Endpoint, ...]] = lambda _: ()
    """Endpoints of a cluster's service that no load assignment tells of (Gateways.beyond)."""

    def name(self, xds_name: str) -> str:
        """The snapshot's name of a cluster or route table."""
        return f"{self.view}/{xds_name}"


@dataclass(frozen=True, slots=True)
class HostPiece:
    """A virtual host. `clusters` are the xDS names of those that its routes forward to."""

    value: VirtualHost
    clusters: frozenset[str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutePiece:
    """A route configuration; on_demand: further virtual hosts come by VHDS."""

    name: str
    hosts: tuple[HostPiece, ...]
    on_demand: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a listener makes of connections to one address:port (address None: any)."""

    address: bytes | None
    port: int
    protocol: Protocol
    route: str | None = None
    """Name of the route configuration, for HTTP and DETECT."""
    inline: RoutePiece | None = None
    """The route configuration itself, if the listener carries it."""
    shares: tuple[WeightedCluster, ...] = ()
    """For TCP, with the snapshot's cluster names."""
    clusters: frozenset[str] = frozenset()
    """xDS names of the clusters in `shares`."""


@dataclass(frozen=True, slots=True)
class ListenerPiece:
    """An outbound listener. `refuse_unknown` is set for the catch-all only: what it does with everything
    else."""

    name: str
    outcomes: tuple[Outcome, ...] = ()
    refuse_unknown: bool | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guarding:
    """What filters ask for, in their order."""

    connection: tuple[ConnectionStage, ...] = ()
    request: tuple[RequestStage, ...] = ()
    clusters: frozenset[str] = frozenset()
    """xDS names of the clusters that callouts ask."""
    remote: tuple[tuple[str, RemoteKeys], ...] = ()
    """Token providers by name whose keys must be fetched."""
    filters: tuple[str, ...] = ()
    """Names of the filters that restrict."""
    closed: tuple[str, ...] = ()
    """Why nothing can be let pass: what is asked for and cannot be put in force."""
    slashes: Slashes = Slashes.AS_SENT
    """How they are read in paths."""


UNGUARDED: Final = Guarding()


@dataclass(frozen=True, slots=True)
class PortPiece:
    """What the inbound listener makes of a port. `cluster` is the xDS name of its cluster."""

    protocol: Protocol
    cluster: str = ""
    guarding: Guarding = UNGUARDED


@dataclass(frozen=True, slots=True)
class InboundPiece:
    """What the inbound listener makes of the workload's ports; `fallback` is for those that are not listed."""

    ports: Mapping[int, PortPiece] = field(default_factory=dict)
    fallback: PortPiece = PortPiece(Protocol.DETECT)
    warnings: tuple[str, ...] = ()
    l4_only: bool = False
    """No listener stands behind it: L4 policies are all that there is."""

    @property
    def clusters(self) -> frozenset[str]:
        """xDS names of the clusters that callouts ask."""
        return frozenset(name for guarding in self._guardings() for name in guarding.clusters)

    @property
    def remote_keys(self) -> frozenset[RemoteKeys]:
        """Keys that must be fetched."""
        return frozenset(keys for guarding in self._guardings() for _, keys in guarding.remote)

    def _guardings(self) -> Iterator[Guarding]:
        for port in (*self.ports.values(), self.fallback):
            yield port.guarding


@dataclass(frozen=True, slots=True)
class ClusterPiece:
    """A cluster. `eds_name` is the load assignment that it waits for; None: `endpoints` are its own."""

    value: Cluster
    eds_name: str | None = None
    endpoints: tuple[Endpoint, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointsPiece:
    """A load assignment."""

    endpoints: tuple[Endpoint, ...]
    warnings: tuple[str, ...] = ()
    target: str = ""
    """`host:port` of the service that they are of."""

    def resolved(self, scope: Scope) -> EndpointsPiece:
        """The same, with each endpoint's workload and tunnel as they are known now.

        Who is not known stays as told: above all, a tunnel does not become plaintext because its workload went before
        its endpoint did.
        """
        return replace(
            self, endpoints=tuple(_resolved(endpoint, scope, self.target) for endpoint in self.endpoints)
        )


def _resolved(endpoint: Endpoint, scope: Scope, target: str) -> Endpoint:
    workload = scope.workload_at(endpoint.address, endpoint.port)
    if workload is None:
        return endpoint
    tunnel = scope.tunnel_to(endpoint.address, target, endpoint.port)
    if (workload, tunnel) == (endpoint.workload, endpoint.tunnel):
        return endpoint
    return replace(endpoint, workload=workload, tunnel=tunnel)
