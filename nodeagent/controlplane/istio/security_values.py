"""AuthorizationPolicy, PeerAuthentication and RequestAuthentication as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta


class Attribute(enum.Enum):
    """What a condition looks at, by the key that `when` has for it; `from` and `to` are conditions, too."""

    SOURCE_IP = "source.ip"
    REMOTE_IP = "remote.ip"
    NAMESPACE = "source.namespace"
    SERVICE_ACCOUNT = "source.serviceAccount"
    TRUST_DOMAIN = "source.trustDomain"
    PRINCIPAL = "source.principal"
    REQUEST_PRINCIPAL = "request.auth.principal"
    AUDIENCES = "request.auth.audiences"
    PRESENTER = "request.auth.presenter"
    CLAIMS = "request.auth.claims"
    HEADERS = "request.headers"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"
    SNI = "connection.sni"
    ENVOY_METADATA = "experimental.envoy.filters."
    HOST = "host"
    METHOD = "method"
    PATH = "path"

    @property
    def is_http(self) -> bool:
        """Whether only an HTTP request has it."""
        return self in _HTTP

    @property
    def is_source(self) -> bool:
        """Whether it is about who asks, rather than about what is asked for (Envoy's principals, permissions)."""
        return self in _SOURCE


_HTTP = frozenset(
    {
        Attribute.REQUEST_PRINCIPAL,
        Attribute.AUDIENCES,
        Attribute.PRESENTER,
        Attribute.CLAIMS,
        Attribute.HEADERS,
        Attribute.HOST,
        Attribute.METHOD,
        Attribute.PATH,
    }
)
CREDENTIALS = frozenset(
    {
        Attribute.NAMESPACE,
        Attribute.SERVICE_ACCOUNT,
        Attribute.TRUST_DOMAIN,
        Attribute.PRINCIPAL,
        Attribute.REQUEST_PRINCIPAL,
        Attribute.AUDIENCES,
        Attribute.PRESENTER,
        Attribute.CLAIMS,
    }
)
"""What a certificate or a token says of who asks."""
_SOURCE = CREDENTIALS | {Attribute.SOURCE_IP, Attribute.REMOTE_IP, Attribute.HEADERS}


@dataclass(frozen=True, slots=True)
class Condition:
    """One of `values` (any, if there are none), and none of `excluded`.

    `path` goes with the attribute: the name of a header, the path of a claim, filter and key of Envoy's metadata.
    Service accounts are written `namespace/name`.
    """

    attribute: Attribute
    values: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches if all conditions of one source, all of one operation, and every condition of `when` hold."""

    sources: tuple[tuple[Condition, ...], ...] = ()
    """None: any source."""
    operations: tuple[tuple[Condition, ...], ...] = ()
    """None: any operation."""
    when: tuple[Condition, ...] = ()

    def conditions(self) -> list[Condition]:
        """Every condition of the rule."""
        groups = (*self.sources, *self.operations, self.when)
        return [condition for group in groups for condition in group]


@dataclass(frozen=True, slots=True)
class TargetRef:
    """What a policy is attached to in place of pods: a Service, Gateway, GatewayClass or ServiceEntry."""

    group: str
    kind: str
    name: str


class Action(enum.Enum):
    """AuthorizationPolicy.action."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityPolicy:
    """What the three kinds have in common: a policy of a namespace (the root namespace: of the mesh) for its pods,
    for those with certain labels, or for what it is attached to."""

    name: str
    namespace: str
    created: float
    selector: Mapping[str, str] = field(default_factory=dict)
    """Empty: every pod."""
    targets: tuple[TargetRef, ...] = ()
    source: str = field(default="", compare=False)

    @property
    def age(self) -> tuple[float, str, str]:
        """Sorts the oldest first, then by name and namespace."""
        return (self.created, self.name, self.namespace)

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy(SecurityPolicy):
    """An AuthorizationPolicy. Without rules it matches nothing."""

    action: Action = Action.ALLOW
    rules: tuple[Rule, ...] = ()
    provider: str = ""
    """CUSTOM: the extension provider of MeshConfig that is asked."""
    dry_run: bool = False


class MtlsMode(enum.Enum):
    """PeerAuthentication.MutualTLS.Mode, less UNSET, which is None."""

    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication(SecurityPolicy):
    """A PeerAuthentication; a mode that is None is inherited."""

    mode: MtlsMode | None = None
    ports: Mapping[int, MtlsMode | None] = field(default_factory=dict)
    """By port of the workload."""


@dataclass(frozen=True, slots=True)
class JwtRule:
    """JWTRule: tokens of one issuer, and where they are."""

    issuer: str = ""
    audiences: tuple[str, ...] = ()
    keys: str = ""
    """The key set by value; empty: it is fetched."""
    keys_uri: str = ""
    """Where the key set is; empty: where the issuer says (OpenID Connect Discovery)."""
    from_headers: tuple[tuple[str, str], ...] = ()
    """Name and prefix."""
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()
    """Header and claim."""
    forward: bool = False
    timeout: timedelta | None = None
    """Of fetching the key set."""
    space_delimited: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAuthentication(SecurityPolicy):
    """A RequestAuthentication."""

    rules: tuple[JwtRule, ...] = ()
