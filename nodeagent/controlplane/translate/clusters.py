"""Services to Envoy clusters, in istiod's sidecar shape."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final, TypeAlias

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf.struct_pb2 import Value

from nodeagent.controlplane.istio.values import ConnectionPool, LoadBalancer, PolicyBlocks
from nodeagent.controlplane.translate.packing import ads, duration, pack
from nodeagent.controlplane.view import View
from nodeagent.model import names
from nodeagent.model.names import ClusterName
from nodeagent.model.service import Service, ServicePort

Cluster: TypeAlias = cluster_pb2.Cluster
HttpProtocolOptions: TypeAlias = http_protocol_options_pb2.HttpProtocolOptions
_BALANCERS: Final = {
    LoadBalancer.LEAST_REQUEST: Cluster.LEAST_REQUEST,
    LoadBalancer.RANDOM: Cluster.RANDOM,
    LoadBalancer.ROUND_ROBIN: Cluster.ROUND_ROBIN,
}
_CONNECT_TIMEOUT: Final = timedelta(seconds=10)
# Istio lifts Envoy's default limits of 1024: a mesh must not refuse what the application would take.
_UNLIMITED: Final = 2**32 - 1
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# The address from which a sidecar connects to its own application; redirection leaves it alone.
_INBOUND_SOURCE: Final = "127.0.0.6"
_INBOUND_SOURCE_V6: Final = "::6"


def outbound_clusters(view: View, service: Service) -> Iterable[Cluster]:
    """One cluster for each port of the service and each of its subsets."""
    policy = view.policy(service)
    for port in service.tcp_ports:
        made = [_outbound(service, port, "", policy.blocks(port.port))]
        made += [
            _outbound(service, port, subset.name, policy.blocks(port.port, subset))
            for subset in policy.subsets
        ]
        for cluster in made:
            if view.perspective.proxyless:
                # gRPC knows no other policy but RING_HASH, and refuses the cluster.
                cluster.lb_policy = Cluster.ROUND_ROBIN
            yield cluster


def _outbound(service: Service, port: ServicePort, subset: str, blocks: PolicyBlocks) -> Cluster:
    name = str(ClusterName(names.OUTBOUND, port.port, subset, service.host))
    pool = blocks.connection_pool or ConnectionPool()
    found = Cluster(
        name=name,
        type=Cluster.EDS,
        eds_cluster_config=Cluster.EdsClusterConfig(eds_config=ads(), service_name=name),
        connect_timeout=duration(pool.connect_timeout or _CONNECT_TIMEOUT),
        lb_policy=_BALANCERS[blocks.load_balancer or LoadBalancer.LEAST_REQUEST],
        metadata=_service_metadata([service]),
    )
    found.circuit_breakers.CopyFrom(_breakers(pool))
    if service.passes_through:
        found.ClearField("eds_cluster_config")
        found.type = Cluster.ORIGINAL_DST
        found.lb_policy = Cluster.CLUSTER_PROVIDED
    else:
        found.common_lb_config.locality_weighted_lb_config.SetInParent()
    options = _outbound_http_options(port, pool)
    if options is not None:
        found.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))
    return found


def _outbound_http_options(port: ServicePort, pool: ConnectionPool) -> HttpProtocolOptions | None:
    """How HTTP is spoken to the service; None: HTTP/1.1 with Envoy's defaults, or no HTTP at all."""
    if not port.protocol.may_be_http:
        return None
    if port.protocol.is_http2:
        options = _explicit_http2()
    elif port.protocol.is_http:
        options = HttpProtocolOptions()
        options.explicit_http_config.http_protocol_options.SetInParent()
    else:
        options = _downstream_protocol()
    common = options.common_http_protocol_options
    if pool.http_idle_timeout is not None:
        common.idle_timeout.CopyFrom(duration(pool.http_idle_timeout))
    if pool.max_requests_per_connection is not None:
        common.max_requests_per_connection.value = pool.max_requests_per_connection
    plain = (
        port.protocol.is_http
        and not port.protocol.is_http2
        and not options.HasField("common_http_protocol_options")
    )
    return None if plain else options


def _breakers(pool: ConnectionPool) -> circuit_breaker_pb2.CircuitBreakers:
    found = circuit_breaker_pb2.CircuitBreakers()
    threshold = found.thresholds.add(track_remaining=True)
    threshold.max_connections.value = pool.max_connections or _UNLIMITED
    threshold.max_pending_requests.value = pool.max_pending_requests or _UNLIMITED
    threshold.max_requests.value = pool.max_requests or _UNLIMITED
    threshold.max_retries.value = _UNLIMITED
    return found


def _explicit_http2() -> HttpProtocolOptions:
    options = HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.SetInParent()
    return options


def _downstream_protocol() -> HttpProtocolOptions:
    """Speak to the application what the client spoke."""
    options = HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    return options


def _service_metadata(services: Iterable[Service]) -> base_pb2.Metadata:
    """istio.services: which services a cluster belongs to, for telemetry."""
    found = base_pb2.Metadata()
    listed = found.filter_metadata["istio"].fields["services"].list_value
    for service in services:
        item = Value()
        item.struct_value.update({"host": service.host, "name": service.name, "namespace": service.namespace})
        listed.values.append(item)
    return found


def passthrough_cluster() -> Cluster:
    """Outbound traffic to what the mesh does not know: to where it was going."""
    found = _original_dst(names.PASSTHROUGH_CLUSTER)
    found.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(_downstream_protocol()))
    return found


def black_hole_cluster() -> Cluster:
    """A cluster with no endpoint: refuses."""
    return Cluster(
        name=names.BLACK_HOLE_CLUSTER, type=Cluster.STATIC, connect_timeout=duration(_CONNECT_TIMEOUT)
    )


def inbound_passthrough_cluster() -> Cluster:
    """Inbound traffic on ports that no service declares."""
    found = _inbound(names.INBOUND_PASSTHROUGH_CLUSTER)
    found.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(_downstream_protocol()))
    return found


def inbound_cluster(services: Iterable[Service], port: ServicePort, target: int) -> Cluster:
    """The application behind a port of the client's own pod."""
    found = _inbound(str(ClusterName(names.INBOUND, target, "", "")))
    found.metadata.CopyFrom(_service_metadata(services))
    if port.protocol.may_be_http:
        options = _explicit_http2() if port.protocol.is_http2 else _downstream_protocol()
        found.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))
    return found


def _original_dst(name: str) -> Cluster:
    found = Cluster(
        name=name,
        type=Cluster.ORIGINAL_DST,
        lb_policy=Cluster.CLUSTER_PROVIDED,
        connect_timeout=duration(_CONNECT_TIMEOUT),
    )
    found.circuit_breakers.CopyFrom(_breakers(ConnectionPool()))
    return found


def _inbound(name: str) -> Cluster:
    found = _original_dst(name)
    found.upstream_bind_config.source_address.CopyFrom(
        address_pb2.SocketAddress(address=_INBOUND_SOURCE, port_value=0)
    )
    extra = found.upstream_bind_config.extra_source_addresses.add()
    extra.address.CopyFrom(address_pb2.SocketAddress(address=_INBOUND_SOURCE_V6, port_value=0))
    return found
