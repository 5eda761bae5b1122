"""Network filters: the HTTP connection manager and the TCP proxy as listeners of both directions use them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final, TypeAlias

from envoy.config.listener.v3 import listener_components_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from nodeagent.controlplane.istio.mesh_config import MeshConfig
from nodeagent.controlplane.translate.packing import ads, duration, pack
from nodeagent.controlplane.view import Perspective

Filter: TypeAlias = listener_components_pb2.Filter
FilterChain: TypeAlias = listener_components_pb2.FilterChain
ListenerFilter: TypeAlias = listener_components_pb2.ListenerFilter
HttpFilter: TypeAlias = http_connection_manager_pb2.HttpFilter
Manager: TypeAlias = http_connection_manager_pb2.HttpConnectionManager

HTTP_MANAGER: Final = "envoy.filters.network.http_connection_manager"
TCP_PROXY: Final = "envoy.filters.network.tcp_proxy"
PLAINTEXT_HTTP: Final = ("http/1.0", "http/1.1", "h2c")
"""What http_inspector reports for HTTP in the clear."""


def http_filter_by_route_name(perspective: Perspective, stat_prefix: str, route_name: str) -> Filter:
    """An HTTP connection manager whose routes come by RDS."""
    http = manager(perspective, stat_prefix)
    http.rds.config_source.CopyFrom(ads())
    http.rds.route_config_name = route_name
    return Filter(name=HTTP_MANAGER, typed_config=pack(http))


def http_filter_with_routes(
    perspective: Perspective,
    stat_prefix: str,
    routes: route_pb2.RouteConfiguration,
    guards: Iterable[HttpFilter],
    mesh: MeshConfig,
) -> Filter:
    """An HTTP connection manager with its routes inline, filters that requests must pass, and how the mesh wants
    their paths to be read."""
    http = manager(perspective, stat_prefix, guards)
    if mesh.merge_slashes:
        http.merge_slashes = True
    if mesh.decode_slashes:
        http.path_with_escaped_slashes_action = Manager.UNESCAPE_AND_FORWARD
    http.route_config.CopyFrom(routes)
    return Filter(name=HTTP_MANAGER, typed_config=pack(http))


def manager(perspective: Perspective, stat_prefix: str, guards: Iterable[HttpFilter] = ()) -> Manager:
    """A connection manager with Istio's settings and the router; its routes are the caller's to add."""
    found = Manager(stat_prefix=stat_prefix, codec_type=Manager.AUTO)
    found.normalize_path.value = True
    found.use_remote_address.value = False
    found.stream_idle_timeout.CopyFrom(duration(timedelta()))
    found.upgrade_configs.add(upgrade_type="websocket")
    if perspective.http10:
        found.http_protocol_options.accept_http_10 = True
    found.http_filters.extend(guards)
    found.http_filters.add(name="envoy.filters.http.router", typed_config=pack(router_pb2.Router()))
    return found


def tcp_filter(
    stat_prefix: str, clusters: Iterable[tuple[str, int]], idle: timedelta | None = None
) -> Filter:
    """A TCP proxy to one cluster, or split by weight over several. `idle`: none means Envoy's default of 1 h."""
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix=stat_prefix)
    weighted = list(clusters)
    if len(weighted) == 1:
        proxy.cluster = weighted[0][0]
    else:
        for name, weight in weighted:
            proxy.weighted_clusters.clusters.add(name=name, weight=weight)
    if idle is not None:
        proxy.idle_timeout.CopyFrom(duration(idle))
    return Filter(name=TCP_PROXY, typed_config=pack(proxy))


def original_destination() -> ListenerFilter:
    """Takes for the destination the one that the connection had before it was redirected."""
    return ListenerFilter(
        name="envoy.filters.listener.original_dst", typed_config=pack(original_dst_pb2.OriginalDst())
    )


def http_inspector() -> ListenerFilter:
    """Finds out by the first bytes whether a connection speaks HTTP."""
    return ListenerFilter(
        name="envoy.filters.listener.http_inspector", typed_config=pack(http_inspector_pb2.HttpInspector())
    )
