"""Decoding of DestinationRule (networking.istio.io v1alpha3, v1beta1, v1), strict."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio import fields as read
from nodeagent.controlplane.istio.values import (
    ConnectionPool,
    DestinationRule,
    LoadBalancer,
    PolicyBlocks,
    Subset,
    TrafficPolicy,
)
from nodeagent.controlplane.kubernetes.metadata import read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.sources.base import RawObject

_MAX_COUNT: Final = 2**31 - 1
_BALANCERS: Final = {
    "LEAST_REQUEST": LoadBalancer.LEAST_REQUEST,
    "LEAST_CONN": LoadBalancer.LEAST_REQUEST,
    "RANDOM": LoadBalancer.RANDOM,
    "ROUND_ROBIN": LoadBalancer.ROUND_ROBIN,
    "UNSPECIFIED": None,
    "PASSTHROUGH": None,
}


def decode_destination_rule(raw: RawObject, problems: Problems, scope: MeshScope) -> DestinationRule | None:
    """A DestinationRule; what is wrong is in `problems`."""
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind", "status")
        read_metadata(top)
        spec = top.message("spec", required=True)
        if spec is None:
            return None
        with spec:
            host = spec.string("host", required=True)
            if host:
                read.check_host(spec, spec.at("host"), host, wildcard=True)
            spec.unsupported("workloadSelector")
            return DestinationRule(
                name=raw.key.name,
                namespace=raw.key.namespace,
                host=read.full_host(host, raw.key.namespace, scope.domain),
                subsets=_subsets(spec),
                policy=_traffic_policy(spec),
                export_to=read.export_to(spec),
                created=raw.created,
                source=raw.source,
            )


def _subsets(spec: Fields) -> tuple[Subset, ...]:
    found: dict[str, Subset] = {}
    for item in spec.messages("subsets"):
        with item:
            name = item.string("name", required=True)
            subset = Subset(name, item.string_map("labels"), _traffic_policy(item) or TrafficPolicy())
            if name in found:
                item.error("name", f"subset {name} is there twice", "duplicate-subset")
            elif "|" in name:
                item.error("name", f"{name!r}: a subset's name cannot hold '|'")
        found[name] = subset
    return tuple(found.values())


def _traffic_policy(fields: Fields) -> TrafficPolicy | None:
    policy = fields.message("trafficPolicy")
    if policy is None:
        return None
    with policy:
        policy.unsupported("tunnel", "proxyProtocol", "retryBudget")
        blocks = _blocks(policy)
        ports: dict[int, PolicyBlocks] = {}
        for item in policy.messages("portLevelSettings"):
            with item:
                number = _port_selector(item)
                settings = _blocks(item)
            if number is None:
                continue
            if number in ports:
                item.error("port", f"port {number} is there twice", "duplicate-port")
            ports[number] = settings
    return TrafficPolicy(blocks, ports)


def _port_selector(fields: Fields) -> int | None:
    nested = fields.message("port", required=True)
    if nested is None:
        return None
    with nested:
        return nested.port("number", required=True)


def _blocks(fields: Fields) -> PolicyBlocks:
    fields.unsupported("outlierDetection", "tls")
    return PolicyBlocks(_load_balancer(fields), _connection_pool(fields))


def _load_balancer(fields: Fields) -> LoadBalancer | None:
    nested = fields.message("loadBalancer")
    if nested is None:
        return None
    with nested:
        nested.unsupported("consistentHash", "localityLbSetting", "warmup", "warmupDurationSecs")
        if nested.has("consistentHash") and nested.has("simple"):
            fields.problems.error(nested.path, "only one of simple, consistentHash may be set")
        simple = nested.choice("simple", _BALANCERS)
        if simple == "PASSTHROUGH":
            fields.problems.unsupported(nested.at("simple"))
    return _BALANCERS.get(simple)


def _connection_pool(fields: Fields) -> ConnectionPool | None:
    pool = fields.message("connectionPool")
    if pool is None:
        return None
    empty = Fields({}, "", fields.problems)
    with pool:
        tcp = pool.message("tcp") or empty
        http = pool.message("http") or empty
        with tcp, http:
            tcp.unsupported("idleTimeout", "maxConnectionDuration", "tcpKeepalive")
            http.unsupported("h2UpgradePolicy", "maxConcurrentStreams", "maxRetries", "useClientProtocol")
            return ConnectionPool(
                max_connections=_count(tcp, "maxConnections"),
                connect_timeout=tcp.duration("connectTimeout", at_least=timedelta(milliseconds=1)),
                max_pending_requests=_count(http, "http1MaxPendingRequests"),
                max_requests=_count(http, "http2MaxRequests"),
                max_requests_per_connection=_count(http, "maxRequestsPerConnection"),
                http_idle_timeout=http.duration("idleTimeout"),
            )


def _count(fields: Fields, name: str) -> int | None:
    """A limit; 0 means the default (ConnectionPoolSettings)."""
    return fields.integer(name, low=0, high=_MAX_COUNT) or None
