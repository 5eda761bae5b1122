"""What is told of connections past the engine, and that their entries come and go with them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from harness.bypass_scene import FAMILIES, BypassScene
from harness.netns import Namespace
from harness.processes import wait_until

from nodeagent.dataplane.bypass_layout import Access, End, Event, EventKind

pytestmark = pytest.mark.netns

IPPROTO_MPTCP = 262  # linux/in.h
MSG_FASTOPEN, TCP_FASTOPEN = 0x20000000, 23  # linux/tcp.h
RESET_ON_CLOSE = struct.pack("=ii", 1, 0)  # struct linger
DROP_SYNS = """
table inet delay { chain input { type filter hook input priority 0;
  tcp flags & (syn | ack) == syn drop
  }
}
"""


def _socket(namespace: Namespace, address: str, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = namespace.run(lambda: socket.socket(family, socket.SOCK_STREAM, protocol))
    made.settimeout(5)
    return made


@contextlib.contextmanager
def _listening(scene: BypassScene, backlog: int = 16) -> Iterator[socket.socket]:
    with _socket(scene.server, "::") as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        listener.bind(("::", 8080))
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def _connected(scene: BypassScene, family: str = "v4") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and what the server has accepted."""
    with _connected_to(scene, scene.permit(family)) as ends:
        yield ends


@contextlib.contextmanager
def _connected_to(
    scene: BypassScene, target: str, protocol: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    with _listening(scene) as listener, _socket(scene.client, target, protocol) as client:
        client.connect((target, 80))
        server, _ = listener.accept()
        server.settimeout(5)
        with server:
            yield client, server


def _ended(scene: BypassScene) -> Event:
    """What is told last, once nothing lives any more."""
    wait_until(lambda: not scene.maps.flows(), "the flow to go")
    *before, event = scene.maps.events()
    assert [each.kind for each in before] == [EventKind.OPENED] * (event.kind == EventKind.CLOSED)
    assert all(each.flow == event.flow and each.ends == event.ends for each in before)
    return event


def _read_all(end: socket.socket) -> int:
    total = 0
    while data := end.recv(1 << 20):
        total += len(data)
    return total


# -- how connections end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["client", "server"])
def test_who_closes_first(bypass: BypassScene, family: str, first: str) -> None:
    with _connected(bypass, family) as (client, server):
        client.sendall(b"x" * 1234)
        server.sendall(b"y" * 567)
        assert server.recv(2000)
        early, late = (client, server) if first == "client" else (server, client)
        early.shutdown(socket.SHUT_WR)
        _read_all(late)
        late.close()
        _read_all(early)
    event = _ended(bypass)
    assert (event.kind, event.end) == (EventKind.CLOSED, End.CLIENT if first == "client" else End.SERVER)
    assert (event.sent, event.received) == (1234, 567)
    assert event.at_ns > event.flow.started_ns
    assert event.srtt_us > 0


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (3_000_000, 1), (1, 3_000_000), (70_000, 500_000)])
def test_bytes_are_exact(bypass: BypassScene, sizes: tuple[int, int], first: str) -> None:
    """Whoever closes, whether FIN and data go together or not."""
    with _connected(bypass) as (client, server):
        early, late = (client, server) if first == "client" else (server, client)
        from_early, from_late = sizes if first == "client" else sizes[::-1]

        def answer() -> None:
            assert _read_all(late) == from_early
            late.sendall(b"b" * from_late)
            late.close()

        thread = threading.Thread(target=answer)
        thread.start()
        early.sendall(b"a" * from_early)
        early.shutdown(socket.SHUT_WR)
        assert _read_all(early) == from_late
        thread.join()
    event = _ended(bypass)
    assert (event.sent, event.received) == sizes


def test_a_close_without_reading(bypass: BypassScene) -> None:
    """close(), where the one above shuts down: the kernel keeps no socket to wait for the server's FIN."""
    with _connected(bypass) as (client, server):
        client.sendall(b"x" * 10)
        client.close()
        assert _read_all(server) == 10
        event = _ended(bypass)
    assert (event.kind, event.end, event.sent, event.received) == (EventKind.CLOSED, End.CLIENT, 10, 0)


def _reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    end.close()


@pytest.mark.parametrize("half", ["", "client", "server"])
@pytest.mark.parametrize("by", ["client", "server"])
def test_resets(bypass: BypassScene, by: str, half: str) -> None:
    """Also of a connection of which one way is closed."""
    with _connected(bypass) as (client, server):
        client.sendall(b"x" * 100)
        assert server.recv(100) == b"x" * 100
        server.sendall(b"y" * 10)
        assert client.recv(10) == b"y" * 10
        if half == "client":
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        elif half == "server":
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        _reset(client if by == "client" else server)
        event = _ended(bypass)
    assert (event.kind, event.end) == (EventKind.CLOSED, End.RESET)
    assert (event.sent, event.received) == (100, 10)


def test_a_client_that_is_killed(bypass: BypassScene) -> None:
    target = bypass.permit()
    script = f"import socket, time; s = socket.create_connection(({target!r}, 80)); s.sendall(b'abc'); time.sleep(60)"
    with _listening(bypass) as listener:
        process = subprocess.Popen(bypass.client.command([sys.executable, "-c", script]))
        server, _ = listener.accept()
        with server:
            assert server.recv(3) == b"abc"
            process.kill()
            process.wait()
            assert server.recv(3) == b""
        event = _ended(bypass)
    assert (event.kind, event.end, event.sent) == (EventKind.CLOSED, End.CLIENT, 3)


def test_a_connection_that_nobody_accepts(bypass: BypassScene) -> None:
    """Established by the kernel, and reset with its listener."""
    target = bypass.permit()
    with _listening(bypass) as listener, _socket(bypass.client, target) as client:
        client.connect((target, 80))
        client.sendall(b"hello")
        wait_until(lambda: len(bypass.maps.flows()) == 1, "the flow")
        listener.close()
        event = _ended(bypass)
    assert (event.kind, event.end) == (EventKind.CLOSED, End.RESET)


# -- connections that do not come about ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_listens(bypass: BypassScene, family: str) -> None:
    target = bypass.permit(family)
    with _socket(bypass.client, target) as client:
        assert client.connect_ex((target, 80)) == errno.ECONNREFUSED
        event = _ended(bypass)
    assert (event.kind, event.sent, event.received) == (EventKind.FAILED, 0, 0)


@contextlib.contextmanager
def _lost_syns(namespace: Namespace) -> Iterator[None]:
    namespace.check(["nft", "-f", "-"], stdin=DROP_SYNS)
    try:
        yield
    finally:
        namespace.check(["nft", "delete", "table", "inet", "delay"])


def test_a_client_that_gives_up(bypass: BypassScene) -> None:
    target = bypass.permit()
    with _lost_syns(bypass.server), _socket(bypass.client, target) as client:
        client.setblocking(False)
        assert client.connect_ex((target, 80)) == errno.EINPROGRESS
        assert len(bypass.maps.flows()) == 1
        client.close()
        event = _ended(bypass)
    assert event.kind == EventKind.FAILED


def test_a_socket_that_tries_again(bypass: BypassScene) -> None:
    """After a connection that failed, by the same socket."""
    target = bypass.permit()
    with _socket(bypass.client, target) as client:
        client.settimeout(None)
        assert client.connect_ex((target, 80)) == errno.ECONNREFUSED
        assert _ended(bypass).kind == EventKind.FAILED
        with _listening(bypass) as listener:
            client.connect((target, 80))
            listener.accept()[0].close()
            assert client.recv(1) == b""
            client.close()
            assert _ended(bypass).end == End.SERVER


def test_a_verdict_that_is_withdrawn_on_the_way(bypass: BypassScene) -> None:
    """The first SYN is lost; the next one arrives when it is not allowed any more, and is refused: to the engine it
    would be a connection of nobody in particular."""
    target = bypass.permit()
    before = bypass.captured()
    with _listening(bypass), _socket(bypass.client, target) as client:
        with _lost_syns(bypass.server):
            client.setblocking(False)
            client.connect_ex((target, 80))
            wait_until(lambda: len(bypass.maps.flows()) == 1, "the flow")
            bypass.maps.verdict(Access.DENY)
        assert select.select([], [client], [], 5)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        event = _ended(bypass)
    assert (event.kind, event.retransmits) == (EventKind.FAILED, 1)
    assert bypass.captured() == before


def test_a_backlog_that_is_full(bypass: BypassScene) -> None:
    """The second connection waits for room, and is told of when it comes about."""
    target = bypass.permit()
    with _listening(bypass, backlog=0) as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_socket(bypass.client, target)) for _ in range(2)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex((target, 80))
        assert len(bypass.maps.flows()) == 2
        assert len(bypass.maps.events()) == 1
        for _ in clients:
            stack.enter_context(listener.accept()[0])
        (second,) = bypass.maps.events()
        assert (second.kind, second.retransmits) == (EventKind.OPENED, 1)


# -- unusual beginnings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_open(bypass: BypassScene, family: str) -> None:
    """Data in the SYN counts once; the second connection has a cookie."""
    target = bypass.permit(family)
    for namespace in (bypass.client, bypass.server):
        namespace.check(["sysctl", "-qw", "net.ipv4.tcp_fastopen=3"])
    with _listening(bypass) as listener:
        for _ in range(2):
            with _socket(bypass.client, target) as client:
                client.settimeout(None)
                client.sendto(b"hello", MSG_FASTOPEN, (target, 80))
                server, _ = listener.accept()
                with server:
                    assert server.recv(5) == b"hello"
                    assert client.getpeername()[:2] == (target, 80)
                    server.sendall(b"to you")
                assert _read_all(client) == 6
            event = _ended(bypass)
            assert (event.sent, event.received, event.end) == (5, 6, End.SERVER)


def test_syn_cookies(bypass: BypassScene) -> None:
    """Where the server keeps nothing of a SYN, the last ACK of the handshake is looked up, too."""
    target = bypass.permit()
    bypass.server.check(["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"])
    try:
        with _connected_to(bypass, target, 0) as (client, server):
            server.sendall(b"hello")
            assert client.recv(5) == b"hello"
    finally:
        bypass.server.check(["sysctl", "-qw", "net.ipv4.tcp_syncookies=1"])
    event = _ended(bypass)
    assert (event.kind, event.received) == (EventKind.CLOSED, 5)


def test_mptcp(bypass: BypassScene) -> None:
    """Of a connection with one path; bytes are those of TCP."""
    target = bypass.permit()
    with _connected_to(bypass, target, IPPROTO_MPTCP) as (client, server):
        server.sendall(b"hello")
        assert client.recv(5) == b"hello"
        assert len(bypass.maps.flows()) == 1
    assert _ended(bypass).received == 5


def test_many_at_once(bypass: BypassScene) -> None:
    """Each is told of once, at its beginning and at its end."""
    target, count = bypass.permit(), 300
    with _listening(bypass, 512) as listener, contextlib.ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(_socket(bypass.client, target))
            client.connect((target, 80))
            client.sendall(b"x" * number)
        assert len(bypass.maps.flows()) == count
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(count)]
        for server in accepted:
            server.shutdown(socket.SHUT_WR)
    wait_until(lambda: not bypass.maps.flows(), "all flows to go")
    events = bypass.maps.events()
    closed = [each for each in events if each.kind == EventKind.CLOSED]
    assert len(events) == 2 * count
    assert len({each.ends for each in closed}) == count


# -- what does not fit -----------------------------------------------------------------------------------------


def test_events_that_nobody_reads_are_counted(bypass: BypassScene) -> None:
    """A client that is denied all the time: it is denied all the same."""
    target = bypass.permit()
    bypass.maps.verdict(Access.DENY)
    lost = bypass.maps.count("no_event")
    with _socket(bypass.client, target) as client:
        for _ in itertools.takewhile(lambda _: bypass.maps.count("no_event") == lost, range(100)):
            assert {client.connect_ex((target, 80)) for _ in range(100)} == {errno.EPERM}
        assert bypass.maps.count("no_event") > lost
        told = bypass.maps.events()
        assert (1 << 20) // 168 - 1 <= len(told) <= (1 << 20) // 168
        assert client.connect_ex((target, 80)) == errno.EPERM
    assert len(bypass.maps.events()) == 1, "there is room again"
