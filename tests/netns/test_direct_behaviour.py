"""What programs notice of the acceleration `direct`: a table of awkward receivers and senders.

Each case runs on a connection to a pod that has not opted in, where all must be as TCP has it, and on an accelerated
one, where exactly what ARCHITECTURE.md names is different.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import require
from harness.direct import DirectPods, connect, dial, direct_pods, listen
from harness.io_uring import Ring
from harness.processes import wait_until

from nodeagent.dataplane.direct_probes import send_by_tcp, unread

pytestmark = pytest.mark.netns

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
SO_ZEROCOPY, SO_PEEK_OFF, MSG_ZEROCOPY, TCP_INQ = 60, 42, 0x4000000, 36
libc = ctypes.CDLL(None, use_errno=True)

Socket = socket.socket


def _now(sock: Socket, size: int = 100, flags: int = 0) -> bytes | str:
    """What can be received at once, or the error's name."""
    try:
        return sock.recv(size, flags | socket.MSG_DONTWAIT)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _soon(sock: Socket, size: int = 100, flags: int = 0) -> bytes | str:
    """What is received, waiting as a program without timeouts does; for a second at most."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 1, 0))
    try:
        return sock.recv(size, flags)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _ring() -> Ring:
    try:
        return Ring()
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")


def _arrived(sock: Socket) -> None:
    """Wait for anything to be there."""
    assert select.select([sock], [], [], 1)[0]


@contextlib.contextmanager
def _meanwhile(action: Callable[[], Any], after: float = 0.03) -> Iterator[None]:
    timer = threading.Timer(after, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


# -- receivers ---------------------------------------------------------------------------------------------------------


def splice(client: Socket, server: Socket) -> Any:
    client.sendall(b"12345")
    reader, writer = os.pipe()
    server.setblocking(False)
    try:
        moved = libc.splice(server.fileno(), None, writer, None, 100, 0)
        return os.read(reader, 100) if moved > 0 else errno.errorcode[ctypes.get_errno()]
    finally:
        os.close(reader)
        os.close(writer)


def fionread(client: Socket, server: Socket) -> Any:
    client.sendall(b"12345")
    _arrived(server)
    return unread(server)


def fionread_of_tcp(client: Socket, server: Socket) -> Any:
    send_by_tcp(client, server, b"12345")
    _arrived(server)
    return unread(server)


def inq(client: Socket, server: Socket) -> Any:
    server.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
    client.sendall(b"12345")
    _arrived(server)
    return [struct.unpack("=i", data)[0] for _, _, data in server.recvmsg(2, 100)[1]]


def waitall(client: Socket, server: Socket) -> Any:
    client.sendall(b"12345")
    with _meanwhile(lambda: client.sendall(b"67890")):
        return _soon(server, 10, socket.MSG_WAITALL)


def waitall_mixed(client: Socket, server: Socket) -> Any:
    send_by_tcp(client, server, b"12345")
    with _meanwhile(lambda: client.sendall(b"67890")):
        return _soon(server, 10, socket.MSG_WAITALL)


def lowat(client: Socket, server: Socket) -> Any:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    client.sendall(b"12345")
    early = select.select([server], [], [], 0.03)[0]
    client.sendall(b"67890")
    _arrived(server)
    return bool(early), _now(server)


def lowat_late(client: Socket, server: Socket) -> Any:
    client.sendall(b"12345")
    _arrived(server)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    return bool(select.select([server], [], [], 0.03)[0])


def edges(client: Socket, server: Socket) -> Any:
    """Of a program that reads until there is no more."""
    seen = []
    server.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(server, select.EPOLLIN | select.EPOLLET)
        for data in (b"one", b"two"):
            client.sendall(data)
            seen += [len(epoll.poll(1)), _now(server), _now(server), len(epoll.poll(0))]
    return seen


def edges_short(client: Socket, server: Socket) -> Any:
    """Of a program that takes a read of less than it asked for as the last one."""
    server.setblocking(False)
    client.sendall(b"one")
    send_by_tcp(client, server, b"two")
    _arrived(server)
    return _now(server)


def stalled(client: Socket, server: Socket) -> Any:
    client.setblocking(False)
    sent, data = 0, os.urandom(1 << 16)
    with contextlib.suppress(BlockingIOError):
        while sent < 1 << 26:
            sent += client.send(data[sent % len(data) :])
    client.setblocking(True)
    with _meanwhile(lambda: client.sendall(b"end"), 0):
        got = b""
        while len(got) < sent + 3:
            got += server.recv(1 << 20)
    return sent < 1 << 26, got == (data * (sent // len(data) + 1))[:sent] + b"end"


def peek(client: Socket, server: Socket) -> Any:
    client.sendall(b"12345")
    _arrived(server)
    return _now(server, 2, socket.MSG_PEEK), _now(server)


def trunc(client: Socket, server: Socket) -> Any:
    client.sendall(b"12345")
    _arrived(server)
    buffer = bytearray(3)
    server.recv_into(buffer, 3, socket.MSG_TRUNC)
    return bytes(buffer) == b"123", _now(server)


def receive_beside_send(client: Socket, server: Socket) -> Any:
    """A thread waits for data while another one's send() waits for room."""
    size = 1 << 22
    sender = threading.Thread(target=client.sendall, args=(bytes(size),))
    found: list[bytes | str] = []
    receiver = threading.Thread(target=lambda: found.append(_soon(client)))
    sender.start()
    _arrived(server)
    receiver.start()
    kernel = Path(f"/proc/self/task/{receiver.native_id}/wchan")
    wait_until(lambda: kernel.read_text() == "wait_woken", "the receiver waits in the kernel")
    while size:
        size -= len(server.recv(min(size, 1 << 16)))
    sender.join()
    with contextlib.suppress(OSError):
        server.sendall(b"later")
    receiver.join()
    return found[0]


def interrupted(client: Socket, server: Socket) -> Any:
    """A signal comes while a receiver waits; plain recv() is asked again by Python."""
    found: list[bytes | str] = []
    receiver = threading.Thread(target=lambda: found.append(_soon(server)))
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        receiver.start()
        threading.Event().wait(0.03)
        assert receiver.ident is not None
        signal.pthread_kill(receiver.ident, signal.SIGUSR1)
        threading.Event().wait(0.03)
        client.sendall(b"later")
        receiver.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    return found[0]


def peek_on(client: Socket, server: Socket) -> Any:
    server.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    client.sendall(b"12345")
    _arrived(server)
    return _now(server, 2, socket.MSG_PEEK), _now(server, 2, socket.MSG_PEEK)


def times_out(client: Socket, server: Socket) -> Any:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 20_000))
    try:
        return server.recv(1)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def ring_receive(client: Socket, server: Socket) -> Any:
    """What comes before it is asked for, and after."""
    with _ring() as ring:
        client.sendall(b"early")
        _arrived(server)
        ring.receive(server)
        early = ring.data(ring.wait())
        ring.receive(server)
        client.sendall(b"late")
        return early, ring.data(ring.wait())


def ring_receive_multishot(client: Socket, server: Socket) -> Any:
    """One request, a completion for each message, and one for the end."""
    found = []
    with _ring() as ring:
        ring.keep_receiving(server)
        for data in (b"one", b"two", b""):
            if data:
                client.sendall(data)
            else:
                client.shutdown(socket.SHUT_WR)
            completion = ring.wait()
            found.append((ring.data(completion), completion.more))
    return found


# -- the ends of streams -----------------------------------------------------------------------------------------------


def half_close(client: Socket, server: Socket) -> Any:
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    found = [_soon(server), _soon(server)]
    server.sendall(b"answer")
    server.close()
    return [*found, _soon(client), _soon(client)]


def half_close_unread(client: Socket, server: Socket) -> Any:
    """What waits outlives both directions' ends."""
    server.sendall(b"greeting")
    client.shutdown(socket.SHUT_WR)
    _soon(server)
    server.close()
    threading.Event().wait(0.02)  # the connection is in TIME_WAIT, the socket is not
    return _soon(client), _soon(client)


def hangup(client: Socket, server: Socket) -> Any:
    client.sendall(b"data")
    client.shutdown(socket.SHUT_WR)
    poll = select.poll()
    poll.register(server, select.POLLRDHUP)
    return [events for _, events in poll.poll(1000)], _now(server), _soon(server)


def no_more_reading(client: Socket, server: Socket) -> Any:
    client.sendall(b"data")
    _arrived(server)
    server.shutdown(socket.SHUT_RD)
    return _soon(server), _soon(server)


def reset(client: Socket, server: Socket) -> Any:
    client.sendall(b"data")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    client.close()
    poll = select.poll()
    poll.register(server, 0)
    poll.poll(1000)
    return _soon(server), _soon(server)


def closed_unread(client: Socket, server: Socket) -> Any:
    client.sendall(b"data")
    _arrived(server)
    server.close()
    return _soon(client)


def connected_anew(client: Socket, server: Socket) -> Any:
    """What waited at a socket is not found in its next connection."""
    server.sendall(b"old")
    _arrived(client)
    libc.connect(client.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)
    return _now(client)


# -- senders -----------------------------------------------------------------------------------------------------------


def zero_copy(client: Socket, server: Socket) -> Any:
    client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    client.send(bytes(1000), MSG_ZEROCOPY)
    _arrived(server)
    poll = select.poll()
    poll.register(client, 0)
    return len(_now(server, 2000)), bool(poll.poll(50))


def send_file(client: Socket, server: Socket) -> Any:
    data = Path(__file__).read_bytes()
    with Path(__file__).open("rb") as file:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(client.fileno(), file.fileno(), sent, len(data) - sent)
    client.shutdown(socket.SHUT_WR)
    with server.makefile("rb") as whole:
        return whole.read() == data


def urgent(client: Socket, server: Socket) -> Any:
    client.sendall(b"ab")
    client.send(b"!", socket.MSG_OOB)
    client.shutdown(socket.SHUT_WR)
    with server.makefile("rb") as whole:
        return whole.read()


def told(client: Socket, server: Socket) -> Any:
    client.sendall(bytes(1000))
    _arrived(server)
    server.recv(1000)
    server.sendall(b"x")
    _arrived(client)
    return struct.unpack_from("=Q", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)[0]


def ring_send(client: Socket, server: Socket) -> Any:
    with _ring() as ring:
        ring.send(client, b"12345")
        return ring.wait().result, _soon(server)


def ring_send_zero_copy(client: Socket, server: Socket) -> Any:
    """Its result, and that the memory may be used again."""
    with _ring() as ring:
        ring.send(client, b"12345", zero_copy=True)
        sent, told = ring.wait(), ring.wait()
    return sent.result, told.notification, _soon(server) if sent.result > 0 else _now(server)


@dataclass(frozen=True)
class Case:
    run: Callable[[Socket, Socket], Any]
    plain: Any
    direct: Any = ...
    named: str = ""
    """How ARCHITECTURE.md names the difference."""


CASES = [
    Case(splice, b"12345", "EAGAIN", "`splice(2)`"),
    Case(fionread, 5),
    Case(fionread_of_tcp, 5, 0, "FIONREAD"),
    Case(inq, [3], [], "TCP_INQ"),
    Case(waitall, b"1234567890", b"12345", "MSG_WAITALL"),
    Case(waitall_mixed, b"1234567890", b"12345", "MSG_WAITALL"),
    Case(lowat, (False, b"1234567890")),
    Case(lowat_late, False, True, "SO_RCVLOWAT"),
    Case(edges, [1, b"one", "EAGAIN", 0, 1, b"two", "EAGAIN", 0]),
    Case(edges_short, b"onetwo", b"one", "short read"),
    Case(stalled, (True, True)),
    Case(peek, (b"12", b"12345")),
    Case(trunc, (False, b"45"), (True, b"45"), "MSG_TRUNC"),
    Case(receive_beside_send, b"later", "EAGAIN", "a `send()` beside it"),
    Case(interrupted, b"later", "EAGAIN", "or a signal"),
    Case(peek_on, (b"12", b"34"), (b"12", b"12"), "SO_PEEK_OFF"),
    Case(times_out, "EAGAIN"),
    Case(half_close, [b"question", b"", b"answer", b""]),
    Case(half_close_unread, (b"greeting", b"")),
    Case(hangup, ([select.POLLRDHUP], b"data", b"")),
    Case(no_more_reading, (b"data", b"")),
    Case(reset, (b"data", "ECONNRESET")),
    Case(closed_unread, "ECONNRESET", b"", "not a reset"),
    Case(connected_anew, "ECONNRESET"),
    Case(zero_copy, (1000, True), (1000, False), "MSG_ZEROCOPY"),
    Case(ring_receive, (b"early", b"late")),
    Case(ring_receive_multishot, [(b"one", True), (b"two", True), (b"", False)]),
    Case(ring_send, (5, b"12345")),
    Case(ring_send_zero_copy, (5, True, b"12345"), (-errno.EOPNOTSUPP, True, "EAGAIN"), "`EOPNOTSUPP`"),
    Case(send_file, True),
    Case(urgent, b"ab", b"ab!", "MSG_OOB"),
    Case(told, 1001, 1, "TCP_INFO"),
]


@pytest.fixture(scope="module")
def pods() -> Iterator[DirectPods]:
    require("root", "engine")
    with direct_pods("behave") as pods:
        yield pods


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.run.__name__)
def test_without_opting_in_all_is_as_tcp_has_it(pods: DirectPods, case: Case) -> None:
    joined = pods.counted("joined")
    client, server = connect(pods.one, pods.other)
    with client, server:
        assert case.run(client, server) == case.plain
    assert pods.counted("joined") == joined


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.run.__name__)
def test_with_it_what_is_named_is_different(pods: DirectPods, case: Case) -> None:
    client, server = connect(pods.one, pods.two)
    with client, server:
        assert case.run(client, server) == (case.plain if case.direct is ... else case.direct)
    assert case.named in ARCHITECTURE.read_text()


@pytest.mark.parametrize("family", ["v4", "v6", "mapped"])
def test_each_family_is_accelerated(pods: DirectPods, family: str) -> None:
    address = {"v4": pods.two.v4, "v6": pods.two.v6, "mapped": f"::ffff:{pods.two.v4}"}[family]
    before = pods.counted("bytes")
    client, server = connect(pods.one, pods.two, address)
    with client, server:
        client.sendall(b"there")
        assert server.recv(100) == b"there"
        server.sendall(b"back")
        assert client.recv(100) == b"back"
    assert pods.counted("bytes") == before + 9


def test_what_is_sent_before_the_server_is_there_stays_first(pods: DirectPods) -> None:
    """TCP_DEFER_ACCEPT: the server's end exists from the first data on."""
    before = pods.counted("pass_unread")
    with pods.two.run(listen) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        for number in range(50):
            first, second = b"first %d" % number, b"second"
            client = pods.one.run(socket.socket)
            client.connect((pods.two.v4, listener.getsockname()[1]))
            client.sendall(first)
            client.sendall(second)
            server = listener.accept()[0]
            with client, server:
                client.shutdown(socket.SHUT_WR)
                with server.makefile("rb") as whole:
                    assert whole.read() == first + second
    assert pods.counted("pass_unread") > before, "the rule was needed"


def test_a_pod_to_itself_is_left_alone(pods: DirectPods) -> None:
    joined = pods.counted("joined")
    for address in ("127.0.0.1", "::1", pods.one.v4, pods.one.v6):
        client, server = connect(pods.one, pods.one, address)
        with client, server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
    assert pods.counted("joined") == joined


def test_a_receive_buffer_of_the_applications_choice_is_kept_to(pods: DirectPods) -> None:
    client, server = connect(pods.one, pods.two)
    with client, server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        before = pods.counted("bytes")
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(2000))
        assert 0 < pods.counted("bytes") - before <= 20_000, "what setsockopt() doubles"


def test_ports_that_are_used_again_at_once_lead_to_the_new_connection(pods: DirectPods) -> None:
    """The old connection's end keeps what it has not read."""
    with pods.two.run(listen) as listener:
        source = (pods.one.v4, 40_001)
        first, old = dial(pods.one, listener, pods.two.v4, source)
        first.sendall(b"old")
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        first.close()
        second, new = dial(pods.one, listener, pods.two.v4, source)
        with second, new, old:
            before = pods.counted("bytes")
            second.sendall(b"new")
            assert pods.counted("bytes") == before + 3
            assert (new.recv(100), old.recv(100)) == (b"new", b"old")
