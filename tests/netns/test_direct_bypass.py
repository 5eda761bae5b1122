"""Connections past the engine, accelerated: nothing is between two applications, and all is told of them as before."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness import require, scratch_cgroup
from harness.bypass_scene import CLIENT, FAMILIES, LIFE, BypassScene
from harness.processes import wait_until

from nodeagent.dataplane.bpf import BpfMap, pinned_map
from nodeagent.dataplane.bypass_flows import FlowTable
from nodeagent.dataplane.bypass_layout import REDIRECTED_SIZE, Event, EventKind
from nodeagent.dataplane.direct import Direct
from nodeagent.dataplane.ebpf_node import ABI, netns_cookie
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.routing import read_addresses
from nodeagent.dataplane.sock_diag import DiagSocket
from nodeagent.snapshot.address import widen_address

pytestmark = pytest.mark.netns


@pytest.fixture
def direct(bypass: BypassScene) -> Iterator[Direct]:
    """The client and the server of the scene have opted in."""
    require("root", "engine")
    pins = bypass.agent.pins
    assert pins is not None
    with scratch_cgroup("direct") as group, contextlib.closing(Direct(pins, group.group)) as direct:
        for namespace in (bypass.client, bypass.server):
            direct.admit(namespace.handle, [widen_address(raw) for raw in read_addresses(namespace.handle)])
        try:
            yield direct
        finally:
            direct.settle([])
            wait_until(lambda: not direct.tend(), "nothing is accelerated any more")


def _connect(scene: BypassScene, family: str) -> tuple[socket.socket, socket.socket]:
    target = scene.permit(family)

    def bind() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("::", 8080))
        made.listen(1)
        return made

    with scene.server.run(bind) as listener:
        client = scene.client.run(
            lambda: socket.socket(socket.AF_INET if family == "v4" else socket.AF_INET6)
        )
        client.connect((target, 80))
        return client, listener.accept()[0]


@dataclass
class _Client:
    number: int
    namespace: NetworkNamespace


@dataclass
class _Node:
    """Knows the client."""

    client: _Client

    def by_cookie(self, cookie: int) -> _Client:
        return self.client

    def by_address(self, address: bytes) -> None:
        return None


def _sampled(scene: BypassScene) -> list[tuple[int, int]]:
    """What live connections of the client have sent and received, as the agent samples it."""
    with _redirected(scene) as redirected:
        table = FlowTable(scene.maps.bypassed, _Node(_Client(CLIENT, scene.client.handle)), LIFE, redirected)
        found = table.sample([netns_cookie(scene.client.handle)]).sockets
    return [(each.sent, each.received) for each in found if each.ends.destination_port == 8080]


@contextlib.contextmanager
def _redirected(scene: BypassScene) -> Iterator[BpfMap]:
    assert scene.agent.pins is not None
    found = pinned_map(scene.agent.pins / f"v{ABI}" / "maps" / "redirected", 4, REDIRECTED_SIZE)
    assert found is not None
    try:
        yield found
    finally:
        found.close()


def _ended(scene: BypassScene) -> Event:
    wait_until(lambda: not scene.maps.flows(), "the connection to end")
    event = scene.maps.events()[-1]
    assert event.kind == EventKind.CLOSED
    return event


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["client", "server"])
def test_all_bytes_are_told_of(bypass: BypassScene, direct: Direct, family: str, first: str) -> None:
    before = direct.state().counters
    client, server = _connect(bypass, family)
    with client, server:
        client.sendall(b"x" * 1234)
        server.sendall(b"y" * 567)
        assert (len(server.recv(2000)), len(client.recv(2000))) == (1234, 567)
        assert _sampled(bypass) == [(1234, 567)], "also while it lives"
        order = (client, server) if first == "client" else (server, client)
        for end in order:
            end.close()
    event = _ended(bypass)
    assert (event.sent, event.received) == (1234, 567)
    counters = direct.state().counters
    assert counters["bytes"] - before["bytes"] == 1234 + 567
    assert bypass.captured() == 0
    with _redirected(bypass) as redirected:
        assert not list(redirected.written()), "nothing is left"


def test_bytes_of_both_ways_are_added_up(bypass: BypassScene, direct: Direct) -> None:
    """What waits too long goes by TCP."""
    client, server = _connect(bypass, "v4")
    size = 5_000_000
    with client, server:
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < size:
                sent += client.send(bytes(min(size - sent, 30_000)))
        client.close()
        got = 0
        while data := server.recv(1 << 20):
            got += len(data)
    event = _ended(bypass)
    assert got == sent == event.sent
    assert 0 < direct.state().counters["bytes"] < sent


def test_a_revoked_connection_ends_at_once(bypass: BypassScene, direct: Direct) -> None:
    client, server = _connect(bypass, "v4")
    with client, server:
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        port = client.getsockname()[1]

        def destroy() -> None:
            with DiagSocket() as diag:
                for each in diag.connections():
                    if each.ends.source_port == port:
                        diag.destroy(each)

        bypass.client.run(destroy)
        with pytest.raises(ConnectionError):
            client.sendall(b"y")
        with pytest.raises(ConnectionResetError):
            server.recv(1)
    assert _ended(bypass).sent == 1
