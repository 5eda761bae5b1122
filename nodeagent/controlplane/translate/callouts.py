"""Extension providers to Envoy's ext_authz filters: who is asked about a request or connection, and how."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from envoy.config.core.v3 import config_source_pb2, grpc_service_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2 as http_pb2
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as network_pb2
from envoy.type.matcher.v3 import metadata_pb2, string_pb2

from nodeagent.controlplane.istio.extension_providers import ExtensionProvider
from nodeagent.controlplane.translate.packing import duration
from nodeagent.model import names
from nodeagent.model.names import ClusterName
from nodeagent.model.service import Service

HTTP_RBAC: Final = "envoy.filters.http.rbac"
NETWORK_RBAC: Final = "envoy.filters.network.rbac"
SHADOW_PREFIX: Final = "istio_ext_authz_"
"""Before the names under which an RBAC filter says which CUSTOM policy matched (Istio)."""
POLICY_PREFIX: Final = "istio-ext-authz"
"""Before the names of CUSTOM policies (Istio)."""
# Istio: without a timeout of its own a provider is waited for as long as it takes, nearly.
_TIMEOUT: Final = timedelta(seconds=600)
_V3: Final = config_source_pb2.ApiVersion.V3


def http_callout(provider: ExtensionProvider, service: Service) -> http_pb2.ExtAuthz:
    """The HTTP filter that asks a provider when one of its policies matched."""
    found = http_pb2.ExtAuthz(
        failure_mode_allow=provider.fail_open,
        transport_api_version=_V3,
        filter_enabled_metadata=_when_matched(provider, HTTP_RBAC),
        clear_route_cache=provider.clear_route_cache,
    )
    if provider.grpc:
        found.grpc_service.CopyFrom(_grpc_service(provider, service))
    else:
        found.http_service.CopyFrom(_http_service(provider, service))
        if provider.headers_in_check:
            found.allowed_headers.CopyFrom(_headers(provider.headers_in_check))
    if provider.status_on_error is not None:
        found.status_on_error.code = provider.status_on_error
    if provider.body is not None:
        found.with_request_body.max_request_bytes = provider.body.max_bytes
        found.with_request_body.allow_partial_message = provider.body.partial
        found.with_request_body.pack_as_bytes = provider.body.as_bytes
    return found


def network_callout(provider: ExtensionProvider, service: Service) -> network_pb2.ExtAuthz | None:
    """The network filter that asks a provider; None for one that knows HTTP requests only."""
    if not provider.grpc:
        return None
    return network_pb2.ExtAuthz(
        stat_prefix="tcp.",
        failure_mode_allow=provider.fail_open,
        transport_api_version=_V3,
        grpc_service=_grpc_service(provider, service),
        filter_enabled_metadata=_when_matched(provider, NETWORK_RBAC),
    )


def policy_prefix(provider: str) -> str:
    """Before the names of the policies of a provider."""
    return f"{POLICY_PREFIX}-{provider}-"


def _when_matched(provider: ExtensionProvider, filter_name: str) -> metadata_pb2.MetadataMatcher:
    """The filter is on only if the RBAC filter before it found that a policy of this provider matches."""
    found = metadata_pb2.MetadataMatcher(filter=filter_name)
    found.path.add(key=f"{SHADOW_PREFIX}shadow_effective_policy_id")
    # `ns[` is how the rest of the name begins: a provider's name may be the beginning of another's.
    found.value.string_match.prefix = policy_prefix(provider.name) + "ns["
    return found


def _cluster(provider: ExtensionProvider, service: Service) -> str:
    return str(ClusterName(names.OUTBOUND, provider.port, "", service.host))


def _grpc_service(provider: ExtensionProvider, service: Service) -> grpc_service_pb2.GrpcService:
    found = grpc_service_pb2.GrpcService(timeout=duration(provider.timeout or _TIMEOUT))
    found.envoy_grpc.cluster_name = _cluster(provider, service)
    found.envoy_grpc.authority = service.host
    return found


def _http_service(provider: ExtensionProvider, service: Service) -> http_pb2.HttpService:
    found = http_pb2.HttpService(path_prefix=provider.path_prefix)
    found.server_uri.uri = f"http://{service.host}"
    found.server_uri.cluster = _cluster(provider, service)
    found.server_uri.timeout.CopyFrom(duration(provider.timeout or _TIMEOUT))
    for name, value in provider.extra_headers:
        found.authorization_request.headers_to_add.add(key=name, value=value)
    response = (
        ("allowed_upstream_headers", provider.upstream_on_allow),
        ("allowed_client_headers", provider.downstream_on_deny),
        ("allowed_client_headers_on_success", provider.downstream_on_allow),
    )
    for field, patterns in response:
        if patterns:
            getattr(found.authorization_response, field).CopyFrom(_headers(patterns))
    return found


def _headers(patterns: Iterable[str]) -> string_pb2.ListStringMatcher:
    return string_pb2.ListStringMatcher(patterns=[_header(pattern) for pattern in patterns])


def _header(pattern: str) -> string_pb2.StringMatcher:
    if pattern.startswith("*"):
        return string_pb2.StringMatcher(suffix=pattern[1:], ignore_case=True)
    if pattern.endswith("*"):
        return string_pb2.StringMatcher(prefix=pattern[:-1], ignore_case=True)
    return string_pb2.StringMatcher(exact=pattern, ignore_case=True)
