"""Tunnels to somebody who stands before the destination: real Envoy as waypoint, and gateways between networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.hbone_engine import PORT
from harness.hbone_scene import (
    APP_PORT,
    BAGGAGE,
    DB,
    VIRTUAL,
    WEB,
    Scene,
    Wire,
    assignment,
    echo,
    envoy_server,
    hbone_scene,
    line,
)
from harness.netns import Namespace
from harness.requirements import require

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

GATE = "spiffe://cluster.local/ns/shop/sa/gate"
SERVICE_PORT = 80


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    require("root", "nft", "engine", "ip")
    with hbone_scene(tmp_path) as scene:
        yield scene


def start_gate(scene: Scene, target: int, *, identity: str = GATE, domain: str = "*") -> Namespace:
    """Envoy in a pod of its own: what it is asked for goes to this port of db. web is enrolled."""
    gate = scene.network.add("gate", default_route=True)
    inside = assignment("app", scene.db.v4, target)
    scene.start_envoy(gate, envoy_server(scene, identity, inside, domain=domain), PORT)
    scene.enrol(scene.web, WEB, BAGGAGE)
    return gate


def route_by(scene: Scene, gate: Namespace, **inner: str) -> None:
    """What web sends to the service's address goes through a tunnel to the gate."""
    service = {"address": VIRTUAL, "port": SERVICE_PORT, "target": SERVICE_PORT}
    scene.engine.ask("route", view=WEB, **service, identities=GATE, gateway=gate.v4, **inner)


@pytest.mark.envoy
def test_envoy_is_the_waypoint_of_a_service(scene: Scene) -> None:
    """It is asked for the service's address and port, in web's name, and decides where that is."""
    gate = start_gate(scene, APP_PORT, domain=f"{VIRTUAL}:{SERVICE_PORT}")
    route_by(scene, gate)
    wire = Wire(scene.network.fabric)
    payload = b"by way of the waypoint " * 100_000
    client = scene.connect(VIRTUAL, SERVICE_PORT)
    assert line(client) == gate.v4
    assert echo(client, payload) == payload
    wire.close()
    assert wire.ports == {PORT, APP_PORT}, "and on to the application by the waypoint itself"
    (record, *_) = scene.records(inbound=False)
    assert record["principal"] == GATE
    assert record["mutual_tls"]


@pytest.mark.envoy
def test_somebody_else_is_no_waypoint(scene: Scene) -> None:
    other = "spiffe://cluster.local/ns/shop/sa/other"
    route_by(scene, start_gate(scene, APP_PORT, identity=other))
    with pytest.raises(ConnectionResetError):
        scene.connect(VIRTUAL, SERVICE_PORT).recv(1)
    (record,) = scene.records(inbound=False)
    assert record["upstream_failure"] == f"HBONE: SAN {other} not in {{{GATE}}}"


SERVICE = "db.shop.svc.cluster.local"


def through_gateway(scene: Scene) -> Namespace:
    """Envoy as the gateway of db's network: what comes for the service is passed on to db's tunnel port. web sends
    there what is for the service."""
    gate = start_gate(scene, PORT, domain=f"{SERVICE}:{SERVICE_PORT}")
    route_by(scene, gate, inner=DB, authority=f"{SERVICE}:{SERVICE_PORT}", network="near")
    return gate


def check_gateway(scene: Scene, seen: str) -> None:
    wire = Wire(scene.network.fabric)
    payload = b"to another network " * 100_000
    for _ in range(3):
        client = scene.connect(VIRTUAL, SERVICE_PORT)
        assert line(client) == seen
        assert echo(client, payload) == payload
    wire.close()
    assert wire.ports == {PORT}
    assert b"to another network" not in wire.bytes, "the gateway does not see it either"
    (record, *_) = scene.records(inbound=False)
    assert record["principal"] == DB, "who answers, not who passes it on"
    counters = scene.engine.ask("counters")
    assert counters["hbone_dialed_total"] <= 4, "two for each worker"


@pytest.mark.envoy
def test_another_network_is_reached_by_a_tunnel_within_its_gateways(scene: Scene) -> None:
    gate = through_gateway(scene)
    scene.enrol(scene.db, DB)
    scene.far.ask("name", workload=1, host=SERVICE, port=SERVICE_PORT, target=APP_PORT)
    check_gateway(scene, gate.v4)
    assert scene.records(inbound=True)[0]["principal"] == WEB, "the gateway passes on who asks"


@pytest.mark.envoy
def test_envoy_in_another_network_is_told_from_which(scene: Scene) -> None:
    through_gateway(scene)
    app = assignment("app", "127.0.0.1", APP_PORT)
    headers = {"x-forwarded-network": "near"}
    domain = f"{SERVICE}:{SERVICE_PORT}"
    scene.start_envoy(scene.db, envoy_server(scene, DB, app, domain=domain, headers=headers), PORT)
    check_gateway(scene, "127.0.0.1")
