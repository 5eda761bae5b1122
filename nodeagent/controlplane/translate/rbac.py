"""Rules of AuthorizationPolicies to Envoy's RBAC policies, as istiod writes them for sidecars."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, TypeVar

from envoy.config.core.v3 import address_pb2, extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2
from envoy.type.matcher.v3 import metadata_pb2, path_pb2, string_pb2, value_pb2

from nodeagent.controlplane.istio.authorization_checks import is_template
from nodeagent.controlplane.istio.security_values import Attribute, Condition, Rule
from nodeagent.controlplane.istio.trust import TrustBundle
from nodeagent.controlplane.translate.packing import pack

Permission: TypeAlias = rbac_pb2.Permission
Principal: TypeAlias = rbac_pb2.Principal
StringMatcher: TypeAlias = string_pb2.StringMatcher
ValueMatcher: TypeAlias = value_pb2.ValueMatcher
T = TypeVar("T")

JWT_FILTER: Final = "envoy.filters.http.jwt_authn"
JWT_PAYLOAD: Final = "payload"
"""Key of the metadata where a token's claims are (Istio)."""
_SPIFFE: Final = "spiffe://"
_SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")


class NotForTcp(Exception):
    """A rule needs an HTTP request, and the chain has none."""


def rbac_policy(rule: Rule, trust: TrustBundle, *, tcp: bool, widen: bool) -> rbac_pb2.Policy:
    """A rule as an RBAC policy: one of its permissions and one of its principals must match.

    On a `tcp` chain conditions on HTTP are left out where that makes the rule wider and that is what is wanted
    (`widen`: DENY, AUDIT, CUSTOM); else NotForTcp.
    """
    if tcp and not widen and any(condition.attribute.is_http for condition in rule.conditions()):
        raise NotForTcp
    about_source = tuple(item for item in rule.when if item.attribute.is_source)
    about_target = tuple(item for item in rule.when if not item.attribute.is_source)
    return rbac_pb2.Policy(
        permissions=[
            _permission((*operation, *about_target), trust, tcp) for operation in rule.operations or ((),)
        ],
        principals=[_principal((*source, *about_source), trust, tcp) for source in rule.sources or ((),)],
    )


def never() -> rbac_pb2.Policy:
    """Matches nothing."""
    return rbac_pb2.Policy(
        permissions=[Permission(not_rule=Permission(any=True))],
        principals=[Principal(not_id=Principal(any=True))],
    )


# -- permissions: what is asked for --


def _permission(conditions: Iterable[Condition], trust: TrustBundle, tcp: bool) -> Permission:
    found: list[Permission] = []
    for item in _in_force(conditions, tcp):
        if item.values:
            found.append(_any_permission(item, item.values))
        if item.excluded:
            found.append(Permission(not_rule=_any_permission(item, item.excluded)))
    del trust
    return Permission(and_rules=Permission.Set(rules=found or [Permission(any=True)]))


def _in_force(conditions: Iterable[Condition], tcp: bool) -> Iterable[Condition]:
    return (item for item in conditions if not (tcp and item.attribute.is_http))


def _any_permission(condition: Condition, values: tuple[str, ...]) -> Permission:
    if condition.attribute is Attribute.ENVOY_METADATA:
        name, key = condition.path
        matchers = [_metadata_value(value) for value in values]
        return Permission(metadata=_metadata(name, (key,), _any_of(matchers)))
    make = _PERMISSIONS[condition.attribute]
    return Permission(or_rules=Permission.Set(rules=[make(value) for value in values]))


def _path(value: str) -> Permission:
    if not is_template(value):
        return Permission(url_path=path_pb2.PathMatcher(path=text_matcher(value)))
    template = value.replace("{**}", "**").replace("{*}", "*")
    config = pack(uri_template_match_pb2.UriTemplateMatchConfig(path_template=template))
    return Permission(
        uri_template=extension_pb2.TypedExtensionConfig(name="uri-template", typed_config=config)
    )


_PERMISSIONS: Final[dict[Attribute, Callable[[str], Permission]]] = {
    Attribute.DESTINATION_IP: lambda value: Permission(destination_ip=cidr(value)),
    Attribute.DESTINATION_PORT: lambda value: Permission(destination_port=int(value)),
    Attribute.SNI: lambda value: Permission(requested_server_name=text_matcher(value)),
    Attribute.HOST: lambda value: Permission(header=_header(":authority", value, ignore_case=True)),
    Attribute.METHOD: lambda value: Permission(header=_header(":method", value)),
    Attribute.PATH: _path,
}


# -- principals: who asks --


def _principal(conditions: Iterable[Condition], trust: TrustBundle, tcp: bool) -> Principal:
    found: list[Principal] = []
    for item in _in_force(conditions, tcp):
        if item.values:
            found.append(_any_principal(item, item.values, trust))
        if item.excluded:
            found.append(Principal(not_id=_any_principal(item, item.excluded, trust)))
    return Principal(and_ids=Principal.Set(ids=found or [Principal(any=True)]))


def _any_principal(condition: Condition, values: tuple[str, ...], trust: TrustBundle) -> Principal:
    match condition.attribute:
        case Attribute.PRINCIPAL:
            values = trust.principals(values)
        case Attribute.TRUST_DOMAIN:
            values = trust.trust_domains(values)
        case Attribute.REQUEST_PRINCIPAL:
            return _or_principals([_request_principal(value) for value in values])
        case Attribute.AUDIENCES:
            return Principal(metadata=_claim(("aud",), values))
        case Attribute.PRESENTER:
            return Principal(metadata=_claim(("azp",), values))
        case Attribute.CLAIMS:
            return Principal(metadata=_claim(condition.path, values))
        case Attribute.HEADERS:
            headers = [Principal(header=_header(condition.path[0], value)) for value in values]
            return Principal(or_ids=Principal.Set(ids=headers))
    make = _PRINCIPALS[condition.attribute]
    return Principal(or_ids=Principal.Set(ids=[make(value) for value in values]))


def _or_principals(found: list[Principal]) -> Principal:
    return found[0] if len(found) == 1 else Principal(or_ids=Principal.Set(ids=found))


def _authenticated(name: StringMatcher) -> Principal:
    return Principal(authenticated=Principal.Authenticated(principal_name=name))


def _spiffe(value: str) -> Principal:
    if value == "*":
        return _authenticated(regex(".+"))
    if value.startswith("*"):
        return _authenticated(regex(f"{_SPIFFE}.*{_quoted(value[1:])}"))
    return _authenticated(text_matcher(_SPIFFE + value))


def _namespace(value: str) -> Principal:
    pattern = ".*".join(_quoted(part) for part in value.split("*"))
    return _authenticated(regex(f".*/ns/{pattern}/.*"))


def _service_account(value: str) -> Principal:
    namespace, _, name = value.partition("/")
    return _authenticated(regex(f"{_SPIFFE}.+/ns/{_quoted(namespace)}/(.+/|)sa/{_quoted(name)}(/.+)?"))


def _trust_domain(value: str) -> Principal:
    if value == "*":
        return _authenticated(StringMatcher(prefix=_SPIFFE))
    if "*" not in value:
        return _authenticated(StringMatcher(prefix=f"{_SPIFFE}{value}/"))
    first, _, last = value.partition("*")
    return _authenticated(regex(f"{_SPIFFE}{_quoted(first)}[^/]*{_quoted(last)}/.*"))


_PRINCIPALS: Final[dict[Attribute, Callable[[str], Principal]]] = {
    Attribute.SOURCE_IP: lambda value: Principal(direct_remote_ip=cidr(value)),
    Attribute.REMOTE_IP: lambda value: Principal(remote_ip=cidr(value)),
    Attribute.PRINCIPAL: _spiffe,
    Attribute.NAMESPACE: _namespace,
    Attribute.SERVICE_ACCOUNT: _service_account,
    Attribute.TRUST_DOMAIN: _trust_domain,
}


def _request_principal(value: str) -> Principal:
    """`ISSUER/SUBJECT`, where the issuer may be a URL, with a wildcard at one end."""
    issuer, subject = _request_principal_parts(value)
    both = [
        Principal(metadata=_metadata(JWT_FILTER, (JWT_PAYLOAD, claim), ValueMatcher(string_match=matcher)))
        for claim, matcher in (("iss", issuer), ("sub", subject))
    ]
    return Principal(and_ids=Principal.Set(ids=both))


def _request_principal_parts(value: str) -> tuple[StringMatcher, StringMatcher]:
    """What issuer and subject must be. Without a slash a wildcard stands for all of the other part."""
    issuer, slash, subject = value.rpartition("/")
    if value.startswith("*"):
        if not slash:
            return text_matcher("*"), text_matcher(value)
        return text_matcher(issuer), text_matcher("*") if subject == "*" else StringMatcher(exact=subject)
    if value.endswith("*"):
        if not slash:
            return text_matcher(value), text_matcher("*")
        return StringMatcher(exact=issuer), text_matcher(subject)
    return StringMatcher(exact=issuer if slash else value), StringMatcher(exact=subject if slash else "")


def _claim(path: tuple[str, ...], values: Iterable[str]) -> metadata_pb2.MetadataMatcher:
    """A claim, or one element of it where it is a list, is one of the values."""
    wanted = _any_of([ValueMatcher(string_match=text_matcher(value)) for value in values])
    element = ValueMatcher(list_match=value_pb2.ListMatcher(one_of=wanted))
    either = ValueMatcher(or_match=value_pb2.OrMatcher(value_matchers=[element, wanted]))
    return _metadata(JWT_FILTER, (JWT_PAYLOAD, *path), either)


# -- pieces --


def _any_of(matchers: list[ValueMatcher]) -> ValueMatcher:
    if len(matchers) == 1:
        return matchers[0]
    return ValueMatcher(or_match=value_pb2.OrMatcher(value_matchers=matchers))


def _metadata(name: str, path: Iterable[str], value: ValueMatcher) -> metadata_pb2.MetadataMatcher:
    segments = [metadata_pb2.MetadataMatcher.PathSegment(key=key) for key in path]
    return metadata_pb2.MetadataMatcher(filter=name, path=segments, value=value)


def _metadata_value(value: str) -> ValueMatcher:
    """A value of metadata; in brackets: an element of a list."""
    if value.startswith("[") and value.endswith("]"):
        element = ValueMatcher(string_match=text_matcher(value.strip("[]")))
        return ValueMatcher(list_match=value_pb2.ListMatcher(one_of=element))
    return ValueMatcher(string_match=text_matcher(value))


def _quoted(text: str) -> str:
    """The text as a regular expression that matches just it."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def regex(pattern: str) -> StringMatcher:
    """A match of all of a text by a regular expression."""
    found = StringMatcher()
    found.safe_regex.regex = pattern
    return found


def text_matcher(value: str, *, ignore_case: bool = False) -> StringMatcher:
    """Istio's strings: exact, `prefix*`, `*suffix`, or `*` for anything but the empty text."""
    if value == "*":
        return regex(".+")
    if value.startswith("*"):
        return StringMatcher(suffix=value[1:], ignore_case=ignore_case)
    if value.endswith("*"):
        return StringMatcher(prefix=value[:-1], ignore_case=ignore_case)
    return StringMatcher(exact=value, ignore_case=ignore_case)


def _header(name: str, value: str, *, ignore_case: bool = False) -> Any:
    if value == "*":
        return route_components_pb2.HeaderMatcher(name=name, present_match=True)
    matcher = text_matcher(value, ignore_case=ignore_case)
    return route_components_pb2.HeaderMatcher(name=name, string_match=matcher)


def cidr(value: str) -> address_pb2.CidrRange:
    """An address or subnet."""
    network = ipaddress.ip_network(value, strict=False)
    found = address_pb2.CidrRange(address_prefix=str(network.network_address))
    found.prefix_len.value = network.prefixlen
    return found
