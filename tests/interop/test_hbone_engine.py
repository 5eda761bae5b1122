"""HBONE between engines, and with real Envoy at either end, over certificates of our own CA."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.hbone_engine import PORT
from harness.hbone_scene import (
    APP_PORT,
    BAGGAGE,
    DB,
    NETWORK,
    VIRTUAL_PORT,
    WEB,
    Scene,
    Wire,
    assignment,
    echo,
    envoy_server,
    hbone_scene,
    line,
)
from harness.peer import peer_server
from harness.requirements import require

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

UF = 2


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    require("root", "nft", "engine", "ip")
    with hbone_scene(tmp_path) as scene:
        yield scene


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


@pytest.mark.parametrize("trusted", [(), ("cluster.local", "old.example")], ids=["stranger", "alias"])
def test_a_peer_of_another_trust_domain_needs_an_alias(scene: Scene, trusted: tuple[str, ...]) -> None:
    former = WEB.replace("cluster.local", "old.example")
    scene.enrol(scene.web, former)
    scene.enrol(scene.db, DB)
    scene.identify(DB, trusted=trusted)
    scene.route(view=former)
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    if trusted:
        assert line(client) == scene.web.v4
        client.close()
        (record,) = scene.records(inbound=True)
        assert (record["principal"], record["mutual_tls"]) == (former, True)
    else:
        with pytest.raises(ConnectionResetError):
            line(client)
        (record,) = scene.records(inbound=False)
        assert record["flags"] & UF
        assert scene.far.ask("counters")["hbone_handshake_fail_total"] >= 1


def test_on_one_node_there_is_no_tunnel_and_each_knows_the_other(scene: Scene) -> None:
    scene.enrol(scene.web, WEB, BAGGAGE)
    scene.enrol(scene.db, DB, engine=scene.engine)
    scene.route()
    payload = b"on this node only " * 100_000
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    assert line(client) == scene.web.v4
    assert echo(client, payload) == payload
    (near,) = scene.records(inbound=True, engine=scene.engine)
    assert (near["principal"], near["mutual_tls"], near["peer_baggage"]) == (WEB, True, BAGGAGE)
    counters = scene.engine.ask("counters")
    assert counters["neighbour_accepted_total"] == 1
    assert counters["hbone_dialed_total"] == 0


def test_a_connection_past_the_agent_has_no_identity(scene: Scene) -> None:
    """From web's own address, but not by the engine: web is not captured when it connects."""
    scene.enrol(scene.db, DB, engine=scene.engine)
    past = scene.connect(scene.db.v4, APP_PORT)
    assert line(past) == scene.web.v4
    scene.enrol(scene.web, WEB)
    scene.route()
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    line(client)
    past.close()
    client.close()
    records = scene.records(inbound=True, engine=scene.engine, count=2)
    assert {(record["principal"], record["mutual_tls"]) for record in records} == {("", False), (WEB, True)}


def test_connections_share_a_tunnel(scene: Scene) -> None:
    both_by_engine(scene)
    clients = [scene.connect(scene.db.v4, VIRTUAL_PORT) for _ in range(40)]
    assert {line(client) for client in clients} == {scene.web.v4}
    counters = scene.engine.ask("counters")
    assert counters["hbone_dialed_total"] <= 2, "one per worker"
    assert counters["hbone_streams_total"] == 40


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
    assert not [
        record for engine in (scene.engine, scene.far) for record in engine.ask("records") if record["flags"]
    ]


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


def test_nobody_takes_tunnels_in_place_of_a_dead_agent(scene: Scene) -> None:
    scene.enrol(scene.db, DB)
    scene.far.kill()
    with peer_server(scene.db, PORT), pytest.raises(ConnectionRefusedError):
        scene.connect(scene.db.v4, PORT)


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
    assert scene.far.ask("counters")["hbone_accepted_total"] == 1


@pytest.mark.envoy
def test_envoy_hears_why_it_is_refused(scene: Scene) -> None:
    scene.enrol(scene.db, DB)
    scene.start_envoy(scene.web, envoy_client(scene, f"{scene.db.v4}:1"), 7000)
    client = scene.connect("127.0.0.1", 7000)
    assert client.recv(1) == b"", "nothing listens on port 1: 503"
    assert scene.records(inbound=True)[0]["upstream_failure"] == "Connection refused"
    assert scene.far.ask("counters")["hbone_abuse_total"] == 0


@pytest.mark.envoy
def test_envoy_is_a_server_to_the_engine(scene: Scene) -> None:
    scene.start_envoy(scene.db, envoy_server(scene, DB, assignment("app", "127.0.0.1", APP_PORT)), PORT)
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
    scene.start_envoy(scene.db, envoy_server(scene, DB, assignment("app", "127.0.0.1", APP_PORT)), PORT)
    scene.engine.enrol(scene.web, WEB)
    chain, key = scene.certificate("spiffe://cluster.local/ns/shop/sa/other")
    scene.engine.set_identity(WEB, chain, key, scene.ca.bundle)
    scene.route()
    with pytest.raises(ConnectionResetError):
        scene.connect(scene.db.v4, VIRTUAL_PORT).recv(1)
    (record,) = scene.records(inbound=False)
    assert "the peer refused: TLS alert" in record["upstream_failure"], record
