"""TCP connections as the kernel tells of them, and their end by force, on real sockets in a namespace."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from harness import Namespace, require
from harness.processes import wait_until

from nodeagent.dataplane.sock_diag import (
    CONNECTED,
    UNFINISHED,
    DatagramSocket,
    DiagSocket,
    Ends,
    TcpSocket,
    TcpState,
    probe_destroy,
)
from nodeagent.errors import CapabilityError
from nodeagent.snapshot.address import parse_address

pytestmark = pytest.mark.netns

FAMILIES = {
    "v4": (socket.AF_INET, "127.0.0.1"),
    "v6": (socket.AF_INET6, "::1"),
    "mapped": (socket.AF_INET6, "::ffff:127.0.0.1"),
}


@dataclass
class Pair:
    """A connection within the namespace."""

    client: socket.socket
    server: socket.socket

    @property
    def ends(self) -> Ends:
        (source, source_port), (destination, destination_port) = (
            side.getsockname()[:2] for side in (self.client, self.server)
        )
        return Ends(parse_address(source), source_port, parse_address(destination), destination_port)

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    require("root")
    namespace = Namespace("diag-unit")
    try:
        yield namespace
    finally:
        namespace.close()


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, pod: Namespace) -> Iterator[Pair]:
    connected = _connect(pod, request.param)
    yield connected
    connected.close()


def _connect(pod: Namespace, family: str, device: str = "") -> Pair:
    kind, address = FAMILIES[family]

    def make() -> Pair:
        with socket.socket(kind, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            client = socket.socket(kind, socket.SOCK_STREAM)
            if device:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            client.settimeout(5)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            server.settimeout(5)
            return Pair(client, server)

    return pod.run(make)


def _connections(pod: Namespace, states: frozenset[TcpState] = CONNECTED) -> list[TcpSocket]:
    def look() -> list[TcpSocket]:
        with DiagSocket() as diag:
            return diag.connections(states)

    return pod.run(look)


def _client(pod: Namespace, pair: Pair) -> TcpSocket:
    return next(each for each in _connections(pod) if each.ends == pair.ends)


def _server(pod: Namespace, pair: Pair) -> TcpSocket:
    ends = pair.ends
    seen = Ends(ends.destination, ends.destination_port, ends.source, ends.source_port)
    return next(each for each in _connections(pod) if each.ends == seen)


def _destroy(pod: Namespace, connection: TcpSocket) -> bool:
    def do() -> bool:
        with DiagSocket() as diag:
            return diag.destroy(connection)

    return pod.run(do)


def test_payload_is_told_without_syn_and_fin(pod: Namespace, pair: Pair) -> None:
    assert (_client(pod, pair).sent, _client(pod, pair).received) == (0, 0)
    pair.client.sendall(b"x" * 1000)
    assert len(pair.server.recv(1000, socket.MSG_WAITALL)) == 1000
    pair.server.sendall(b"y" * 70)
    assert len(pair.client.recv(70, socket.MSG_WAITALL)) == 70
    assert (_client(pod, pair).sent, _client(pod, pair).received) == (1000, 70)
    assert (_server(pod, pair).sent, _server(pod, pair).received) == (70, 1000)
    pair.client.shutdown(socket.SHUT_WR)
    wait_until(lambda: _client(pod, pair).state is TcpState.FIN_WAIT2, "the end of one direction")
    assert _server(pod, pair).state is TcpState.CLOSE_WAIT
    assert (_client(pod, pair).sent, _client(pod, pair).received) == (1000, 70)
    assert (_server(pod, pair).sent, _server(pod, pair).received) == (70, 1000)


def test_a_socket_is_known_by_its_cookie(pod: Namespace, pair: Pair) -> None:
    so_cookie = 57  # asm-generic/socket.h
    found = _client(pod, pair)
    assert found.cookie == int.from_bytes(pair.client.getsockopt(socket.SOL_SOCKET, so_cookie, 8), "little")
    assert found.inode
    assert found.rtt_us > 0


def test_one_connection_is_ended_on_both_sides(pod: Namespace, pair: Pair) -> None:
    others = [_connect(pod, family) for family in FAMILIES]
    connection = _client(pod, pair)
    assert _destroy(pod, connection)
    assert _refusal(pair.client) == errno.ECONNABORTED
    assert _refusal(pair.server) == errno.ECONNRESET
    assert not _destroy(pod, connection), "it is gone"
    for other in others:
        other.client.sendall(b"still here")
        assert other.server.recv(10) == b"still here"
        other.close()


def _refusal(side: socket.socket) -> int | None:
    try:
        side.recv(1)
    except OSError as error:
        return error.errno
    return None


def test_another_connection_between_the_same_ends_is_spared(pod: Namespace, pair: Pair) -> None:
    connection = _client(pod, pair)
    assert not _destroy(pod, replace(connection, cookie=connection.cookie + 1))
    pair.client.sendall(b"!")
    assert pair.server.recv(1) == b"!"


def test_what_is_bound_to_a_device_is_found(pod: Namespace) -> None:
    pair = _connect(pod, "v4", device="lo")
    assert _client(pod, pair).device == 1
    assert _destroy(pod, _client(pod, pair))
    pair.close()


def test_a_connection_without_an_answer_is_ended(pod: Namespace) -> None:
    pod.ip("link", "add", "here", "type", "veth", "peer", "name", "nobody")
    pod.ip("addr", "add", "192.0.2.1/24", "dev", "here")
    for device in ("here", "nobody"):
        pod.ip("link", "set", device, "up")

    def begin() -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("192.0.2.2", 80))
        return client

    client = pod.run(begin)
    [connection] = [each for each in _connections(pod, UNFINISHED) if each.state is TcpState.SYN_SENT]
    assert _destroy(pod, connection)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
    client.close()


def test_the_probe_names_what_is_missing(pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_destroy(pod.handle)
    monkeypatch.setattr(DiagSocket, "request", lambda *_: errno.EOPNOTSUPP)
    with pytest.raises(CapabilityError, match="CONFIG_INET_DIAG_DESTROY"):
        probe_destroy(pod.handle)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connected_udp_socket_is_ended(pod: Namespace, family: str) -> None:
    """And no other one, of those that go to the same address; it may connect again."""
    kind, address = FAMILIES[family]
    doomed, other = (pod.run(lambda: socket.socket(kind, socket.SOCK_DGRAM)) for _ in range(2))
    with doomed, other:
        for each in (doomed, other):
            each.connect((address, 9))
        ends = _udp_ends(doomed)
        found = next(each for each in _datagram_sockets(pod) if each.ends == ends)
        own_group = Path("/proc/self/cgroup").read_text().strip().split("::")[-1]
        assert found.cgroup == Path("/sys/fs/cgroup", own_group.lstrip("/")).stat().st_ino
        assert _destroy(pod, found)
        with pytest.raises(ConnectionAbortedError):
            doomed.recv(1)
        with pytest.raises(OSError, match="Destination address required"):
            doomed.send(b"x")
        assert not _destroy(pod, found), "it is connected no more"
        assert [each.ends for each in _datagram_sockets(pod)] == [_udp_ends(other)]
        doomed.connect((address, 9))
        assert len(_datagram_sockets(pod)) == 2


def _datagram_sockets(pod: Namespace) -> list[DatagramSocket]:
    def look() -> list[DatagramSocket]:
        with DiagSocket() as diag:
            return diag.datagram_sockets()

    return pod.run(look)


def _udp_ends(sock: socket.socket) -> Ends:
    own, peer = sock.getsockname(), sock.getpeername()
    return Ends(parse_address(own[0]), own[1], parse_address(peer[0]), peer[1])
