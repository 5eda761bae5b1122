"""Envoy's ext_authz filters as stages that ask somebody else (extensions.filters.{http,network}.ext_authz.v3)."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.compiler.match import Unmatchable, string_match
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.rbac import metadata_check
from nodeagent.compiler.report import Report, set_fields
from nodeagent.snapshot.matches import MatchFlags, MatchKind
from nodeagent.snapshot.policies import Callout, Check, TextMatch

_DEFAULT_TIMEOUT_MS: Final = 200
_FORBIDDEN: Final = 403
_MAX_BODY: Final = 1 << 20  # NA_MAX_CALLOUT_BODY
_HUNDRED_PERCENT: Final = {0: 100, 1: 10_000, 2: 1_000_000}  # FractionalPercent.DenominatorType
_WITHOUT_EFFECT: Final = (
    "filter_enabled", "deny_at_disable", "include_tls_session", "include_peer_certificate",
    "metadata_context_namespaces", "typed_metadata_context_namespaces", "route_metadata_context_namespaces",
    "route_typed_metadata_context_namespaces", "validate_mutations", "decoder_header_mutation_rules",
    "filter_metadata", "enable_dynamic_metadata_ingestion",
)  # fmt: skip


def compile_http_callout(message: Any, scope: Scope, report: Report) -> tuple[Callout, str]:
    """An HTTP ext_authz filter, and the xDS name of the cluster that it asks."""
    _note_unsupported(message, report)
    kind = message.WhichOneof("services")
    if kind == "grpc_service":
        return _grpc(message.grpc_service, _common(message, report), scope)
    if kind == "http_service":
        return _http(message, _common(message, report), scope)
    raise Unmatchable("ext_authz without a service")


def compile_network_callout(message: Any, scope: Scope, report: Report) -> tuple[Callout, str]:
    """A network ext_authz filter, likewise."""
    _note_unsupported(message, report)
    common = {"fail_open": message.failure_mode_allow, "when": _condition(message)}
    return _grpc(message.grpc_service, common, scope)


def _note_unsupported(message: Any, report: Report) -> None:
    for field in set_fields(message):
        if field not in _WITHOUT_EFFECT:
            continue
        if field != "filter_enabled" or not _always(message.filter_enabled.default_value):
            # None of them makes the answer less strict: at most more requests are asked for than were meant.
            report.warn(f"ext_authz.{field} is not supported yet and has no effect")


def _always(percent: Any) -> bool:
    return int(percent.numerator) >= _HUNDRED_PERCENT[percent.denominator]


def _common(message: Any, report: Report) -> dict[str, Any]:
    """What calls by gRPC and by HTTP have in common."""
    body = message.with_request_body
    if body.max_request_bytes > _MAX_BODY:
        report.warn(
            f"ext_authz.with_request_body.max_request_bytes {body.max_request_bytes}: {_MAX_BODY} at most"
        )
    return {
        "fail_open": message.failure_mode_allow,
        "mark_open": message.failure_mode_allow_header_add,
        "status_on_error": int(message.status_on_error.code) or _FORBIDDEN,
        "when": _condition(message),
        "body_bytes": min(body.max_request_bytes, _MAX_BODY),
        "body_partial": body.allow_partial_message,
        "body_raw": body.pack_as_bytes,
        "send": _names(message.allowed_headers),
        "hide": _names(message.disallowed_headers),
    }


def _condition(message: Any) -> Check | None:
    if not message.HasField("filter_enabled_metadata"):
        return None
    return metadata_check(message.filter_enabled_metadata)


def _grpc(service: Any, common: dict[str, Any], scope: Scope) -> tuple[Callout, str]:
    kind = service.WhichOneof("target_specifier")
    if kind != "envoy_grpc":
        raise Unmatchable(f"ext_authz grpc_service.{kind or '(without target)'}")
    cluster = service.envoy_grpc.cluster_name
    metadata = tuple((each.key.lower(), each.value) for each in service.initial_metadata)
    callout = Callout(
        scope.name(cluster),
        grpc=True,
        authority=service.envoy_grpc.authority,
        timeout_ms=_milliseconds(service),
        metadata=metadata,
        **common,
    )
    return callout, str(cluster)


def _http(message: Any, common: dict[str, Any], scope: Scope) -> tuple[Callout, str]:
    service = message.http_service
    request, response = service.authorization_request, service.authorization_response
    cluster = service.server_uri.cluster
    common["send"] = (*common["send"], *_names(request.allowed_headers))
    callout = Callout(
        scope.name(cluster),
        grpc=False,
        timeout_ms=_milliseconds(service.server_uri),
        path_prefix=service.path_prefix,
        send_extra=tuple((each.key.lower(), each.value) for each in request.headers_to_add),
        keep=_names(response.allowed_upstream_headers),
        keep_append=_names(response.allowed_upstream_headers_to_append),
        keep_metadata=_names(response.dynamic_metadata_from_headers),
        answer=_names(response.allowed_client_headers),
        answer_allowed=_names(response.allowed_client_headers_on_success),
        **common,
    )
    return callout, str(cluster)


def _milliseconds(message: Any) -> int:
    return int(message.timeout.ToTimedelta().total_seconds() * 1000) or _DEFAULT_TIMEOUT_MS


def _names(patterns: Any) -> tuple[TextMatch, ...]:
    """A ListStringMatcher of header names, which are compared without case."""
    return tuple(_name_match(each) for each in patterns.patterns)


def _name_match(message: Any) -> TextMatch:
    match = string_match("", message, MatchFlags.NONE, "ext_authz header name")
    return TextMatch(match.kind, match.value.lower() if match.kind is not MatchKind.REGEX else match.value)
