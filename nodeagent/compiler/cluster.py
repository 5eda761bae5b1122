"""Cluster and ClusterLoadAssignment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from nodeagent.compiler.pieces import ClusterPiece, EndpointsPiece, Scope
from nodeagent.compiler.report import Report
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import (
    NEVER,
    Cluster,
    ClusterKind,
    Endpoint,
    LoadBalancing,
    ServiceRef,
    WorkloadRef,
)

_STATIC, _STRICT_DNS, _LOGICAL_DNS, _EDS, _ORIGINAL_DST = range(5)  # Cluster.DiscoveryType
_DEFAULT_CONNECT_TIMEOUT_MS: Final = 5_000
_POLICIES: Final = {
    0: LoadBalancing.ROUND_ROBIN,
    1: LoadBalancing.LEAST_REQUEST,
    3: LoadBalancing.RANDOM,
    6: LoadBalancing.ROUND_ROBIN,  # CLUSTER_PROVIDED, of ORIGINAL_DST clusters
}
_TYPED_POLICIES: Final = {
    "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin": LoadBalancing.ROUND_ROBIN,
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest": LoadBalancing.LEAST_REQUEST,
    "envoy.extensions.load_balancing_policies.random.v3.Random": LoadBalancing.RANDOM,
    "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided": LoadBalancing.ROUND_ROBIN,
}
_TYPED_POLICY_CONFIG: Final = 7  # LOAD_BALANCING_POLICY_CONFIG
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNDERSTOOD: Final = frozenset(
    (
        "name", "alt_stat_name", "type", "cluster_type", "eds_cluster_config", "connect_timeout",
        "lb_policy", "load_assignment", "circuit_breakers", "max_requests_per_connection",
        "common_http_protocol_options", "typed_extension_protocol_options", "http_protocol_options",
        "http2_protocol_options", "metadata", "common_lb_config", "load_balancing_policy",
        "least_request_lb_config", "round_robin_lb_config", "protocol_selection",
        "upstream_connection_options", "track_cluster_stats", "ignore_health_on_host_removal",
        "respect_dns_ttl", "dns_lookup_family", "dns_refresh_rate", "dns_failure_refresh_rate",
        "cleanup_interval", "filters", "transport_socket", "transport_socket_matches",
        "per_connection_buffer_limit_bytes", "original_dst_lb_config", "typed_dns_resolver_config",
        "dns_jitter", "wait_for_warm_on_init",
    )
)  # fmt: skip
_UNHEALTHY: Final = frozenset((2, 3, 4, 5))  # UNHEALTHY, DRAINING, TIMEOUT, DEGRADED
_WEIGHT_SCALE: Final = 1000


def compile_cluster(message: Any, scope: Scope) -> ClusterPiece:
    """A cluster as a piece; ValueError says what is wrong with it."""
    report = Report()
    report.unsupported(message, _UNDERSTOOD)
    kind = _kind(message, report)
    direction, port, subset, host = _split_name(message.name)
    value = Cluster(
        scope.name(message.name),
        message.name,
        kind,
        _load_balancing(message, report),
        connect_timeout_ms=_milliseconds(message, "connect_timeout") or _DEFAULT_CONNECT_TIMEOUT_MS,
        service=_service(message, host),
        subset=subset,
        port=port if direction != "inbound" else 0,
    )
    value = _with_limits(value, message)
    if kind is not ClusterKind.ENDPOINTS:
        return ClusterPiece(value, warnings=report.warnings)
    if _is_eds(message):
        eds_name = message.eds_cluster_config.service_name or message.name
        return ClusterPiece(value, eds_name, warnings=report.warnings)
    endpoints = _endpoints(message.load_assignment, scope, report.at("load_assignment"))
    return ClusterPiece(value, None, endpoints, report.warnings)


def _is_eds(message: Any) -> bool:
    return not message.HasField("cluster_type") and int(message.type) == _EDS


def _kind(message: Any, report: Report) -> ClusterKind:
    if message.HasField("transport_socket") and not message.transport_socket.typed_config.type_url.endswith(
        ".RawBuffer"
    ):
        # Plain text where encryption was asked for would be worse than no connection.
        report.warn("transport_socket is not supported yet; connections are refused")
        return ClusterKind.BLACKHOLE
    if message.transport_socket_matches:
        report.warn("transport_socket_matches is not supported yet; connections are in plain text")
    if message.HasField("cluster_type"):
        report.warn(f"cluster_type {message.cluster_type.name} is not supported yet; connections are refused")
        return ClusterKind.BLACKHOLE
    if int(message.type) == _ORIGINAL_DST:
        if message.original_dst_lb_config.ListFields():
            report.warn("original_dst_lb_config is not supported yet and has no effect")
        return ClusterKind.ORIGINAL_DST
    if int(message.type) == _STATIC and not message.load_assignment.endpoints:
        return ClusterKind.BLACKHOLE  # istiod's BlackHoleCluster
    return ClusterKind.ENDPOINTS


def _load_balancing(message: Any, report: Report) -> LoadBalancing:
    if message.HasField("load_balancing_policy") or int(message.lb_policy) == _TYPED_POLICY_CONFIG:
        names = []
        for policy in message.load_balancing_policy.policies:
            names.append(policy.typed_extension_config.typed_config.type_url.rpartition("/")[2])
            if names[-1] in _TYPED_POLICIES:
                return _TYPED_POLICIES[names[-1]]
        report.warn(f"load_balancing_policy {', '.join(names)} is not supported yet; least request instead")
        return LoadBalancing.LEAST_REQUEST
    policy = _POLICIES.get(int(message.lb_policy))
    if policy is None:
        names_of = message.DESCRIPTOR.fields_by_name["lb_policy"].enum_type.values_by_number
        name = names_of[message.lb_policy].name
        report.warn(f"lb_policy {name} is not supported yet; least request instead")
        return LoadBalancing.LEAST_REQUEST
    return policy


def _with_limits(cluster: Cluster, message: Any) -> Cluster:
    http = _http_options(message)
    limits: dict[str, Any] = {"idle_timeout_ms": 0, "max_requests_per_connection": NEVER}
    if http is not None:
        limits["idle_timeout_ms"] = _milliseconds(http, "idle_timeout")
        if http.max_requests_per_connection.value:
            limits["max_requests_per_connection"] = http.max_requests_per_connection.value
    if message.max_requests_per_connection.value:
        limits["max_requests_per_connection"] = message.max_requests_per_connection.value
    for threshold in message.circuit_breakers.thresholds:
        if int(threshold.priority) == 0:  # DEFAULT
            limits["max_connections"] = _limit(threshold, "max_connections")
            limits["max_requests"] = _limit(threshold, "max_requests")
            limits["max_pending"] = _limit(threshold, "max_pending_requests")
    return replace(cluster, **limits)


def _limit(threshold: Any, name: str) -> int:
    """A circuit breaker: unset is Envoy's 1024; zero lets nothing through, which the engine's 0 does not
    say."""
    if not threshold.HasField(name):
        return 1024
    return max(int(getattr(threshold, name).value), 1)


def _http_options(message: Any) -> Any:
    """The HttpProtocolOptions common to all HTTP versions, wherever the cluster has them."""
    packed = message.typed_extension_protocol_options.get(_HTTP_OPTIONS)
    if packed is not None:
        from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

        options = http_protocol_options_pb2.HttpProtocolOptions()
        if packed.Unpack(options):
            return options.common_http_protocol_options
    if message.HasField("common_http_protocol_options"):
        return message.common_http_protocol_options
    return None


def _milliseconds(holder: Any, name: str) -> int:
    if not holder.HasField(name):
        return 0
    return int(min(getattr(holder, name).ToMilliseconds(), NEVER - 1))


def _split_name(name: str) -> tuple[str, int, str, str]:
    """(direction, port, subset, host) of a name in istiod's form; empty parts for other names."""
    parts = name.split("|")
    if len(parts) != 4 or not parts[1].isdecimal():
        return "", 0, "", ""
    return parts[0], int(parts[1]), parts[2], parts[3]


def _service(message: Any, host: str) -> ServiceRef | None:
    """The service that istiod names in the metadata, else the one in the cluster's name."""
    if "istio" in message.metadata.filter_metadata:
        fields = message.metadata.filter_metadata["istio"].fields
        for entry in fields["services"].list_value.values if "services" in fields else ():
            known = {key: value.string_value for key, value in entry.struct_value.fields.items()}
            if known.get("host"):
                return ServiceRef(known["host"], known.get("name", ""), known.get("namespace", ""))
    return _service_of_host(host)


def _service_of_host(host: str) -> ServiceRef | None:
    """The service of an FQDN: Kubernetes' by its parts, others by their host, as Istio's telemetry has it."""
    if not host:
        return None
    name, _, rest = host.partition(".")
    if ".svc." in host:
        return ServiceRef(host, name, rest.partition(".")[0])
    return ServiceRef(host, host, "")


def missing_cluster(name: str, scope: Scope) -> Cluster:
    """Stands for a cluster that is named and not there: nothing gets through it, and reports say whose it
    is."""
    _, port, subset, host = _split_name(name)
    return Cluster(
        scope.name(name),
        name,
        ClusterKind.BLACKHOLE,
        service=_service_of_host(host),
        subset=subset,
        port=port,
    )


# -- endpoints --


def compile_endpoints(message: Any, scope: Scope) -> EndpointsPiece:
    """A load assignment as a piece; ValueError says what is wrong with it."""
    report = Report()
    return EndpointsPiece(_endpoints(message, scope, report), report.warnings, _target(message.cluster_name))


def _target(cluster: str) -> str:
    """`host:port` of the service that a cluster's name is about; "" if it is about none."""
    direction, port, _, host = _split_name(cluster)
    return f"{host}:{port}" if direction == "outbound" and host else ""


def _endpoints(message: Any, scope: Scope, report: Report) -> tuple[Endpoint, ...]:
    if message.policy.drop_overloads:
        report.warn("policy.drop_overloads is not supported yet and has no effect")
    endpoints: list[Endpoint] = []
    target = _target(message.cluster_name)
    localities = [(group, _group(group, scope, report, target)) for group in message.endpoints]
    weighted = any(
        group.HasField("load_balancing_weight")
        and group.load_balancing_weight.value != sum(endpoint.weight for endpoint in members)
        for group, members in localities
    )
    for group, members in localities:
        endpoints.extend(_spread(group.load_balancing_weight.value, members) if weighted else members)
    return tuple(endpoints)


def _group(group: Any, scope: Scope, report: Report, target: str) -> list[Endpoint]:
    if group.priority > 255:
        raise ValueError(f"priority {group.priority} is over 255")
    members = []
    for item in group.lb_endpoints:
        endpoint = _endpoint(item, int(group.priority), scope, report, target)
        if endpoint is not None:
            members.append(endpoint)
    return members


def _spread(locality_weight: int, members: list[Endpoint]) -> list[Endpoint]:
    """Share a locality's weight among its endpoints; one without weight gets no traffic, as in Envoy."""
    total = sum(endpoint.weight for endpoint in members)
    if not locality_weight:
        return []
    return [
        replace(endpoint, weight=max(1, _WEIGHT_SCALE * locality_weight * endpoint.weight // total))
        for endpoint in members
    ]


def _endpoint(item: Any, priority: int, scope: Scope, report: Report, target: str) -> Endpoint | None:
    address = item.endpoint.address
    if address.WhichOneof("address") != "socket_address":
        report.warn(f"endpoints by {address.WhichOneof('address')} are not supported yet and are left out")
        return None
    socket_address = address.socket_address
    if not 0 < socket_address.port_value < 65536:
        raise ValueError(
            f"endpoint {socket_address.address}: port {socket_address.port_value} is out of range"
        )
    try:
        raw = parse_address(socket_address.address)
    except ValueError:
        report.warn(f"endpoint {socket_address.address!r}: host names are not supported yet; it is left out")
        return None
    return Endpoint(
        raw,
        socket_address.port_value,
        item.load_balancing_weight.value or 1,
        int(item.health_status) not in _UNHEALTHY,
        priority,
        scope.workload_at(raw, socket_address.port_value) or _workload_of(item),
        scope.tunnel_to(raw, target, socket_address.port_value),
    )


def _workload_of(item: Any) -> WorkloadRef | None:
    """istiod's `workload;namespace;canonical name;canonical revision;cluster` of an endpoint."""
    if "istio" not in item.metadata.filter_metadata:
        return None
    fields = item.metadata.filter_metadata["istio"].fields
    if "workload" not in fields:
        return None
    parts = (fields["workload"].string_value.split(";") + [""] * 5)[:5]
    workload, namespace, canonical, revision, cluster = parts
    return WorkloadRef(
        uid="",
        name="",
        namespace=namespace,
        workload_name=workload,
        canonical_name=canonical,
        canonical_revision=revision,
        app=canonical,
        version=revision,
        cluster=cluster,
    )
