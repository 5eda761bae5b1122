"""VirtualService and DestinationRule as values, with hosts resolved and defaults of the API filled in."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

MESH_GATEWAY: Final = "mesh"
"""The gateway that stands for all proxies of the mesh."""


class MatchKind(enum.Enum):
    """How a string is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """A condition on a string; a regex (RE2) must match all of it."""

    kind: MatchKind
    value: str = ""


@dataclass(frozen=True, slots=True)
class SourceMatch:
    """Conditions on who asks and where; decided when configuration is made, not per request."""

    port: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    gateways: tuple[str, ...] = ()
    """Empty: the gateways of the VirtualService."""


@dataclass(frozen=True, slots=True)
class HttpMatch:
    """HTTPMatchRequest: all of it must hold."""

    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: tuple[tuple[str, StringMatch], ...] = ()
    without_headers: tuple[tuple[str, StringMatch], ...] = ()
    query: tuple[tuple[str, StringMatch], ...] = ()
    ignore_uri_case: bool = False
    stat_prefix: str = ""
    source: SourceMatch = field(default_factory=SourceMatch)

    @property
    def catches_all(self) -> bool:
        """Whether no request is left for later routes."""
        everything = self.uri is None or (self.uri.kind is MatchKind.PREFIX and self.uri.value == "/")
        others = (self.scheme, self.method, self.authority)
        conditions = (self.headers, self.without_headers, self.query)
        return everything and not any(others) and not any(conditions)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to: a fully qualified host, a subset of it, a port (None: the service's only one, or the listener's)."""

    host: str
    subset: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class HeaderOperations:
    """Changes to headers of one side."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Headers:
    """Changes to headers of both sides. `authority` replaces the Host of the request."""

    request: HeaderOperations = field(default_factory=HeaderOperations)
    response: HeaderOperations = field(default_factory=HeaderOperations)
    authority: str = ""


@dataclass(frozen=True, slots=True)
class WeightedDestination:
    """One share of a route."""

    destination: Destination
    weight: int = 0
    headers: Headers = field(default_factory=Headers)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """HTTPRewrite; `regex` is a pattern and its substitution."""

    uri: str = ""
    authority: str = ""
    regex: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """HTTPRedirect. `port` None keeps the request's; 0 takes the default of the scheme."""

    uri: str = ""
    prefix: str = ""
    authority: str = ""
    scheme: str = ""
    port: int | None = None
    code: int = 301


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """HTTPDirectResponse."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """HTTPRoute: exactly one of destinations, redirect and direct_response."""

    name: str = ""
    matches: tuple[HttpMatch, ...] = ()
    destinations: tuple[WeightedDestination, ...] = ()
    redirect: Redirect | None = None
    direct_response: DirectResponse | None = None
    rewrite: Rewrite | None = None
    timeout: timedelta | None = None
    headers: Headers = field(default_factory=Headers)


@dataclass(frozen=True, slots=True)
class TcpMatch:
    """L4MatchAttributes."""

    subnets: tuple[str, ...] = ()
    source: SourceMatch = field(default_factory=SourceMatch)


@dataclass(frozen=True, slots=True)
class TcpRoute:
    """TCPRoute."""

    matches: tuple[TcpMatch, ...] = ()
    destinations: tuple[WeightedDestination, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A VirtualService; hosts are fully qualified."""

    name: str
    namespace: str
    hosts: tuple[str, ...]
    gateways: tuple[str, ...]
    http: tuple[HttpRoute, ...]
    tcp: tuple[TcpRoute, ...]
    export_to: frozenset[str]
    created: float
    source: str = field(default="", compare=False)

    @property
    def age(self) -> tuple[float, str, str]:
        """Sorts the oldest first, then by name and namespace."""
        return (self.created, self.name, self.namespace)

    def destinations(self) -> list[tuple[str, Destination]]:
        """Every destination that gets requests, with the path of its field."""
        by_path = [(f"spec.http[{index}]", route.destinations) for index, route in enumerate(self.http)]
        by_path += [(f"spec.tcp[{index}]", route.destinations) for index, route in enumerate(self.tcp)]
        return [
            (f"{path}.route[{place}].destination", share.destination)
            for path, shares in by_path
            for place, share in enumerate(shares)
            if share.weight or len(shares) == 1
        ]


class LoadBalancer(enum.Enum):
    """LoadBalancerSettings.simple."""

    LEAST_REQUEST = "LEAST_REQUEST"
    RANDOM = "RANDOM"
    ROUND_ROBIN = "ROUND_ROBIN"


@dataclass(frozen=True, slots=True)
class ConnectionPool:
    """ConnectionPoolSettings; None: the default."""

    max_connections: int | None = None
    connect_timeout: timedelta | None = None
    max_pending_requests: int | None = None
    max_requests: int | None = None
    max_requests_per_connection: int | None = None
    http_idle_timeout: timedelta | None = None


@dataclass(frozen=True, slots=True)
class PolicyBlocks:
    """The blocks of a traffic policy that override each other as wholes; None: not set."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None

    def over(self, base: PolicyBlocks) -> PolicyBlocks:
        """These blocks where set, else those of `base`."""
        return PolicyBlocks(
            self.load_balancer or base.load_balancer, self.connection_pool or base.connection_pool
        )


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """TrafficPolicy: blocks, and for some ports others in their place."""

    blocks: PolicyBlocks = field(default_factory=PolicyBlocks)
    ports: Mapping[int, PolicyBlocks] = field(default_factory=dict)

    def at(self, port: int, base: PolicyBlocks | None = None) -> PolicyBlocks:
        """The blocks for a port. Port level settings replace all others: what they omit is back to its default."""
        replaced = self.ports.get(port)
        if replaced is not None:
            return replaced
        return self.blocks.over(base) if base is not None else self.blocks


@dataclass(frozen=True, slots=True)
class Subset:
    """A named part of a host's endpoints."""

    name: str
    labels: Mapping[str, str]
    policy: TrafficPolicy = field(default_factory=TrafficPolicy)


@dataclass(frozen=True, slots=True)
class DestinationRule:
    """A DestinationRule; the host is fully qualified. `policy` None: it sets none."""

    name: str
    namespace: str
    host: str
    subsets: tuple[Subset, ...]
    policy: TrafficPolicy | None
    export_to: frozenset[str]
    created: float
    source: str = field(default="", compare=False)

    @property
    def age(self) -> tuple[float, str, str]:
        """Sorts the oldest first, then by name and namespace."""
        return (self.created, self.name, self.namespace)
