"""Envoy's RBAC filters as stages of rules: Permission and Principal trees become checks.

Envoy: config.rbac.v3, extensions.filters.{http,network}.rbac.v3. Policies are asked in the order of their names. What
cannot be told here raises Unmatchable, for a rule that is left out may be the one that denies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from nodeagent.compiler.authorization import NEVER, address_check
from nodeagent.compiler.match import Unmatchable, compile_header, string_match
from nodeagent.compiler.report import Report
from nodeagent.snapshot.address import V4_PREFIX, parse_address
from nodeagent.snapshot.matches import MatchFlags, MatchKind, NamedMatch
from nodeagent.snapshot.policies import (
    SEGMENT,
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
    Check,
    Not,
    Place,
    Policy,
    PortCheck,
    RuleAction,
    Rules,
    TextCheck,
)

DRY_RUN: Final = "istio_dry_run_"
"""Prefix of istiod's shadow rules that nothing depends on."""
# Where Envoy's network filter tells what its shadow rules found, and where the engine does so for both.
_NETWORK_METADATA: Final = "envoy.filters.network.rbac"
_RULES_METADATA: Final = "envoy.filters.http.rbac"
_PEER_PRINCIPAL: Final = "io.istio.peer_principal"
_TEMPLATE: Final = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_DYNAMIC: Final = 0  # MetadataSource


def compile_http_rbac(message: Any, report: Report) -> tuple[Rules, ...]:
    """The stages of an HTTP RBAC filter: its shadow rules, then its rules."""
    return _stages(message, report, is_http=True)


def compile_network_rbac(message: Any, report: Report) -> tuple[Rules, ...]:
    """The stages of a network RBAC filter. What it asks of a request is never true of a connection."""
    return _stages(message, report, is_http=False)


def _stages(message: Any, report: Report, *, is_http: bool) -> tuple[Rules, ...]:
    if message.HasField("matcher"):
        raise Unmatchable("rbac.matcher (a matching tree)")
    return (*_shadow(message, report, is_http), *_enforced(message, is_http))


def _enforced(message: Any, is_http: bool) -> Iterable[Rules]:
    if message.HasField("rules"):
        yield _rules(message.rules, is_http)


def _shadow(message: Any, report: Report, is_http: bool) -> Iterable[Rules]:
    prefix = message.shadow_rules_stat_prefix
    try:
        if message.HasField("shadow_matcher"):
            raise Unmatchable("rbac.shadow_matcher (a matching tree)")
        if message.HasField("shadow_rules"):
            yield _rules(message.shadow_rules, is_http, shadow=True, prefix=prefix)
    except Unmatchable as error:
        if prefix and not prefix.startswith(DRY_RUN):
            raise  # A callout may depend on what they find.
        report.warn(f"{error} is not supported yet; these shadow rules have no effect")


def _rules(message: Any, is_http: bool, *, shadow: bool = False, prefix: str = "") -> Rules:
    action = RuleAction(message.action)  # ALLOW, DENY and LOG have Envoy's numbers
    policies = tuple(
        Policy(name, _policy(message.policies[name], is_http)) for name in sorted(message.policies)
    )
    return Rules(action, policies, shadow, prefix)


def _policy(message: Any, is_http: bool) -> Check:
    if message.HasField("condition") or message.HasField("checked_condition"):
        raise Unmatchable("rbac.policies.condition (CEL)")
    permissions = any_of(_permission(each, is_http) for each in message.permissions)
    principals = any_of(_principal(each, is_http) for each in message.principals)
    return all_of((permissions, principals))


def all_of(checks: Iterable[Check]) -> Check:
    """All of some checks, in the least form."""
    found = tuple(check for check in checks if check != Always())
    return found[0] if len(found) == 1 else AllOf(found) if found else Always()


def any_of(checks: Iterable[Check]) -> Check:
    """Any of some checks, in the least form."""
    found = tuple(checks)
    if Always() in found:
        return Always()
    return found[0] if len(found) == 1 else AnyOf(found)


def _permission(message: Any, is_http: bool) -> Check:
    kind = message.WhichOneof("rule")
    value: Any = getattr(message, kind) if kind else None
    if kind == "and_rules":
        return all_of(_permission(each, is_http) for each in value.rules)
    if kind == "or_rules":
        return any_of(_permission(each, is_http) for each in value.rules)
    if kind == "not_rule":
        return _not(_permission(value, is_http))
    if kind in _PERMISSIONS:
        return _PERMISSIONS[kind](value)
    return _common(kind, value, is_http)


def _principal(message: Any, is_http: bool) -> Check:
    kind = message.WhichOneof("identifier")
    value: Any = getattr(message, kind) if kind else None
    if kind == "and_ids":
        return all_of(_principal(each, is_http) for each in value.ids)
    if kind == "or_ids":
        return any_of(_principal(each, is_http) for each in value.ids)
    if kind == "not_id":
        return _not(_principal(value, is_http))
    if kind == "remote_ip" and is_http:
        return _CLIENT(value)
    if kind in _PRINCIPALS:
        return _PRINCIPALS[kind](value)
    return _common(kind, value, is_http)


def _common(kind: str | None, value: Any, is_http: bool) -> Check:
    """What permissions and principals have in common."""
    if kind == "any":
        return Always() if value else NEVER
    if kind == "metadata":
        return metadata_check(value)
    if kind == "sourced_metadata":
        if value.metadata_source != _DYNAMIC:
            raise Unmatchable("rbac metadata of routes")
        return metadata_check(value.metadata_matcher)
    if kind in ("header", "url_path", "uri_template"):
        check = _REQUEST[kind](value)
        return check if is_http else NEVER
    raise Unmatchable(f"rbac {kind or '(an empty permission or principal)'}")


def _not(check: Check) -> Check:
    return check.check if isinstance(check, Not) else Not(check)


def asks_client(check: Check) -> bool:
    """Whether a check looks at the address that X-Forwarded-For tells."""
    match check:
        case AddressCheck(place):
            return place is Place.CLIENT
        case AllOf(checks) | AnyOf(checks):
            return any(map(asks_client, checks))
        case Not(inner):
            return asks_client(inner)
    return False


def text_check(attribute: Attribute, string: Any, where: str, name: str = "") -> TextCheck:
    """A StringMatcher on an attribute."""
    match = string_match(where, string, MatchFlags.NONE, where)
    return TextCheck(attribute, match.kind, match.value, name, match.flags)


def _header(message: Any) -> Check:
    match: NamedMatch = compile_header(message)
    name = ":authority" if match.name == "host" else match.name
    return TextCheck(Attribute.HEADER, match.kind, match.value, name, match.flags)


def _path(message: Any) -> Check:
    if message.WhichOneof("rule") != "path":
        raise Unmatchable("rbac url_path (an empty matcher)")
    return text_check(Attribute.PATH, message.path, "path")


def _template(message: Any) -> Check:
    from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2

    if not message.typed_config.type_url.endswith(_TEMPLATE):
        raise Unmatchable(f"rbac path template of type {message.typed_config.type_url or '(none)'}")
    config = uri_template_match_pb2.UriTemplateMatchConfig.FromString(message.typed_config.value)
    return TextCheck(Attribute.PATH, MatchKind.EXACT, config.path_template, template=True)


def _range(place: Place) -> Callable[[Any], Check]:
    def read(message: Any) -> Check:
        address = parse_address(message.address_prefix)
        raw = address if ":" in message.address_prefix else address[len(V4_PREFIX) :]
        # Unset means 0 (CidrRange.prefix_len): all addresses of the family.
        return address_check(place, raw, message.prefix_len.value)

    return read


def _ports(message: Any) -> Check:
    """Int32Range: the end is excluded."""
    low, high = max(message.start, 0), min(message.end, 65536) - 1
    return PortCheck(low, high) if low <= high else NEVER


def _authenticated(message: Any) -> Check:
    if not message.HasField("principal_name"):
        return TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT)
    return text_check(Attribute.PRINCIPAL, message.principal_name, "principal_name")


def _filter_state(message: Any) -> Check:
    """istiod's word for the principal, where a waypoint learns it of a tunnel."""
    if message.key != _PEER_PRINCIPAL or message.WhichOneof("matcher") != "string_match":
        raise Unmatchable(f"rbac filter state {message.key!r}")
    return text_check(Attribute.PRINCIPAL, message.string_match, message.key)


def metadata_check(message: Any) -> Check:
    """A MetadataMatcher, on what earlier stages found out."""
    filter_name = _RULES_METADATA if message.filter == _NETWORK_METADATA else message.filter
    name = SEGMENT.join((filter_name, *(segment.key for segment in message.path)))
    check = _value(name, message.value)
    return _not(check) if message.invert else check


def _value(name: str, message: Any) -> Check:
    """A ValueMatcher. A list is there as its elements, so that a match on one of them needs no more; numbers and
    booleans are no texts: those that look like one do not match it."""
    kind = message.WhichOneof("match_pattern")
    if kind == "string_match":
        return text_check(Attribute.METADATA, message.string_match, f"metadata {name}", name)
    if kind == "present_match":
        kinds = (Attribute.METADATA, Attribute.LITERAL)
        check = any_of(TextCheck(kind, MatchKind.PRESENT, name=name) for kind in kinds)
        return check if message.present_match else Not(check)
    if kind == "bool_match":
        text = "true" if message.bool_match else "false"
        return TextCheck(Attribute.LITERAL, MatchKind.EXACT, text, name)
    if kind == "list_match" and message.list_match.WhichOneof("match_pattern") == "one_of":
        return _value(name, message.list_match.one_of)
    if kind == "or_match":
        return any_of(dict.fromkeys(_value(name, each) for each in message.or_match.value_matchers))
    if kind == "double_match" and message.double_match.WhichOneof("match_pattern") == "exact":
        exact = message.double_match.exact
        text = str(int(exact)) if exact == int(exact) else repr(exact)
        return TextCheck(Attribute.LITERAL, MatchKind.EXACT, text, name)
    raise Unmatchable(f"rbac metadata {name.replace(SEGMENT, '.')}: {kind or '(an empty matcher)'}")


def _port(port: int) -> Check:
    return PortCheck(port, port)


def _server_name(message: Any) -> Check:
    return text_check(Attribute.SNI, message, "requested_server_name")


_REQUEST: Final[dict[str | None, Callable[[Any], Check]]] = {
    "header": _header,
    "url_path": _path,
    "uri_template": _template,
}
_PERMISSIONS: Final[dict[str | None, Callable[[Any], Check]]] = {
    "destination_ip": _range(Place.DESTINATION),
    "destination_port": _port,
    "destination_port_range": _ports,
    "requested_server_name": _server_name,
}
_CLIENT: Final = _range(Place.CLIENT)
_PRINCIPALS: Final[dict[str | None, Callable[[Any], Check]]] = {
    "authenticated": _authenticated,
    # source_ip honours the PROXY protocol, which no captured connection speaks.
    "source_ip": _range(Place.PEER),
    "direct_remote_ip": _range(Place.PEER),
    "remote_ip": _range(Place.PEER),
    "filter_state": _filter_state,
}
