"""Istio's mTLS between proxies, with real Envoy as the sidecar at the other end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.hbone_scene import (
    APP_PORT,
    DB,
    NETWORK,
    VIRTUAL_PORT,
    WEB,
    Scene,
    assignment,
    echo,
    hbone_scene,
    line,
)
from harness.processes import wait_until
from harness.requirements import require

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(120)]

SIDECAR_PORT = 9100
MTLS = 1  # na_tunnel_kind
PAYLOAD = b"between proxies " * 50_000


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    require("root", "nft", "engine")
    with hbone_scene(tmp_path) as made:
        yield made


def tls(scene: Scene, identity: str, context: str, peer: str, *alpn: str) -> dict[str, Any]:
    socket = scene.tls_files(identity, context, peer)
    socket["typed_config"]["common_tls_context"]["alpn_protocols"] = list(alpn)
    return socket


def proxy(
    address: str,
    port: int,
    target: dict[str, Any],
    *,
    downstream: dict[str, Any] | None = None,
    upstream: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Envoy that passes TCP on, with these transport sockets."""
    tcp_proxy = {"@type": f"{NETWORK}.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": "target"}
    chain: dict[str, Any] = {"filters": [{"name": "tcp", "typed_config": tcp_proxy}]}
    cluster = {"name": "target", "connect_timeout": "5s", "load_assignment": target}
    if downstream is not None:
        chain["transport_socket"] = downstream
    if upstream is not None:
        cluster["transport_socket"] = upstream
    where = {"socket_address": {"address": address, "port_value": port}}
    return {
        "static_resources": {
            "listeners": [{"address": where, "filter_chains": [chain]}],
            "clusters": [cluster],
        }
    }


def sidecar_of_web(scene: Scene, identity: str, *alpn: str) -> None:
    socket = tls(scene, identity, "UpstreamTlsContext", DB, *alpn)
    target = assignment("target", scene.db.v4, APP_PORT)
    scene.start_envoy(scene.web, proxy("127.0.0.1", 7000, target, upstream=socket), 7000)


@pytest.mark.parametrize(
    "alpn",
    [("istio",), ("istio-http/1.1", "istio", "http/1.1"), ("istio-peer-exchange", "istio")],
    ids=["TCP", "HTTP", "with the exchange of metadata"],
)
def test_a_sidecar_comes_in_as_who_it_is(scene: Scene, alpn: tuple[str, ...]) -> None:
    scene.enrol(scene.db, DB)
    sidecar_of_web(scene, WEB, *alpn)
    for _ in range(3):
        client = scene.connect("127.0.0.1", 7000)
        assert line(client) == scene.web.v4, "the application sees the sidecar's own address"
        assert echo(client, PAYLOAD) == PAYLOAD
    for record in scene.records(inbound=True, count=3):
        assert record["principal"] == WEB
        assert record["mutual_tls"]
    counters = scene.far.ask("counters")
    assert counters["mtls_accepted_total"] == 3
    assert counters["mtls_resumed_total"] >= 1, "Envoy comes back with the session"


def test_a_sidecar_of_another_trust_domain_is_refused(scene: Scene) -> None:
    scene.enrol(scene.db, DB)
    sidecar_of_web(scene, "spiffe://elsewhere/ns/shop/sa/web", "istio")
    assert scene.connect("127.0.0.1", 7000).recv(1) == b""
    wait_until(lambda: scene.far.ask("counters")["mtls_handshake_fail_total"] >= 1, "the refusal is counted")
    assert scene.far.ask("counters")["mtls_accepted_total"] == 0


def test_tls_of_the_application_is_left_to_it(scene: Scene) -> None:
    scene.enrol(scene.db, DB)
    sidecar_of_web(scene, WEB, "http/1.1")  # no proxy says so; the application is no TLS server
    scene.connect("127.0.0.1", 7000)
    wait_until(lambda: bool(scene.records(inbound=True)), "the connection reached the application")
    assert scene.far.ask("counters")["mtls_accepted_total"] == 0


def to_sidecar_of_db(scene: Scene, expected: str) -> None:
    """db has a sidecar that takes mTLS of web alone; web's engine knows of it."""
    socket = tls(scene, DB, "DownstreamTlsContext", WEB, "h2", "http/1.1")
    target = assignment("target", "127.0.0.1", APP_PORT)
    scene.start_envoy(scene.db, proxy("0.0.0.0", SIDECAR_PORT, target, downstream=socket), SIDECAR_PORT)
    scene.enrol(scene.web, WEB)
    scene.engine.ask(
        "route",
        view=WEB,
        address=scene.db.v4,
        port=VIRTUAL_PORT,
        target=SIDECAR_PORT,
        identities=expected,
        kind=MTLS,
    )


def test_a_sidecar_is_reached_as_who_it_must_be(scene: Scene) -> None:
    to_sidecar_of_db(scene, DB)
    for _ in range(3):
        client = scene.connect(scene.db.v4, VIRTUAL_PORT)
        assert line(client) == "127.0.0.1"
        assert echo(client, PAYLOAD) == PAYLOAD
    for record in scene.records(inbound=False, count=3):
        assert record["principal"] == DB
        assert record["mutual_tls"]


def test_a_sidecar_that_is_somebody_else_gets_nothing(scene: Scene) -> None:
    to_sidecar_of_db(scene, "spiffe://cluster.local/ns/shop/sa/other")
    with pytest.raises(ConnectionResetError):
        scene.connect(scene.db.v4, VIRTUAL_PORT).recv(1)
    (record, *_) = scene.records(inbound=False)
    assert DB in record["upstream_failure"]
