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
    listeners = [_listener(service, port_of(service, base)) for service in SERVICES]
    return {"static_resources": {"listeners": listeners, "clusters": [_cluster(s) for s in SERVICES]}}


def port_of(service: Service, base: int) -> int:
    """Where a proxy whose ports begin at `base` listens for a service."""
    return base + SERVICES.index(service)


def _listener(service: Service, port: int) -> dict[str, Any]:
    network = _http_filter(service) if service.http else _tcp_filter(service)
    return {
        "name": service.name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},  # noqa: S104
        "filter_chains": [{"filters": [network]}],
    }


def _http_filter(service: Service) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": service.name, "timeout": "0s"}}
    router = {"@type": _type("http.router.v3.Router"), "dynamic_stats": False, "suppress_envoy_headers": True}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _type("network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": service.name,
            "generate_request_id": False,
            "route_config": {
                "name": service.name,
                "virtual_hosts": [{"name": service.name, "domains": ["*"], "routes": [route]}],
            },
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        },
    }


def _tcp_filter(service: Service) -> dict[str, Any]:
    proxy = {
        "@type": _type("network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": service.name,
        "cluster": service.name,
    }
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.filters.{name}"


def _cluster(service: Service) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": service.backend_port}}
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {
        "name": service.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        # Breakers are raised: with the default of 1024 a proxy would refuse what it is to be measured with.
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, 1_000_000)]},
        "load_assignment": {
            "cluster_name": service.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
