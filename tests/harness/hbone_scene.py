"""Pods on two nodes, each with an engine that does HBONE for it, real Envoy where a test wants it, and a CA."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import pki
from harness.cgroups import scratch_cgroup
from harness.envoy_process import start_envoy
from harness.hbone_engine import PORT, HboneEngine
from harness.netns import Namespace, Network
from harness.processes import wait_until
from nodeagent.controlplane.ca.authority import Authority

WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/shop/sa/db"
BAGGAGE = "k8s.namespace.name=shop,k8s.deployment.name=web"
APP_PORT, VIRTUAL_PORT = 9000, 80
VIRTUAL = "10.96.0.1"
NETWORK = "type.googleapis.com/envoy.extensions.filters.network"
ETH_P_ALL = 3


class Wire:
    """What passes the bridge's ports: TCP ports and payloads."""

    def __init__(self, fabric: Namespace) -> None:
        self._socket = fabric.run(self._open)
        self._ended = threading.Event()
        self.ports: set[int] = set()
        self.bytes = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @staticmethod
    def _open() -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        raw.settimeout(0.1)
        return raw

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                frame = self._socket.recv(65536)
            except TimeoutError:
                continue
            if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
                tcp = frame[14 + (frame[14] & 15) * 4 :]
                self.ports.add(min(int.from_bytes(tcp[0:2]), int.from_bytes(tcp[2:4])))
                self.bytes += tcp[(tcp[12] >> 4) * 4 :]

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


@dataclass
class Scene:
    """Two pods and a CA. Who does HBONE for them is the test's to say: an engine for each, or Envoy."""

    network: Network
    folder: Path
    engine: HboneEngine
    """Of web's node."""
    far: HboneEngine
    """Of db's node."""
    web: Namespace
    db: Namespace
    ca: Authority
    extra: list[Any] = field(default_factory=list)

    def certificate(self, identity: str, lifetime: float = 3600.0) -> tuple[tuple[str, ...], str]:
        """Chain and key, in PEM."""
        key = pki.p256()
        return pki.leaf(self.ca, key, pki.uri(identity), lifetime=lifetime), pki.key_pem(key).decode()

    def engine_of(self, identity: str) -> HboneEngine:
        return self.far if identity == DB else self.engine

    def identify(
        self,
        identity: str,
        lifetime: float = 3600.0,
        engine: HboneEngine | None = None,
        trusted: Sequence[str] = (),
    ) -> None:
        chain, key = self.certificate(identity, lifetime)
        used = engine or self.engine_of(identity)
        used.set_identity(identity, chain, key, self.ca.bundle, trusted)

    def enrol(
        self, namespace: Namespace, identity: str, baggage: str = "", engine: HboneEngine | None = None
    ) -> None:
        (engine or self.engine_of(identity)).enrol(namespace, identity, baggage)
        self.identify(identity, engine=engine)

    def route(self, identities: str = DB, *, view: str = WEB, **by: str) -> None:
        """What web sends to the virtual address goes to db's application."""
        self.engine.ask(
            "route",
            view=view,
            address=self.db.v4,
            port=VIRTUAL_PORT,
            target=APP_PORT,
            identities=identities,
            **by,
        )

    def start_app(self) -> None:
        """An application that says who is calling, then echoes."""
        program = (
            "import socketserver\n"
            "class H(socketserver.BaseRequestHandler):\n"
            "  def handle(self):\n"
            "    self.request.sendall(f'{self.client_address[0]}\\n'.encode())\n"
            "    while data := self.request.recv(65536): self.request.sendall(data)\n"
            "class S(socketserver.ThreadingTCPServer):\n"
            "  allow_reuse_address = daemon_threads = True\n"
            "  request_queue_size = 128\n"
            f"S(('', {APP_PORT}), H).serve_forever()\n"
        )
        self.db.start([sys.executable, "-c", program]).wait_for_port(APP_PORT, 10)

    def start_envoy(self, namespace: Namespace, config: dict[str, Any], port: int) -> None:
        start_envoy(namespace, config, self.folder / f"{namespace.name}.json", port)

    def tls_files(self, identity: str, context: str, peer: str) -> dict[str, Any]:
        """Envoy's transport socket for HBONE as that identity, with peers of that identity."""
        chain, key = self.certificate(identity)
        stem = f"{context}.{identity.rpartition('/')[2]}"
        for name, text in (("chain", "".join(chain[:-1])), ("key", key), ("root", self.ca.bundle)):
            (self.folder / f"{stem}.{name}.pem").write_text(text)
        base = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}"
        common = {
            "alpn_protocols": ["h2"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(self.folder / f"{stem}.chain.pem")},
                    "private_key": {"filename": str(self.folder / f"{stem}.key.pem")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(self.folder / f"{stem}.root.pem")},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
            },
        }
        typed: dict[str, Any] = {"@type": base, "common_tls_context": common}
        if context.startswith("Downstream"):
            typed["require_client_certificate"] = True
        return {"name": "tls", "typed_config": typed}

    def connect(self, address: str, port: int, source: Namespace | None = None) -> socket.socket:
        client = (source or self.web).run(lambda: socket.create_connection((address, port), 5))
        self.extra.append(client)
        return client

    def records(
        self, *, inbound: bool, count: int = 1, engine: HboneEngine | None = None
    ) -> list[dict[str, Any]]:
        """The next access records of one side."""
        found: list[dict[str, Any]] = []
        asked = engine or (self.far if inbound else self.engine)

        def enough() -> bool:
            found.extend(record for record in asked.ask("records") if record["inbound"] is inbound)
            return len(found) >= count

        wait_until(enough, f"{count} access records, got {found}")
        return found


@contextmanager
def hbone_scene(folder: Path) -> Iterator[Scene]:
    """The pods with the application running, and both engines without configuration."""
    with (
        Network("hb") as network,
        scratch_cgroup("hbone") as group,
        scratch_cgroup("hbone-far") as far_group,
        HboneEngine(group.join) as engine,
        HboneEngine(far_group.join) as far,
    ):
        web, db = network.add("web", default_route=True), network.add("db", default_route=True)
        scene = Scene(network, folder, engine, far, web, db, pki.authority(folder / "ca"))
        scene.start_app()
        try:
            yield scene
        finally:
            for client in scene.extra:
                client.close()


def line(client: socket.socket) -> str:
    """The line that the application says first."""
    text = b""
    while not text.endswith(b"\n"):
        piece = client.recv(1)
        assert piece, f"ended after {text!r}"
        text += piece
    return text.decode().strip()


def echo(client: socket.socket, payload: bytes) -> bytes:
    """Send and end, read to the end."""

    def send() -> None:
        client.sendall(payload)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = b"".join(iter(lambda: client.recv(65536), b""))
    sender.join()
    return received


def assignment(cluster: str, address: str, port: int) -> dict[str, Any]:
    endpoint = {"address": {"socket_address": {"address": address, "port_value": port}}}
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}


def envoy_server(
    scene: Scene,
    identity: str,
    app: dict[str, Any],
    *,
    peer: str = WEB,
    domain: str = "*",
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Envoy as the end of tunnels: takes CONNECT for `domain`, with these headers, on 15008, and leads it to the
    cluster `app`."""
    upgrade = {"upgrade_type": "CONNECT"}
    route = {
        "match": {
            "connect_matcher": {},
            "headers": [
                {"name": name, "string_match": {"exact": value}} for name, value in (headers or {}).items()
            ],
        },
        "route": {"cluster": "app", "upgrade_configs": [upgrade | {"connect_config": {}}]},
    }
    manager = {
        "@type": f"{NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [upgrade],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": [domain], "routes": [route]}]},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    chain = {
        "filters": [{"name": "hcm", "typed_config": manager}],
        "transport_socket": scene.tls_files(identity, "DownstreamTlsContext", peer),
    }
    listener = {"socket_address": {"address": "0.0.0.0", "port_value": PORT}}
    return {
        "static_resources": {
            "listeners": [{"address": listener, "filter_chains": [chain]}],
            "clusters": [{"name": "app", "connect_timeout": "1s", "load_assignment": app}],
        }
    }
