"""Envoy's jwt_authn filter as a stage that verifies tokens (extensions.filters.http.jwt_authn.v3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.compiler.match import Unmatchable, compile_path
from nodeagent.compiler.report import Report, set_fields
from nodeagent.compiler.signing_keys import read_key_set
from nodeagent.snapshot.policies import (
    AllowMissing,
    Need,
    NeedAll,
    NeedAny,
    NeedToken,
    SigningKey,
    TokenPlace,
    TokenPlaceKind,
    TokenProvider,
    TokenRule,
    Tokens,
)

MAX_PROVIDERS: Final = 64
_CLOCK_SKEW_S: Final = 60
_REFRESH_S: Final = 300.0
_TIMEOUT_S: Final = 5.0
_DEFAULT_PLACES: Final = (
    TokenPlace(TokenPlaceKind.HEADER, "authorization", "Bearer "),
    TokenPlace(TokenPlaceKind.PARAM, "access_token"),
)
# What would let in more if it were passed over.
_RESTRICTIONS: Final = ("subjects", "require_expiration", "max_lifetime")
_WITHOUT_EFFECT: Final = ("header_in_metadata", "failed_status_in_metadata")


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """Where the keys of an issuer are to be fetched from. Times are seconds."""

    uri: str
    cluster: str
    """xDS name of the cluster that serves it."""
    timeout: float
    refresh: float
    """How long what was fetched is used before it is fetched again."""


@dataclass(frozen=True, slots=True)
class TokenStage:
    """The stage, and by provider's name where keys must be fetched."""

    tokens: Tokens
    remote: tuple[tuple[str, RemoteKeys], ...] = ()


def compile_tokens(message: Any, report: Report) -> TokenStage:
    """A JwtAuthentication; Unmatchable for a restriction that cannot be put in force."""
    if message.HasField("filter_state_rules"):
        raise Unmatchable("jwt_authn.filter_state_rules")
    if len(message.providers) > MAX_PROVIDERS:
        raise Unmatchable(f"jwt_authn with {len(message.providers)} providers (over {MAX_PROVIDERS})")
    providers, remote = [], []
    for name in sorted(message.providers):
        raw = message.providers[name]
        place = report.at(f"jwt_authn.providers[{name}]")
        if raw.WhichOneof("jwks_source_specifier") == "remote_jwks":
            remote.append((name, _remote(raw.remote_jwks)))
        providers.append(_provider(name, raw, place))
    rules = tuple(_rule(rule, message) for rule in message.rules)
    tokens = Tokens(tuple(providers), rules, message.bypass_cors_preflight)
    return TokenStage(tokens, tuple(remote))


def _provider(name: str, message: Any, report: Report) -> TokenProvider:
    for field in set_fields(message):
        if field in _RESTRICTIONS:
            raise Unmatchable(f"jwt_authn.providers[{name}].{field}")
        if field in _WITHOUT_EFFECT:
            report.warn(f"{field} is not supported yet and has no effect")
    return TokenProvider(
        name,
        message.issuer,
        tuple(message.audiences),
        _local_keys(message, report),
        tuple(_places(message)) or _DEFAULT_PLACES,
        forward=message.forward,
        payload_header=message.forward_payload_header.lower(),
        pad_payload=message.pad_forward_payload_header,
        claim_headers=tuple((each.claim_name, each.header_name.lower()) for each in message.claim_to_headers),
        metadata_key=message.payload_in_metadata,
        clock_skew_s=message.clock_skew_seconds or _CLOCK_SKEW_S,
        split_claims=tuple(message.normalize_payload_in_metadata.space_delimited_claims),
    )


def _local_keys(message: Any, report: Report) -> tuple[SigningKey, ...]:
    kind = message.WhichOneof("jwks_source_specifier")
    if kind == "remote_jwks":
        return ()
    source = message.local_jwks.WhichOneof("specifier") if kind == "local_jwks" else None
    if source == "inline_string":
        text = message.local_jwks.inline_string
    elif source == "inline_bytes":
        text = message.local_jwks.inline_bytes.decode("utf-8", "replace")
    else:
        report.warn(f"local_jwks.{source or '(none)'} is not supported yet; its tokens are refused")
        return ()
    keys, problems = read_key_set(text)
    for problem in problems:
        report.warn(f"local_jwks: {problem}")
    if not keys and not problems:
        report.warn("local_jwks: no keys; its tokens are refused")
    return keys


def _remote(message: Any) -> RemoteKeys:
    uri = message.http_uri
    timeout = uri.timeout.ToTimedelta().total_seconds() if uri.HasField("timeout") else _TIMEOUT_S
    refresh = _REFRESH_S
    if message.HasField("cache_duration"):
        refresh = message.cache_duration.ToTimedelta().total_seconds()
    return RemoteKeys(uri.uri, uri.cluster, timeout, refresh)


def _places(message: Any) -> Iterator[TokenPlace]:
    for header in message.from_headers:
        yield TokenPlace(TokenPlaceKind.HEADER, header.name.lower(), header.value_prefix)
    for parameter in message.from_params:
        yield TokenPlace(TokenPlaceKind.PARAM, parameter)
    for cookie in message.from_cookies:
        yield TokenPlace(TokenPlaceKind.COOKIE, cookie)


def _rule(rule: Any, message: Any) -> TokenRule:
    for field in set_fields(rule.match):
        if field in (
            "headers",
            "query_parameters",
            "grpc",
            "runtime_fraction",
            "tls_context",
            "dynamic_metadata",
        ):
            raise Unmatchable(f"jwt_authn.rules.match.{field}")
    path = compile_path(rule.match)
    kind = rule.WhichOneof("requirement_type")
    if kind is None:
        return TokenRule(path, None)
    if kind == "requires":
        return TokenRule(path, _need(rule.requires, message))
    if rule.requirement_name not in message.requirement_map:
        raise ValueError(f"jwt_authn: requirement {rule.requirement_name!r} is not in requirement_map")
    return TokenRule(path, _need(message.requirement_map[rule.requirement_name], message))


def _need(requirement: Any, message: Any) -> Need | None:
    """A JwtRequirement; one that is empty needs nothing."""
    kind = requirement.WhichOneof("requires_type")
    if kind is None:
        return None
    value = getattr(requirement, kind)
    if kind == "provider_name":
        return NeedToken(_known(value, message))
    if kind == "provider_and_audiences":
        return NeedToken(_known(value.provider_name, message), tuple(value.audiences))
    if kind == "requires_any":
        return NeedAny(tuple(_needs(value.requirements, message)))
    if kind == "requires_all":
        return NeedAll(tuple(_needs(value.requirements, message)))
    if kind in ("allow_missing", "allow_missing_or_failed"):
        return AllowMissing(failed=kind == "allow_missing_or_failed")
    raise Unmatchable(f"jwt_authn requirement {kind}")


def _needs(requirements: Iterable[Any], message: Any) -> Iterator[Need]:
    for requirement in requirements:
        need = _need(requirement, message)
        if need is None:
            raise Unmatchable("jwt_authn requirement (an empty one among others)")
        yield need


def _known(provider: str, message: Any) -> str:
    if provider not in message.providers:
        raise ValueError(f"jwt_authn: provider {provider!r} is not there")
    return provider
