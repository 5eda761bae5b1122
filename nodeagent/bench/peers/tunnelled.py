"""Two nodes with a tunnel (CONNECT over mutual TLS) between them: nodeagent's, a pair of Envoys', or none.

Each is a lab with the client on one node and the back end on the other. nodeagent captures both pods. The Envoys are in
the pods, in labs without agents: one gets the client's connections by a redirect, as a sidecar does, the other one is
the server of its tunnels.
HTTP is parsed and routed at both ends, by the Envoys with internal listeners before and behind the tunnel, as Istio
configures its sidecars for HBONE; other services are TCP. Both sides are TLS 1.3 with P-256 certificates, and windows
are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from nodeagent import __version__
from nodeagent.bench.certificates import Certified, certify
from nodeagent.bench.labs import HOST, BenchLab, Shape
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.peers.envoy import Envoy, lean, start_envoy, tls_socket
from nodeagent.bench.results import DIRECT, SUBJECT
from nodeagent.bench.services import (
    ROUTER,
    SERVICES,
    Service,
    cluster,
    filter_type,
    http_filter,
    listener,
    socket_address,
    tcp_filter,
)
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError

_TUNNEL_PORT: Final = 15008
_STREAM_WINDOW: Final = 1 << 20
_WINDOW: Final = 16 << 20
_MAX_STREAMS: Final = 200
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HTTP2: Final = {
    "allow_connect": True,
    "initial_stream_window_size": _STREAM_WINDOW,
    "initial_connection_window_size": _WINDOW,
}


class TwoNodes(Peer):
    """The lab; `plain` is without agents."""

    plain: ClassVar[bool] = True

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring the lab up, with its processes on their cores."""
        if config.workers != 1:
            raise BenchError("a lab's agents have one worker; tunnels go with --workers 1")
        shape = Shape(nodes=2, plain=self.plain, identity=not self.plain)
        lab = BenchLab.bring_up(stage, config, f"t{self.name[0]}", shape)
        return Running(self.name, lab.targets(), (lab,), lab.pod("client"), HOST)


class TunnelledSubject(TwoNodes):
    """Captured by nodeagent at both ends."""

    name: ClassVar[str] = SUBJECT
    index: ClassVar[int] = 1
    plain: ClassVar[bool] = False

    def find(self) -> str:
        """Its version."""
        return f"{__version__}, a pair"


class PlainNodes(TwoNodes):
    """The same pods in plain TCP."""

    name: ClassVar[str] = DIRECT
    index: ClassVar[int] = 0

    def find(self) -> str:
        """Always there."""
        return "the same lab without agents"


class EnvoyPair(Peer):
    """An Envoy at both ends."""

    name: ClassVar[str] = "envoy"
    index: ClassVar[int] = 2

    def find(self) -> str:
        """Its version."""
        return f"{Envoy().find()}, a pair"

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring a lab up without agents, and the Envoys in its pods."""
        lab = BenchLab.bring_up(stage, config, f"t{self.name[0]}", Shape(nodes=2, plain=True))
        running = Running(self.name, {}, (lab,), lab.pod("client"), HOST)
        try:
            ports = {service.name: self.port(service) for service in SERVICES}
            running.targets = lab.redirect(stage, "client", ports)
            client, server = certify(stage.folder, "client"), certify(stage.folder, "backend")
            for name, pod, bootstrap, listening in (
                ("envoy-server", "backend", _server(lab.backend_address, server, client), [_TUNNEL_PORT]),
                ("envoy-client", "client", _client(self, lab.backend_address, client, server),
                 [self.port(service) for service in services]),
            ):  # fmt: skip
                process = start_envoy(stage, name, lean(bootstrap), config.workers, namespace=lab.pod(pod))
                running.processes = (process, *running.processes)
                process.wait_until_listening(listening)
        except BaseException:
            running.__exit__(None, None, None)
            raise
        return running


TUNNELLED: Final[tuple[Peer, ...]] = (TunnelledSubject(), PlainNodes(), EnvoyPair())


def _client(peer: Peer, address: str, own: Certified, other: Certified) -> dict[str, Any]:
    """Envoy in the client's pod: a listener for each service, whose connections become streams of tunnels."""
    http2 = {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": _HTTP2},
    }
    tunnel = cluster(
        "tunnel",
        socket_address(address, _TUNNEL_PORT),
        transport_socket=tls_socket("UpstreamTlsContext", own, other, "h2"),
        typed_extension_protocol_options={_HTTP_OPTIONS: http2},
    )
    listeners, clusters = [], [tunnel]
    for service in SERVICES:
        here = ("0.0.0.0", peer.port(service))  # noqa: S104
        config = {"hostname": f"{address}:{service.backend_port}"}
        tunnelling = tcp_filter(service, "tunnel", tunneling_config=config)
        if service.http:
            listeners.append(listener(service.name, *here, http_filter(service)))
            listeners.append(_internal_listener(service, tunnelling))
            clusters.append(cluster(service.name, _internal_address(service)))
        else:
            listeners.append(listener(service.name, *here, tunnelling))
    return _bootstrap(listeners, clusters)


def _server(address: str, own: Certified, other: Certified) -> dict[str, Any]:
    """Envoy in the back end's pod: takes CONNECT and leads each stream to the service that it names."""
    outer = listener("tunnel", "0.0.0.0", _TUNNEL_PORT, _terminator(address))  # noqa: S104
    outer["filter_chains"][0]["transport_socket"] = tls_socket("DownstreamTlsContext", own, other, "h2")
    listeners, clusters = [outer], []
    for service in SERVICES:
        application = socket_address("127.0.0.1", service.backend_port)
        if service.http:
            listeners.append(_internal_listener(service, http_filter(service, "application")))
            clusters.append(cluster("application", application))
        clusters.append(cluster(service.name, _internal_address(service) if service.http else application))
    return _bootstrap(listeners, clusters)


def _terminator(address: str) -> dict[str, Any]:
    """The connection manager that takes CONNECT: to the cluster of the service that is named."""
    upgrade = {"upgrade_type": "CONNECT", "connect_config": {}}
    hosts = [
        {
            "name": service.name,
            "domains": [f"{address}:{service.backend_port}"],
            "routes": [
                {
                    "match": {"connect_matcher": {}},
                    "route": {"cluster": service.name, "timeout": "0s", "upgrade_configs": [upgrade]},
                }
            ],
        }
        for service in SERVICES
    ]
    manager = {
        "@type": filter_type("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "tunnel",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {**_HTTP2, "max_concurrent_streams": _MAX_STREAMS},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"name": "tunnel", "virtual_hosts": hosts},
        "http_filters": [ROUTER],
    }
    return {"name": "tunnel", "typed_config": manager}


def _internal_listener(service: Service, network: dict[str, Any]) -> dict[str, Any]:
    filters = [{"filters": [network]}]
    return {"name": f"internal-{service.name}", "internal_listener": {}, "filter_chains": filters}


def _internal_address(service: Service) -> dict[str, Any]:
    return {"envoy_internal_address": {"server_listener_name": f"internal-{service.name}"}}


def _bootstrap(listeners: list[dict[str, Any]], clusters: list[dict[str, Any]]) -> dict[str, Any]:
    extension = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    return {
        "bootstrap_extensions": [
            {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": extension}}
        ],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }
