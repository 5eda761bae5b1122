"""What the data path is to do, as immutable values: the engine's builder (configuration.h) one to one.

A Snapshot is a tree of mappings. Whoever makes a new one reuses every part that did not change, so that
comparing two of them (diff.py) costs identity checks, not deep comparisons. Nothing in here is ever changed
in place; the mappings are plain dicts behind the read-only Mapping type.

Names: the engine has one name space for clusters and one for route tables, and each view has its own
configuration. So `Cluster.name` and `RouteTable.name` are `<view>/<xDS name>`, unique in the whole
snapshot; `xds_name` is what people know them by. Everything that a view refers to is in that same view.

Addresses are 16 bytes (snapshot/address.py), times milliseconds. 0 in a limit or timeout takes the engine's
default, NEVER means none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

from nodeagent.snapshot.matches import NamedMatch, PathMatch
from nodeagent.snapshot.policies import OPEN, Guards, Rules

NEVER: Final = 0xFFFF_FFFF  # NA_NEVER


class LoadBalancing(IntEnum):
    """enum na_lb."""

    ROUND_ROBIN = 0
    RANDOM = 1
    LEAST_REQUEST = 2


class ClusterKind(IntEnum):
    """enum na_cluster_kind."""

    ENDPOINTS = 0
    ORIGINAL_DST = 1
    BLACKHOLE = 2


class Protocol(IntEnum):
    """enum na_protocol: what a destination or an inbound port speaks."""

    TCP = 0
    HTTP = 1
    DETECT = 2
    REFUSE = 3
    """Inbound only: configuration that guards this port cannot be put in force, so that nothing may pass."""


class HeaderSide(IntEnum):
    """enum na_header_side."""

    REQUEST = 0
    RESPONSE = 1


class HeaderOp(IntEnum):
    """enum na_header_op."""

    SET = 0
    ADD = 1
    REMOVE = 2
    ADD_IF_ABSENT = 3


# -- whom traffic belongs to: what Istio's metric labels and access logs say of it --


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """A service of the mesh: `host` is its FQDN, `name` and `namespace` those of its object."""

    host: str
    name: str
    namespace: str


@dataclass(frozen=True, slots=True)
class WorkloadRef:
    """An instance of a workload. Empty strings are values that nobody has told; telemetry writes `unknown`.

    `uid` is the xDS one (`cluster//Pod/namespace/name`), `name` the instance's (the pod's), `workload_name`
    the owner's (the Deployment's), `cluster` the cluster id.
    """

    uid: str
    name: str
    namespace: str
    workload_name: str = ""
    workload_type: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    app: str = ""
    version: str = ""
    cluster: str = ""
    service_account: str = ""
    trust_domain: str = ""
    node: str = ""

    @property
    def principal(self) -> str:
        """Its SPIFFE identity, or "" while the service account is unknown."""
        if not (self.trust_domain and self.service_account):
            return ""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


# -- clusters --


class TunnelKind(IntEnum):
    """enum na_tunnel_kind."""

    HBONE = 0
    MTLS = 1
    """Istio's mTLS to the endpoint itself, as between sidecars; only `Tunnel.identities` counts."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """na_tunnel_config: HBONE to `address`, or to the endpoint's own. The peer must have one of `identities` (SPIFFE
    IDs)."""

    identities: tuple[str, ...]
    port: int = 15008
    address: bytes = bytes(16)
    """Of a waypoint or gateway; zeros: the endpoint's own."""
    authority: str = ""
    """`host:port` to ask the peer for, instead of the endpoint's address and port."""
    inner: tuple[str, ...] = ()
    """Double HBONE: whose tunnel is made within this one."""
    network: str = ""
    """With `inner`: the name of our own network."""
    kind: TunnelKind = TunnelKind.HBONE


@dataclass(frozen=True, slots=True)
class Endpoint:
    """na_endpoint. An endpoint that is not `healthy` serves only when the whole cluster has no healthy
    one. Without a `tunnel` it is reached in plaintext; with one never."""

    address: bytes
    port: int
    weight: int = 1
    healthy: bool = True
    priority: int = 0
    workload: WorkloadRef | None = None
    tunnel: Tunnel | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """na_cluster_config, and what the cluster stands for. Its endpoints are in View.endpoints."""

    name: str
    xds_name: str
    kind: ClusterKind = ClusterKind.ENDPOINTS
    lb: LoadBalancing = LoadBalancing.ROUND_ROBIN
    connect_timeout_ms: int = 0
    idle_timeout_ms: int = 0
    max_connections: int = NEVER
    max_requests: int = NEVER
    max_pending: int = NEVER
    max_requests_per_connection: int = NEVER
    service: ServiceRef | None = None
    subset: str = ""
    port: int = 0


# -- routes --


@dataclass(frozen=True, slots=True)
class HeaderMutation:
    """One change to a request's or response's headers; `value` is empty for REMOVE, and may else have command operators
    (`%REQ(x-user)%`; `%%` is a percent sign)."""

    side: HeaderSide
    op: HeaderOp
    name: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    """A share of the traffic; `cluster` is a Cluster.name of the same view. Mutations apply to HTTP only."""

    cluster: str
    weight: int = 1
    mutations: tuple[HeaderMutation, ...] = ()


@dataclass(frozen=True, slots=True)
class RegexRewrite:
    """Substitute what `pattern` (RE2) matches of the path; `substitution` may hold \\1 groups."""

    pattern: str
    substitution: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Route action: send to one of the clusters. At most one of the path rewrites is set."""

    clusters: tuple[WeightedCluster, ...]
    timeout_ms: int = NEVER
    rewrite_prefix: str | None = None
    rewrite_regex: RegexRewrite | None = None
    rewrite_authority: str | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Route action: answer with a redirect. None and port 0 stay as requested; at most one of path and
    prefix."""

    code: int
    scheme: str | None = None
    authority: str | None = None
    port: int = 0
    path: str | None = None
    prefix: str | None = None
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class Respond:
    """Route action: answer at once."""

    status: int
    body: bytes = b""


Action: TypeAlias = Forward | Redirect | Respond


@dataclass(frozen=True, slots=True)
class Route:
    """A match and an action; every part of the match must hold, no `path` matches any path."""

    name: str
    action: Action
    path: PathMatch | None = None
    headers: tuple[NamedMatch, ...] = ()
    query: tuple[NamedMatch, ...] = ()
    mutations: tuple[HeaderMutation, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """Domains and their routes, first match wins. `name` is unique in the table."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    mutations: tuple[HeaderMutation, ...] = ()
    attempt_count: bool = False
    """Tell upstreams which attempt a request is (x-envoy-attempt-count)."""


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Virtual hosts by name. on_demand: hosts that are neither here nor in `unknown_hosts` are asked for."""

    name: str
    xds_name: str
    virtual_hosts: Mapping[str, VirtualHost] = field(default_factory=dict)
    on_demand: bool = False
    unknown_hosts: frozenset[str] = frozenset()


# -- what connections mean --

DestinationKey: TypeAlias = tuple[bytes | None, int]


@dataclass(frozen=True, slots=True)
class Destination:
    """na_destination_config: what a connection to address:port is; address None stands for any address.

    `table` is a RouteTable.name for HTTP and DETECT. `clusters` serve TCP (also what is found not to be
    HTTP/1); none means that the connection goes on to where it was going.
    """

    address: bytes | None
    port: int
    protocol: Protocol
    table: str | None = None
    clusters: tuple[WeightedCluster, ...] = ()
    xds_name: str = ""
    """Name of the listener that it comes from, for people."""

    @property
    def key(self) -> DestinationKey:
        """Its key in View.destinations."""
        return (self.address, self.port)


@dataclass(frozen=True, slots=True)
class View:
    """The outbound configuration of workloads that are entitled to the same one."""

    name: str
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    """By Cluster.name; a cluster of kind ENDPOINTS that is missing here has none."""
    tables: Mapping[str, RouteTable] = field(default_factory=dict)
    """By RouteTable.name."""
    destinations: Mapping[DestinationKey, Destination] = field(default_factory=dict)
    refuse_unknown: bool = False


@dataclass(frozen=True, slots=True)
class InboundPort:
    """na_inbound_port, and the service that it belongs to. `xds_name` is the cluster's (`inbound|9080||`)."""

    port: int
    protocol: Protocol
    service: ServiceRef | None = None
    xds_name: str = ""
    guards: Guards = OPEN


@dataclass(frozen=True, slots=True)
class InboundName:
    """na_inbound_name: a port of a service that the workload serves at its port `target`."""

    host: str
    port: int
    target: int


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """NA_APPLICATION_TUNNEL_PROXY: what came through a tunnel begins with a PROXY header (version 2) for the
    application. `port` 0: the port that was asked for."""

    port: int = 0


@dataclass(frozen=True, slots=True)
class Inbound:
    """What the ports of a workload speak, and who may come in. `fallback` and `fallback_guards` are for ports that
    are not listed; `every` is asked of each connection to any port, before the port's own guards."""

    ports: tuple[InboundPort, ...] = ()
    fallback: Protocol = Protocol.DETECT
    fallback_guards: Guards = OPEN
    every: tuple[Rules, ...] = ()
    names: tuple[InboundName, ...] = ()
    """By which tunnel peers may ask for it instead of its address."""
    tunnel: ApplicationTunnel | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked of anybody who comes in."""
        guards = (self.fallback_guards, *(port.guards for port in self.ports))
        refuses = Protocol.REFUSE in (self.fallback, *(port.protocol for port in self.ports))
        return not (refuses or self.every or any(each.connection or each.request for each in guards))


@dataclass(frozen=True, slots=True)
class Hints:
    """What may need configuration on demand: addresses of services, and ports on which HTTP services
    exist."""

    addresses: frozenset[bytes] = frozenset()
    ports: frozenset[int] = frozenset()
    answered: bool = True
    """Whether it makes sense to wait for it: the control plane is there, or may be in a moment."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the engine is to do. `version` grows with each one and is for people only."""

    version: int = 0
    views: Mapping[str, View] = field(default_factory=dict)
    inbound: Mapping[str, Inbound] = field(default_factory=dict)
    """By the uid under which the workload was enrolled."""
    hints: Hints = Hints()
    names: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """na_builder_dns: host names that are answered to workloads, with their addresses; `HOST/NAMESPACE` for workloads
    of a namespace alone."""


EMPTY: Final = Snapshot()


# -- what comes back: the engine owner turns tags into these --


@dataclass(frozen=True, slots=True)
class DestinationNeeded:
    """NA_EVENT_DESTINATION: a connection of workload `uid` to address:port waits for its meaning."""

    uid: str
    view: str
    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class HostNeeded:
    """NA_EVENT_HOST: a request for `host` (lower case, as in its authority) waits; `table` is a
    RouteTable.name."""

    uid: str
    view: str
    table: str
    host: str


Need: TypeAlias = DestinationNeeded | HostNeeded


@dataclass(frozen=True, slots=True)
class DestinationUse:
    """A destination was used since the last look."""

    view: str
    key: DestinationKey


@dataclass(frozen=True, slots=True)
class VirtualHostUse:
    """A virtual host was used since the last look; `table` is a RouteTable.name."""

    view: str
    table: str
    name: str


@dataclass(frozen=True, slots=True)
class ClusterUse:
    """A cluster was used since the last look; `name` is a Cluster.name."""

    view: str
    name: str


Use: TypeAlias = DestinationUse | VirtualHostUse | ClusterUse
