"""What the back end offers and the proxies pass on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from nodeagent.bench.stage import Process, Stage, program


@dataclass(frozen=True, slots=True)
class Service:
    """A port of the back end. `bulk` says that a proxy may move its bytes by splice(2)."""

    name: str
    backend_port: int
    http: bool
    bulk: bool = False


HTTP: Final = Service("http", 9000, http=True)
"""Answers `GET /N` with N bytes."""
ECHO: Final = Service("echo", 9001, http=False)
"""Sends back what it gets."""
STREAM: Final = Service("stream", 9002, http=False, bulk=True)
"""Sends without end."""
SERVICES: Final = (HTTP, ECHO, STREAM)


def start_backend(stage: Stage) -> Process:
    """Start the back end with all services."""
    argv = [program("backend")]
    for service in SERVICES:
        argv += [f"--{service.name}", str(service.backend_port)]
    process = stage.spawn("backend", argv, stage.cores.load)
    process.wait_until_listening([service.backend_port for service in SERVICES])
    return process


def static_resources(base: int) -> dict[str, Any]:
    """Envoy configuration of a proxy for all services; nodeagent and Envoy get the very same.

    The port for a service is `base` plus its place in SERVICES.
    """
    listeners = [
        listener(s.name, "0.0.0.0", port_of(s, base), http_filter(s) if s.http else tcp_filter(s))  # noqa: S104
        for s in SERVICES
    ]
    clusters = [cluster(s.name, socket_address("127.0.0.1", s.backend_port)) for s in SERVICES]
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def port_of(service: Service, base: int) -> int:
    """Where a proxy whose ports begin at `base` listens for a service."""
    return base + SERVICES.index(service)


def listener(name: str, address: str, port: int, network: dict[str, Any]) -> dict[str, Any]:
    """An Envoy listener with one network filter."""
    return {
        "name": name,
        "address": socket_address(address, port),
        "filter_chains": [{"filters": [network]}],
    }


def http_filter(service: Service, cluster: str = "") -> dict[str, Any]:
    """A connection manager that sends all requests to a cluster (empty: the service's)."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster or service.name, "timeout": "0s"}}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": filter_type("network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": service.name,
            "generate_request_id": False,
            "route_config": {
                "name": service.name,
                "virtual_hosts": [{"name": service.name, "domains": ["*"], "routes": [route]}],
            },
            "http_filters": [ROUTER],
        },
    }


def tcp_filter(service: Service, cluster: str = "", **more: Any) -> dict[str, Any]:
    """A TCP proxy to a cluster (empty: the service's); `more` are further fields of it."""
    proxy = {
        "@type": filter_type("network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": service.name,
        "cluster": cluster or service.name,
        **more,
    }
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}


def filter_type(name: str) -> str:
    """Type URL of an Envoy filter's configuration."""
    return f"type.googleapis.com/envoy.extensions.filters.{name}"


ROUTER: Final = {
    "name": "envoy.filters.http.router",
    "typed_config": {
        "@type": filter_type("http.router.v3.Router"),
        "dynamic_stats": False,
        "suppress_envoy_headers": True,
    },
}
"""The last HTTP filter, lean."""


def socket_address(address: str, port: int) -> dict[str, Any]:
    """An Envoy address."""
    return {"socket_address": {"address": address, "port_value": port}}


def cluster(name: str, address: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An Envoy cluster with one endpoint; `more` are further fields of it."""
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        # Breakers are raised: with the default of 1024 a proxy would refuse what it is to be measured with.
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, 1_000_000)]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        **more,
    }
