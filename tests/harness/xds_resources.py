"""xDS resources in the shape that istiod gives a sidecar, from a few words each."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from google.protobuf import json_format, struct_pb2

from nodeagent.proto import workload_pb2

HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def _register() -> None:
    """JSON's Any needs the message types to be known."""
    from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
    from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
        http_connection_manager_pb2,
    )
    from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401


_register()


def parse(message: Any, data: Mapping[str, Any]) -> Any:
    """A protobuf from its JSON mapping."""
    return json_format.ParseDict(data, message)


def fqdn(name: str, namespace: str = "default") -> str:
    return f"{name}.{namespace}.svc.cluster.local"


def socket_address(address: str, port: int) -> dict[str, Any]:
    return {"socketAddress": {"address": address, "portValue": port}}


def http_filter(route: str, **fields: Any) -> dict[str, Any]:
    """An HTTP connection manager that takes its routes by RDS."""
    manager = {
        "@type": HCM,
        "statPrefix": "outbound",
        "rds": {"configSource": {"ads": {}}, "routeConfigName": route},
        "httpFilters": [{"name": "envoy.filters.http.router", "typedConfig": {"@type": ROUTER}}],
        **fields,
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}


def tcp_filter(cluster: str) -> dict[str, Any]:
    proxy = {"@type": TCP_PROXY, "statPrefix": cluster, "cluster": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typedConfig": proxy}


def http_listener(port: int, route: str = "") -> Any:
    """`0.0.0.0_<port>`."""
    return parse(
        listener_pb2.Listener(),
        {
            "name": f"0.0.0.0_{port}",
            "address": socket_address("0.0.0.0", port),
            "trafficDirection": "OUTBOUND",
            "filterChains": [{"filters": [http_filter(route or str(port))]}],
        },
    )


def tcp_listener(vip: str, port: int, cluster: str) -> Any:
    """`<vip>_<port>`."""
    return parse(
        listener_pb2.Listener(),
        {
            "name": f"{vip}_{port}",
            "address": socket_address(vip, port),
            "trafficDirection": "OUTBOUND",
            "filterChains": [{"filters": [tcp_filter(cluster)]}],
        },
    )


def inbound_listener(ports: Mapping[int, str], extra: Iterable[Mapping[str, Any]] = ()) -> Any:
    """virtualInbound; `ports` maps a target port to `http`, `tcp` or `detect`."""
    chains: list[Mapping[str, Any]] = [
        {
            "name": "virtualInbound-blackhole",
            "filterChainMatch": {"destinationPort": 15006},
            "filters": [tcp_filter("BlackHoleCluster")],
        }
    ]
    for port, protocol in ports.items():
        cluster = f"inbound|{port}||"
        routes = {
            "name": cluster,
            "virtualHosts": [
                {
                    "name": f"inbound|http|{port}",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }
            ],
        }
        manager = {"statPrefix": "inbound", "routeConfig": routes, "@type": HCM}
        http = {"name": "http", "typedConfig": manager}
        match: dict[str, Any] = {"destinationPort": port}
        if protocol == "detect":
            chains.append(
                {
                    "name": f"0.0.0.0_{port}",
                    "filterChainMatch": {**match, "applicationProtocols": ["http/1.0", "http/1.1", "h2c"]},
                    "filters": [http],
                }
            )
        filters = [http] if protocol == "http" else [tcp_filter(cluster)]
        chains.append({"name": f"0.0.0.0_{port}", "filterChainMatch": match, "filters": filters})
    chains.extend(extra)
    chains.append({"name": "virtualInbound", "filters": [tcp_filter("InboundPassthroughCluster")]})
    return parse(
        listener_pb2.Listener(),
        {
            "name": "virtualInbound",
            "address": socket_address("0.0.0.0", 15006),
            "trafficDirection": "INBOUND",
            "filterChains": chains,
        },
    )


def outbound_catch_all(cluster: str = "PassthroughCluster") -> Any:
    """virtualOutbound."""
    return parse(
        listener_pb2.Listener(),
        {
            "name": "virtualOutbound",
            "address": socket_address("0.0.0.0", 15001),
            "useOriginalDst": True,
            "filterChains": [{"name": "virtualOutbound-catchall-tcp", "filters": [tcp_filter(cluster)]}],
        },
    )


def forward(cluster: str, **fields: Any) -> dict[str, Any]:
    """A route that sends everything to a cluster."""
    return {
        "name": "default",
        "match": {"prefix": "/"},
        "route": {"cluster": cluster, "timeout": "0s"},
        **fields,
    }


def split(**weights: int) -> dict[str, Any]:
    """A route by weight; names stand for subsets of reviews."""
    clusters = [
        {"name": f"outbound|9080|{subset}|{fqdn('reviews')}", "weight": weight}
        for subset, weight in weights.items()
    ]
    return {
        "match": {"prefix": "/"},
        "route": {"weightedClusters": {"clusters": clusters}, "timeout": "0s"},
    }


def virtual_host(
    name: str, port: int, routes: Iterable[Mapping[str, Any]], domains: Iterable[str] = ()
) -> Any:
    """The virtual host of a service, with the domains that istiod gives it."""
    host = fqdn(name)
    return parse(
        route_components_pb2.VirtualHost(),
        {
            "name": f"{host}:{port}",
            "domains": list(domains) or [host, f"{host}:{port}", name, f"{name}:{port}", f"{name}.default"],
            "routes": list(routes),
        },
    )


def allow_any() -> dict[str, Any]:
    return {"name": "allow_any", "domains": ["*"], "routes": [forward("PassthroughCluster")]}


def route_configuration(name: str, hosts: Iterable[Any] = (), on_demand: bool = False) -> Any:
    """A route configuration with virtual hosts and the catch-all; on_demand: more come by VHDS."""
    message = parse(route_pb2.RouteConfiguration(), {"name": name, "virtualHosts": [allow_any()]})
    for host in hosts:
        message.virtual_hosts.append(host)
    if on_demand:
        message.vhds.config_source.ads.SetInParent()
    return message


def cluster(name: str, **fields: Any) -> Any:
    """A cluster by EDS."""
    data = {
        "name": name,
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": {"ads": {}}, "serviceName": name},
        "connectTimeout": "10s",
        "lbPolicy": "LEAST_REQUEST",
        **fields,
    }
    return parse(cluster_pb2.Cluster(), data)


def passthrough() -> Any:
    return parse(
        cluster_pb2.Cluster(),
        {
            "name": "PassthroughCluster",
            "type": "ORIGINAL_DST",
            "lbPolicy": "CLUSTER_PROVIDED",
            "connectTimeout": "10s",
        },
    )


def assignment(name: str, *addresses: str, port: int = 9080) -> Any:
    """A load assignment of healthy endpoints."""
    endpoints = [{"endpoint": {"address": socket_address(address, port)}} for address in addresses]
    return parse(
        endpoint_pb2.ClusterLoadAssignment(),
        {"clusterName": name, "endpoints": [{"lbEndpoints": endpoints}] if endpoints else []},
    )


# -- workload discovery --


def pack_address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def service(name: str, vip: str, *ports: tuple[int, str], namespace: str = "default") -> Any:
    """An Address with a service; a port is (number, `http`, `tcp` or ``)."""
    kinds = {"http": workload_pb2.HTTP11, "tcp": workload_pb2.TCP, "": workload_pb2.UNKNOWN}
    return workload_pb2.Address(
        service=workload_pb2.Service(
            name=name,
            namespace=namespace,
            hostname=fqdn(name, namespace),
            addresses=[workload_pb2.NetworkAddress(address=pack_address(vip))],
            ports=[
                workload_pb2.Port(service_port=port, target_port=port, app_protocol=kinds[kind])
                for port, kind in ports
            ],
        )
    )


def workload(
    name: str,
    address: str,
    *,
    namespace: str = "default",
    node: str = "node-a",
    account: str = "default",
    labels: Mapping[str, str] | None = None,
    services: Mapping[str, tuple[int, int]] | None = None,
) -> Any:
    """An Address with a workload; `services` maps a service's name to (service port, target port)."""
    message = workload_pb2.Workload(
        uid=f"Kubernetes//Pod/{namespace}/{name}",
        name=name,
        namespace=namespace,
        addresses=[pack_address(address)],
        node=node,
        service_account=account,
        workload_name=name.rpartition("-")[0] or name,
        canonical_name=name.rpartition("-")[0] or name,
        canonical_revision="latest",
        trust_domain="cluster.local",
        cluster_id="Kubernetes",
    )
    if labels is not None:
        struct = struct_pb2.Struct()
        struct.update(labels)
        extension = message.extensions.add(name="nodeagent.labels")
        extension.config.Pack(struct)
    for host, (port, target) in (services or {}).items():
        ports = message.services[f"{namespace}/{fqdn(host, namespace)}"]
        ports.ports.add(service_port=port, target_port=target)
    return workload_pb2.Address(workload=message)
