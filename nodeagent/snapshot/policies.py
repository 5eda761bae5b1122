"""Who may do what at a workload's ports, as immutable values: the engine's guards (inbound.h) one to one.

A guard is a list of stages, asked in order. A stage lets pass, refuses, or (a Callout) waits for somebody's answer;
the first refusal ends it. What the engine cannot decide it refuses.

Checks are expressions over what is known of a connection or request. A check on something that is not there (a header
of a TCP connection, the principal of a plaintext peer) is false; `Not` of it is true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final, TypeAlias

from nodeagent.snapshot.matches import MatchFlags, MatchKind, PathMatch

SEGMENT: Final = "\x1f"
"""Separates the parts of a METADATA name."""


class Attribute(IntEnum):
    """enum na_attribute: what a TextCheck looks at."""

    PRINCIPAL = 0
    """The peer's SPIFFE ID, with its scheme."""
    NAMESPACE = 1
    """Of the peer's SPIFFE ID."""
    SERVICE_ACCOUNT = 2
    """Of the peer's SPIFFE ID, as `namespace/name`."""
    TRUST_DOMAIN = 3
    """Of the peer's SPIFFE ID."""
    HEADER = 4
    """Of the request, by `name`; of several values any. Also :method, :authority, :path, :scheme."""
    PATH = 5
    """Of the request, normalised, without query and fragment."""
    SNI = 6
    METADATA = 7
    """What earlier stages found out: `name` is the filter's name and a path in its values, joined by SEGMENT
    (`envoy.filters.http.jwt_authn␟payload␟iss`). Texts only; of a list, any element."""
    LITERAL = 8
    """The numbers and booleans of METADATA, as in JSON."""


class Place(IntEnum):
    """enum na_place: whose address an AddressCheck looks at."""

    PEER = 0
    """Of the connection (Envoy's direct_remote_ip; Istio's source.ip)."""
    CLIENT = 1
    """The last address in X-Forwarded-For (Envoy's remote_ip without use_remote_address); without one as PEER."""
    DESTINATION = 2


@dataclass(frozen=True, slots=True)
class Always:
    """True."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """True if all are; of none, true."""

    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True if one is; of none, false."""

    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    check: Check


@dataclass(frozen=True, slots=True)
class TextCheck:
    """A match on a text. `template` instead of a kind: `value` is an Envoy URI template (`{*}`, `{**}`)."""

    attribute: Attribute
    kind: MatchKind
    value: str = ""
    name: str = ""
    flags: MatchFlags = MatchFlags.NONE
    template: bool = False


@dataclass(frozen=True, slots=True)
class AddressCheck:
    """An address (16 bytes) is within `address/prefix`; IPv4 is mapped, so that its prefix is 96 bits longer."""

    place: Place
    address: bytes
    prefix: int


@dataclass(frozen=True, slots=True)
class PortCheck:
    """The destination's port is low..high, both included."""

    low: int
    high: int


Check: TypeAlias = Always | AllOf | AnyOf | Not | TextCheck | AddressCheck | PortCheck


@dataclass(frozen=True, slots=True)
class Policy:
    """A named reason to allow or to deny. `name` is what metrics, logs and details tell
    (`ns[default]-policy[allow-get]-rule[0]`)."""

    name: str
    check: Check


class RuleAction(IntEnum):
    """enum na_rule_action, as Envoy's RBAC has them."""

    ALLOW = 0
    """What no policy matches is refused."""
    DENY = 1
    """What a policy matches is refused."""
    LOG = 2
    """Nothing is refused; a match is marked (AUDIT)."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Stage: policies with one action. `shadow`: the outcome is only counted, logged and kept as metadata
    `envoy.filters.http.rbac␟<prefix>shadow_effective_policy_id` (of the policy that matched) and
    `␟<prefix>shadow_engine_result` (`allowed` or `denied`)."""

    action: RuleAction
    policies: tuple[Policy, ...]
    shadow: bool = False
    prefix: str = ""


# -- tokens: Envoy's jwt_authn --


class TokenPlaceKind(IntEnum):
    """enum na_token_place."""

    HEADER = 0
    PARAM = 1
    COOKIE = 2


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """Where a token may be; in a header it follows `prefix` (`Bearer `)."""

    kind: TokenPlaceKind
    name: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of an issuer: SubjectPublicKeyInfo in DER; `algorithm` (`RS256`) and `kid` may be empty: any."""

    kid: str
    algorithm: str
    der: bytes


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """An issuer of tokens. While it has no keys, its tokens are invalid."""

    name: str
    issuer: str
    audiences: tuple[str, ...] = ()
    """One of which the token must have; none: any."""
    keys: tuple[SigningKey, ...] = ()
    places: tuple[TokenPlace, ...] = ()
    forward: bool = False
    """Leave the token in the request."""
    payload_header: str = ""
    """Send the payload, as in the token (base64url), upstream in this header."""
    pad_payload: bool = False
    claim_headers: tuple[tuple[str, str], ...] = ()
    """Claims (nested ones with dots) that are sent upstream, and the headers."""
    metadata_key: str = ""
    """The payload becomes metadata `envoy.filters.http.jwt_authn␟<metadata_key>`; empty: it does not."""
    clock_skew_s: int = 60
    split_claims: tuple[str, ...] = ()
    """Claims that are lists in one text, separated by spaces (`scope`): metadata has their elements."""


@dataclass(frozen=True, slots=True)
class NeedToken:
    """Requirement: a valid token of the provider; `audiences` instead of the provider's own if there are any."""

    provider: str
    audiences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedAny:
    """Requirement: one of these."""

    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class NeedAll:
    """Requirement: all of these."""

    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class AllowMissing:
    """Requirement: no token, or a valid one of any provider; a bad one is refused. `failed`: a bad one may be, too."""

    failed: bool = False


Need: TypeAlias = NeedToken | NeedAny | NeedAll | AllowMissing


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What requests of a path need (None: any path); `need` None: nothing."""

    path: PathMatch | None
    need: Need | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Stage: verify tokens. The first rule whose path matches holds; 401 where its need is not met."""

    providers: tuple[TokenProvider, ...]
    rules: tuple[TokenRule, ...]
    pass_preflight: bool = False
    """CORS preflight requests need no tokens: browsers never send any."""


# -- callouts: Envoy's ext_authz --


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Of header names, without case."""

    kind: MatchKind
    value: str


@dataclass(frozen=True, slots=True)
class Callout:
    """Stage: ask an Envoy ext_authz service (v3), by gRPC or HTTP. Without an answer in time: `status_on_error`, or on
    if `fail_open`."""

    cluster: str
    """A Cluster.name of the view that the workload uses."""
    grpc: bool
    authority: str = ""
    """gRPC: :authority of the call; empty: the cluster's name. By HTTP the Host is the request's own, as with Envoy."""
    timeout_ms: int = 200
    fail_open: bool = False
    mark_open: bool = False
    """What passes without an answer gets the header x-envoy-auth-failure-mode-allowed."""
    status_on_error: int = 403
    when: Check | None = None
    """Ask only if it is true (filter_enabled_metadata)."""
    body_bytes: int = 0
    """Of the body that are sent along; 0 none."""
    body_partial: bool = False
    """A longer body is sent as far as it fits; else 413."""
    body_raw: bool = False
    path_prefix: str = ""
    """HTTP: before the request's path."""
    send: tuple[TextMatch, ...] = ()
    """gRPC: headers that the service is told; none: all. HTTP: besides Host, Method, Path, Content-Length and
    Authorization."""
    hide: tuple[TextMatch, ...] = ()
    """Headers that it is never told."""
    send_extra: tuple[tuple[str, str], ...] = ()
    """HTTP: headers to add to the call."""
    keep: tuple[TextMatch, ...] = ()
    """HTTP: headers of an allowing answer that go upstream, replacing what is there."""
    keep_append: tuple[TextMatch, ...] = ()
    """HTTP: the same, behind what is there; nothing where there is none."""
    keep_metadata: tuple[TextMatch, ...] = ()
    """HTTP: headers of an allowing answer that become metadata `envoy.filters.http.ext_authz␟<name>`."""
    answer: tuple[TextMatch, ...] = ()
    """HTTP: headers of a refusing answer that go to the client; none: all but the hop-by-hop ones."""
    answer_allowed: tuple[TextMatch, ...] = ()
    """HTTP: headers of an allowing answer that go to the client."""
    metadata: tuple[tuple[str, str], ...] = ()
    """gRPC: initial metadata of the call."""


ConnectionStage: TypeAlias = Rules | Callout
RequestStage: TypeAlias = Rules | Tokens | Callout


class Slashes(IntFlag):
    """NA_SLASHES_*: how slashes in paths are read, besides Envoy's normalize_path."""

    AS_SENT = 0
    MERGE = 1
    """Several in a row are one."""
    DECODE = 2
    """%2F and %5C are slashes."""
    REJECT = 4
    """Paths with those are refused."""


@dataclass(frozen=True, slots=True)
class Guards:
    """What is asked at a port: of each connection that is taken for TCP, and of each HTTP request.

    Connections are asked again when the guards change; those that may not be any more are reset. Requests are judged,
    and forwarded, with their path as `slashes` says.
    """

    connection: tuple[ConnectionStage, ...] = field(default=())
    request: tuple[RequestStage, ...] = field(default=())
    slashes: Slashes = Slashes.AS_SENT


OPEN: Final = Guards()
