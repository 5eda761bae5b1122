"""Decoding of PeerAuthentication and RequestAuthentication (security.istio.io v1, v1beta1), strict."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio.authorization_checks import is_header
from nodeagent.controlplane.istio.key_sets import KeySetError, is_url, public_key_set
from nodeagent.controlplane.istio.security_values import (
    JwtRule,
    MtlsMode,
    PeerAuthentication,
    RequestAuthentication,
)
from nodeagent.controlplane.istio.selection import common
from nodeagent.controlplane.kubernetes.metadata import read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.sources.base import RawObject

_MODES: Final = ("UNSET", *(mode.value for mode in MtlsMode))


def decode_peer_authentication(
    raw: RawObject, problems: Problems, scope: MeshScope
) -> PeerAuthentication | None:
    """A PeerAuthentication; what is wrong is in `problems`."""
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind", "status")
        read_metadata(top)
        spec = top.message("spec") or Fields({}, "spec", problems)
        with spec:
            found = PeerAuthentication(
                **common(raw, spec, scope.root_namespace, attachable=False),
                mode=_mode(spec.message("mtls")),
                ports=_ports(spec),
            )
            if found.ports and not found.selector:
                spec.error("portLevelMtls", "ports are those of certain pods: give a selector, too")
            if found.selector and found.namespace == scope.root_namespace:
                message = "a policy with a selector has no effect in the root namespace"
                problems.add(Severity.WARNING, "IST0167", spec.at("selector"), message)
    return found


def _mode(fields: Fields | None) -> MtlsMode | None:
    if fields is None:
        return None
    with fields:
        text = fields.choice("mode", _MODES, "UNSET")
    return None if text == "UNSET" else MtlsMode(text)


def _ports(spec: Fields) -> dict[int, MtlsMode | None]:
    found = {}
    for key, nested in spec.message_map("portLevelMtls"):
        if not (key.isascii() and key.isdecimal() and 1 <= int(key) <= 65535):
            spec.problems.error(nested.path, f"{key!r} is not a port; it must be between 1 and 65535")
            nested.ignore_rest()
            continue
        found[int(key)] = _mode(nested)
    return found


def decode_request_authentication(
    raw: RawObject, problems: Problems, scope: MeshScope
) -> RequestAuthentication | None:
    """A RequestAuthentication; what is wrong is in `problems`."""
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind", "status")
        read_metadata(top)
        spec = top.message("spec") or Fields({}, "spec", problems)
        with spec:
            return RequestAuthentication(
                **common(raw, spec, scope.root_namespace),
                rules=tuple(_jwt_rule(item) for item in spec.messages("jwtRules")),
            )


def _jwt_rule(fields: Fields) -> JwtRule:
    with fields:
        uri_field = "jwks_uri" if fields.has("jwks_uri") else "jwksUri"
        fields.ignore("jwks_uri", "jwksUri")
        rule = JwtRule(
            issuer=fields.string("issuer"),
            audiences=_names(fields, "audiences"),
            keys=_keys(fields),
            keys_uri=fields.string(uri_field),
            from_headers=tuple(_from_header(item) for item in fields.messages("fromHeaders")),
            from_params=_names(fields, "fromParams"),
            from_cookies=_names(fields, "fromCookies"),
            payload_header=_header(fields, "outputPayloadToHeader"),
            claim_headers=tuple(_claim_header(item) for item in fields.messages("outputClaimToHeaders")),
            forward=fields.boolean("forwardOriginalToken"),
            timeout=fields.duration("timeout", at_least=timedelta(milliseconds=1)),
            space_delimited=_names(fields, "spaceDelimitedClaims"),
        )
    _check_source(fields, rule, uri_field)
    return rule


def _check_source(fields: Fields, rule: JwtRule, uri_field: str) -> None:
    """Where the keys of a rule come from."""
    if not rule.issuer and not rule.keys_uri:
        fields.error("issuer", "required, but missing (or give jwksUri)", "missing-field")
    elif rule.keys and rule.keys_uri:
        message = "jwks is given, too; it is used, and nothing is fetched"
        fields.problems.add(Severity.WARNING, "ambiguous", fields.at(uri_field), message)
    elif rule.keys_uri and not is_url(rule.keys_uri):
        fields.error(uri_field, f"{rule.keys_uri!r} is not an http or https URL")
    elif not fields.has("jwks") and not rule.keys_uri and not is_url(rule.issuer):
        message = (
            f"{rule.issuer!r} is no URL whose keys could be discovered; give jwks or jwksUri. "
            "Until then its tokens are refused"
        )
        fields.problems.add(Severity.WARNING, "no-keys", fields.at("issuer"), message)


def _keys(fields: Fields) -> str:
    text = fields.string("jwks")
    if not text:
        return ""
    try:
        return public_key_set(text)
    except KeySetError as error:
        fields.error("jwks", str(error))
        return ""


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    values = fields.strings(name)
    for index, value in enumerate(values):
        if not value:
            fields.problems.error(f"{fields.at(name)}[{index}]", "must not be empty")
    return values


def _header(fields: Fields, name: str, *, required: bool = False) -> str:
    value = fields.string(name, required=required)
    if value and (value.startswith(":") or not is_header(value)):
        fields.error(name, f"{value!r} is not a header name")
    return value


def _from_header(fields: Fields) -> tuple[str, str]:
    with fields:
        return _header(fields, "name", required=True), fields.string("prefix")


def _claim_header(fields: Fields) -> tuple[str, str]:
    with fields:
        return _header(fields, "header", required=True), fields.string("claim", required=True)
