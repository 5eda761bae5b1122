"""Authorization services that are asked about peers of tunnels, and reached through tunnels themselves."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.hbone_engine import PORT
from harness.hbone_scene import DB, VIRTUAL_PORT, WEB, Scene, Wire, hbone_scene, line
from harness.requirements import require
from harness.scripted_authorizer import GrpcAuthorizer, denied, response

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

AUTHORIZER = 9901


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    require("root", "nft", "engine", "ip")
    with hbone_scene(tmp_path) as scene:
        scene.enrol(scene.web, WEB)
        scene.enrol(scene.db, DB)
        scene.route()
        yield scene


@pytest.fixture
def service(scene: Scene) -> Iterator[GrpcAuthorizer]:
    made = GrpcAuthorizer(scene.web, AUTHORIZER, address="0.0.0.0")
    yield made
    made.stop()


def ask_web(scene: Scene, identities: str = WEB) -> None:
    """Connections and requests to db's ports are judged by the service in web's pod."""
    scene.far.ask("callout", workload=1, address=scene.web.v4, port=AUTHORIZER, identities=identities)


def http(scene: Scene) -> bytes:
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    client.sendall(b"GET /a HTTP/1.1\r\nHost: db\r\nConnection: close\r\n\r\n")
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


def test_peers_are_named_and_the_question_is_tunnelled(scene: Scene, service: GrpcAuthorizer) -> None:
    ask_web(scene)
    service.answer = lambda request: denied('body: "by the service"')
    wire = Wire(scene.network.fabric)
    received = http(scene)
    wire.close()
    assert received.startswith(b"HTTP/1.1 403 ")
    assert received.endswith(b"by the service")
    assert wire.ports == {PORT}
    attributes = service.requests[0].attributes
    assert (attributes.source.principal, attributes.destination.principal) == (WEB, DB)
    assert attributes.source.address.socket_address.address == scene.web.v4
    assert attributes.request.http.path == "/a"


def test_connections_of_tunnels_are_asked_about(scene: Scene, service: GrpcAuthorizer) -> None:
    ask_web(scene)
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    client.sendall(b"\x01\x02 this is no HTTP\n")
    assert line(client) == scene.web.v4
    assert service.requests[0].attributes.source.principal == WEB
    service.answer = lambda request: response("status { code: 7 }")
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    client.sendall(b"\x01\x02 nor is this\n")
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""


def test_a_service_that_is_somebody_else_is_not_asked(scene: Scene, service: GrpcAuthorizer) -> None:
    ask_web(scene, identities="spiffe://cluster.local/ns/shop/sa/other")
    assert http(scene).startswith(b"HTTP/1.1 403 ")
    assert service.requests == []


def test_a_renewed_certificate_changes_nothing(scene: Scene, service: GrpcAuthorizer) -> None:
    ask_web(scene)
    service.answer = lambda request: denied('body: "by the service"')
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    request = b"GET /a HTTP/1.1\r\nHost: db\r\n\r\n"
    client.sendall(request)
    assert _until(client, b"by the service")
    scene.identify(WEB)
    client = scene.connect(scene.db.v4, VIRTUAL_PORT)
    client.sendall(request)
    assert _until(client, b"by the service")
    assert len(service.requests) == 2


def _until(client: socket.socket, text: bytes) -> bool:
    received = b""
    while text not in received:
        chunk = client.recv(65536)
        assert chunk, received
        received += chunk
    return True
