"""RequestAuthentication to Envoy's jwt_authn filter, as istiod writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2
from google.protobuf.empty_pb2 import Empty

from nodeagent.controlplane.istio.security_values import JwtRule
from nodeagent.controlplane.translate.rbac import JWT_PAYLOAD

Requirement: TypeAlias = config_pb2.JwtRequirement
# Claims that hold a list in one text, besides those that a rule names (Istio).
_SPACE_DELIMITED: Final = frozenset({"permission", "scope"})


def jwt_filter(
    rules: Sequence[JwtRule], keys: Callable[[JwtRule], str]
) -> config_pb2.JwtAuthentication | None:
    """The filter for rules in order of issuer; None if there are none. `keys` gives the key set of a rule.

    No token passes; a token must be good. Several rules: all tokens that are there must be good, or one is, since
    rules may look for theirs in the same place.
    """
    if not rules:
        return None
    found = config_pb2.JwtAuthentication(bypass_cors_preflight=True)
    named = [f"origins-{index}" for index in range(len(rules))]
    for name, rule in zip(named, rules, strict=True):
        found.providers[name].CopyFrom(_provider(rule, keys(rule)))
    one_each = [_any(Requirement(provider_name=name), _missing()) for name in named]
    both = one_each[0]
    if len(rules) > 1:
        all_of = config_pb2.JwtRequirementAndList(requirements=one_each)
        good = [Requirement(provider_name=name) for name in named]
        both = _any(*good, Requirement(requires_all=all_of))
    requirement = found.rules.add(requires=both)
    requirement.match.prefix = "/"
    return found


def _missing() -> Requirement:
    return Requirement(allow_missing=Empty())


def _any(*requirements: Requirement) -> Requirement:
    return Requirement(requires_any=config_pb2.JwtRequirementOrList(requirements=requirements))


def _provider(rule: JwtRule, keys: str) -> config_pb2.JwtProvider:
    found = config_pb2.JwtProvider(
        issuer=rule.issuer,
        audiences=rule.audiences,
        forward=rule.forward,
        forward_payload_header=rule.payload_header,
        payload_in_metadata=JWT_PAYLOAD,
        from_params=rule.from_params,
        from_cookies=rule.from_cookies,
    )
    found.local_jwks.inline_string = keys
    delimited = sorted(_SPACE_DELIMITED.union(rule.space_delimited))
    found.normalize_payload_in_metadata.space_delimited_claims.extend(delimited)
    for name, prefix in rule.from_headers:
        found.from_headers.add(name=name, value_prefix=prefix)
    for header, claim in rule.claim_headers:
        found.claim_to_headers.add(header_name=header, claim_name=claim)
    return found
