"""Filter chains of a listener: which connections they take, and what they do with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from nodeagent.compiler.filters import type_of, unpack
from nodeagent.compiler.guards import GUARDS, add_guard, add_unknown, for_http
from nodeagent.compiler.pieces import UNGUARDED, Guarding, RoutePiece, Scope
from nodeagent.compiler.rbac import asks_client
from nodeagent.compiler.report import Report
from nodeagent.compiler.route import compile_route_configuration
from nodeagent.snapshot.policies import Rules, Slashes
from nodeagent.snapshot.values import WeightedCluster

_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TCP_PROXY: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HTTP_ALPN: Final = frozenset(("http/1.0", "http/1.1", "h2c"))
_TLS_CONTEXT: Final = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
# Filters that neither guard nor change traffic, or that do what the engine does anyway: by type, or by the
# name under which istiod hides the type in a TypedStruct.
_HARMLESS: Final = frozenset(
    (
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "io.istio.http.peer_metadata.Config",
        "stats.PluginConfig",
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        "istio.metadata_exchange",
        "istio.stats",
    )
)
# Filters that change traffic without guarding it: worth a warning, not a refusal.
_BENIGN: Final = frozenset(
    (
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        "envoy.extensions.filters.http.cors.v3.Cors",
        "envoy.extensions.filters.http.compressor.v3.Compressor",
        "envoy.extensions.filters.http.decompressor.v3.Decompressor",
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
        "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    )
)
_MANAGER_UNSUPPORTED: Final = (
    "local_reply_config", "original_ip_detection_extensions", "early_header_mutation_extensions",
    "internal_address_config", "request_headers_timeout", "max_request_headers_kb", "add_user_agent",
    "strip_any_host_port", "path_normalization_options",
)  # fmt: skip


_ESCAPED_SLASHES: Final = {"UNESCAPE_AND_FORWARD": Slashes.DECODE, "REJECT_REQUEST": Slashes.REJECT}


class Transport(Enum):
    """What the bytes of a connection are before a chain may take it."""

    ANY = "any"
    PLAIN = "plain"
    TLS = "tls"


@dataclass(frozen=True, slots=True)
class Chain:
    """A filter chain, read. Either it speaks HTTP (a route or an inline configuration) or it has shares."""

    name: str
    transport: Transport
    http_only: bool
    """It takes only what is found to be HTTP."""
    port: int
    """Destination port that it is for; 0 any."""
    prefixes: tuple[tuple[str, int], ...]
    """Destination address ranges that it is for; none means any."""
    is_http: bool = False
    route: str | None = None
    inline: RoutePiece | None = None
    shares: tuple[WeightedCluster, ...] = ()
    clusters: frozenset[str] = frozenset()
    guarding: Guarding = UNGUARDED
    """What the filters ask of those who want to pass."""


class Unusable(Exception):
    """A chain that connections can never take here; the text says why, or is empty if that is as it should
    be."""


def read_chain(chain: Any, scope: Scope, report: Report) -> Chain:
    """Read a filter chain; Unusable if it takes no connection that comes here, ValueError if it is malformed. Of a
    chain for TLS only the match is read."""
    base = _read_match(chain)
    return base if base.transport is Transport.TLS else _with_filters(base, chain, scope, report)


def read_mutual_chain(chain: Any, scope: Scope, report: Report) -> Chain | None:
    """A chain for TLS that wants certificates of its clients, as it is for those who have shown theirs to a tunnel;
    None if it is no such chain."""
    if not _wants_certificates(chain):
        return None
    return _with_filters(_read_match(chain), chain, scope, report)


def _wants_certificates(chain: Any) -> bool:
    socket = chain.transport_socket
    if not socket.typed_config.type_url.endswith(_TLS_CONTEXT):
        return False
    from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

    context = tls_pb2.DownstreamTlsContext.FromString(socket.typed_config.value)
    return bool(context.require_client_certificate.value)


def _read_match(chain: Any) -> Chain:
    match = chain.filter_chain_match
    for name in ("source_prefix_ranges", "source_ports", "direct_source_prefix_ranges", "source_type"):
        if _is_set(match, name):
            raise Unusable(f"filter_chain_match.{name} is not supported yet; the chain is left out")
    protocols = frozenset(match.application_protocols)
    transport = _transport(chain, match)
    if protocols and not protocols & _HTTP_ALPN:
        transport = Transport.TLS  # ALPN, which only TLS has
    return Chain(
        name=chain.name,
        transport=transport,
        http_only=bool(protocols),
        port=match.destination_port.value,
        prefixes=tuple((r.address_prefix, r.prefix_len.value) for r in match.prefix_ranges),
    )


def _transport(chain: Any, match: Any) -> Transport:
    if match.transport_protocol == "tls" or match.server_names or chain.HasField("transport_socket"):
        return Transport.TLS
    return Transport.PLAIN if match.transport_protocol else Transport.ANY


def _is_set(message: Any, name: str) -> bool:
    return any(descriptor.name == name for descriptor, _ in message.ListFields())


def _with_filters(base: Chain, chain: Any, scope: Scope, report: Report) -> Chain:
    """The chain with what its filters say."""
    guarding = UNGUARDED
    for item in chain.filters:
        kind = type_of(item)
        if kind == _HCM:
            return _read_http(base, _unpack_http(item), guarding, scope, report)
        if kind == _TCP_PROXY:
            return _read_tcp(base, _unpack_tcp(item), guarding, scope, report)
        guarding = _judge(item, kind, guarding, scope, report)
    raise ValueError(
        f"filter chain {chain.name!r} ends in neither an HTTP connection manager nor a TCP proxy"
    )


def _judge(item: Any, kind: str, guarding: Guarding, scope: Scope, report: Report) -> Guarding:
    """What is asked for with one more filter. What is not known to guard nothing is taken for a guard."""
    if kind in _HARMLESS or item.name in _HARMLESS:
        return guarding
    if kind in GUARDS:
        return add_guard(guarding, item, kind, scope, report)
    if kind in _BENIGN or _is_optional(item):
        report.warn(f"filter {item.name} is not supported yet and has no effect")
        return guarding
    return add_unknown(guarding, item.name or kind)


def _is_optional(item: Any) -> bool:
    return bool(getattr(item, "is_optional", False)) and not item.name.startswith("envoy.filters.")


def _unpack_http(item: Any) -> Any:
    from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

    return unpack(item, http_connection_manager_pb2.HttpConnectionManager)


def _unpack_tcp(item: Any) -> Any:
    from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

    return unpack(item, tcp_proxy_pb2.TcpProxy)


def _read_http(base: Chain, manager: Any, guarding: Guarding, scope: Scope, report: Report) -> Chain:
    for name in _MANAGER_UNSUPPORTED:
        if _is_set(manager, name):
            report.warn(f"http_connection_manager.{name} is not supported yet and has no effect")
    _warn_of_client_certificates(manager, report)
    guarding = for_http(guarding)
    for item in manager.http_filters:
        if not item.disabled:
            guarding = _judge(item, type_of(item), guarding, scope, report)
    guarding = _with_hops(_with_slashes(guarding, manager), manager)
    kind = manager.WhichOneof("route_specifier")
    if kind == "rds":
        return replace(base, is_http=True, route=manager.rds.route_config_name, guarding=guarding)
    if kind == "route_config":
        inline = compile_route_configuration(manager.route_config, scope)
        guarding = _with_overrides(guarding, manager.route_config)
        return replace(base, is_http=True, route=inline.name, inline=inline, guarding=guarding)
    raise ValueError(f"filter chain {base.name!r}: route specifier {kind or '(none)'} is not supported")


def _warn_of_client_certificates(manager: Any, report: Report) -> None:
    """The engine leaves x-forwarded-client-cert out of every request, whatever the manager says of it."""
    details = manager.ForwardClientCertDetails.Name(manager.forward_client_cert_details)
    if details != "SANITIZE":
        report.warn(
            f"http_connection_manager.forward_client_cert_details {details} is not supported yet; "
            "x-forwarded-client-cert is removed, as by SANITIZE"
        )


def _with_hops(guarding: Guarding, manager: Any) -> Guarding:
    """Rules on a client's address are for the last one in X-Forwarded-For, as a sidecar's manager has it."""
    edge = manager.use_remote_address.value or manager.xff_num_trusted_hops
    stages = (stage for stage in guarding.request if isinstance(stage, Rules))
    if edge and any(asks_client(policy.check) for stage in stages for policy in stage.policies):
        return add_unknown(guarding, "remote_ip with use_remote_address or xff_num_trusted_hops")
    return guarding


def _with_slashes(guarding: Guarding, manager: Any) -> Guarding:
    """How slashes in paths are read before requests are judged. A redirect is not to be had."""
    slashes = Slashes.MERGE if manager.merge_slashes else Slashes.AS_SENT
    action = manager.PathWithEscapedSlashesAction.Name(manager.path_with_escaped_slashes_action)
    if action == "UNESCAPE_AND_REDIRECT":
        return add_unknown(guarding, f"path_with_escaped_slashes_action {action}")
    return replace(guarding, slashes=slashes | _ESCAPED_SLASHES.get(action, Slashes.AS_SENT))


def _with_overrides(guarding: Guarding, routes: Any) -> Guarding:
    """Routes may have guards of their own in place of the listener's."""
    overridden = set(routes.typed_per_filter_config)
    for host in routes.virtual_hosts:
        overridden.update(host.typed_per_filter_config)
        for route in host.routes:
            overridden.update(route.typed_per_filter_config)
    for name in sorted(overridden.intersection(guarding.filters)):
        guarding = add_unknown(guarding, f"{name} in typed_per_filter_config of a route")
    return guarding


def _read_tcp(base: Chain, proxy: Any, guarding: Guarding, scope: Scope, report: Report) -> Chain:
    for name in ("tunneling_config", "metadata_match", "hash_policy", "max_downstream_connection_duration"):
        if _is_set(proxy, name):
            report.warn(f"tcp_proxy.{name} is not supported yet and has no effect")
    if proxy.WhichOneof("cluster_specifier") == "cluster":
        weights = [(proxy.cluster, 1)]
    else:
        weights = [(item.name, item.weight) for item in proxy.weighted_clusters.clusters]
    if not any(weight for _, weight in weights):
        raise ValueError(f"filter chain {base.name!r}: the TCP proxy names no cluster")
    return replace(
        base,
        shares=tuple(WeightedCluster(scope.name(name), weight) for name, weight in weights),
        clusters=frozenset(name for name, _ in weights),
        guarding=guarding,
    )
