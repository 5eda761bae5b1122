"""Whether this kernel can do `direct` safely: each property that it needs is tried, on a namespace of the probes' own.

Kernels differ much in this corner, and point releases have broken it before. So what must hold is tried before a
workload is accelerated (order, bounds, wake-ups, the end of a stream), and what programs have to do without, as
ARCHITECTURE.md lists it, is looked at, too. A tenth of a second in all, where nothing fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import OBJECTS
from nodeagent.dataplane.direct_programs import DirectPrograms
from nodeagent.dataplane.ebpf_node import netns_cookie, root_of_cgroups
from nodeagent.dataplane.netns import NetworkNamespace, scratch_namespace
from nodeagent.errors import CapabilityError, NodeagentError
from nodeagent.snapshot.address import widen_address

AS_TCP: Final = "as TCP"
DIFFERS: Final = "differs"
FAILS: Final = "fails"
LIMIT: Final = 1 << 18
"""Bytes that may wait at a receiver while probing."""
_NO_CGROUP: Final = 1 << 63
"""Nobody's: the probes' own sockets are no agent's."""
_HERE, _THERE = "127.0.0.1", "127.0.0.2"
_SECONDS: Final = 2
"""How long what must come may take, on a machine that is busy."""
_SO_MEMINFO: Final = 55  # asm-generic/socket.h
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_libc = ctypes.CDLL(None, use_errno=True)


class ProbeError(CapabilityError):
    """What was seen is not what must be."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found: `verdict` is AS_TCP, DIFFERS (a program that relies on it must not opt in, as documented) or
    FAILS (nobody is accelerated here)."""

    name: str
    verdict: str
    detail: str

    @property
    def ok(self) -> bool:
        """Whether workloads can be accelerated."""
        return self.verdict != FAILS


def probe_direct(objects: Path = OBJECTS) -> list[Verdict]:
    """Try everything; where the programs cannot be attached, nothing else. Blocks for a tenth of a second, or two
    seconds for each probe that waits in vain. `objects` is the folder of the program."""
    verdicts: list[Verdict] = []
    try:
        with accelerated_ground(objects) as ground:
            verdicts += [_try(name, ground, probe) for name, probe in PROBES]
    except (NodeagentError, OSError) as error:
        verdicts.append(Verdict("programs", FAILS, str(error)))
    return verdicts


def _try(name: str, ground: Ground, probe: Callable[[Ground], tuple[str, str]]) -> Verdict:
    try:
        return Verdict(name, *probe(ground))
    except TimeoutError:
        return Verdict(name, FAILS, f"what was sent did not arrive within {_SECONDS} s")
    except (NodeagentError, OSError) as error:
        return Verdict(name, FAILS, str(error))


class Ground:
    """A namespace in which connections between two addresses of its loopback device are accelerated."""

    def __init__(self, namespace: NetworkNamespace, programs: DirectPrograms | None) -> None:
        """Without `programs` they are plain TCP."""
        self._namespace = namespace
        self.programs = programs

    @contextlib.contextmanager
    def connection(self, *, defer_accept: bytes = b"") -> Iterator[tuple[socket.socket, socket.socket]]:
        """A connection: its client's socket, its server's. With `defer_accept` the server's exists only once the
        client has sent that (TCP_DEFER_ACCEPT)."""
        with contextlib.ExitStack() as closing:
            listener = closing.enter_context(self._namespace.run(_listener))
            if defer_accept:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
            client = closing.enter_context(self._namespace.run(lambda: _dial(listener.getsockname())))
            client.sendall(defer_accept)
            server = closing.enter_context(listener.accept()[0])
            server.settimeout(_SECONDS)
            yield client, server

    def redirected(self) -> int:
        """Bytes that were redirected so far."""
        return self.programs.counters()["bytes"] if self.programs is not None else 0


def _listener() -> socket.socket:
    listener = socket.socket()
    try:
        listener.settimeout(_SECONDS)
        listener.bind((_THERE, 0))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _dial(target: tuple[str, int]) -> socket.socket:
    client = socket.socket()
    try:
        client.settimeout(_SECONDS)
        client.bind((_HERE, 0))
        client.connect(target)
    except OSError:
        client.close()
        raise
    return client


@contextlib.contextmanager
def accelerated_ground(objects: Path = OBJECTS) -> Iterator[Ground]:
    """What probes are tried on; ends with all that is loaded for it."""
    with (
        scratch_namespace() as namespace,
        contextlib.closing(DirectPrograms(root_of_cgroups(), objects=objects)) as programs,
    ):
        namespace.run(_loopback_up)
        cookie = netns_cookie(namespace)
        programs.configure(LIMIT, within=True)
        programs.put_workload(cookie, _NO_CGROUP, 0)
        for address in (_HERE, _THERE):
            programs.put_address(widen_address(socket.inet_aton(address)), cookie)
        yield Ground(namespace, programs)


@contextlib.contextmanager
def plain_ground() -> Iterator[Ground]:
    """The same without acceleration: what plain TCP does."""
    with scratch_namespace() as namespace:
        namespace.run(_loopback_up)
        yield Ground(namespace, None)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _GET_FLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", answer)[1]
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


# -- what must hold ----------------------------------------------------------------------------------------------------


def send_by_tcp(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """Send past the acceleration, which leaves alone who waits for more than a byte."""
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
    sender.sendall(data)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def unread(sock: socket.socket) -> int:
    """How many bytes wait at a socket, by FIONREAD."""
    return int(struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


def _receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or those until the end."""
    parts: list[bytes] = []
    while size > 0 and (part := sock.recv(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProbeError(otherwise)


def _accounting(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server):
        client.sendall(bytes(5000))
        _must(ground.redirected() >= 5000, "nothing is redirected")
        waiting = struct.unpack_from("=I", server.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0]
        _must(
            waiting >= 5000,
            "what is redirected is not accounted for at the receiver, which Linux does since 6.13; without, nothing "
            "bounds it",
        )
        _must(server.recv(8000) == bytes(5000), "something else arrives than was sent")
    return AS_TCP, "what waits at the receiver counts towards its buffer"


def _ordering(ground: Ground) -> tuple[str, str]:
    with ground.connection(defer_accept=b"first") as (client, server):
        client.sendall(b"second")  # by TCP: the first is still there
        _must(_receive(server, 11) == b"firstsecond", "a message overtook what was sent by TCP before")
        for number in range(50):
            data = b"%03d" % number
            (client.sendall if number % 3 else lambda data: send_by_tcp(client, server, data))(data)
            if number % 7 == 6:
                _must(_receive(server, 21)[-3:] == data, "messages overtook each other")
    return AS_TCP, "messages stay in order when the way changes, also while a connection is taken in"


def _backpressure(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server):
        sent = _send_until_full(client)
        waiting = struct.unpack("=9I", server.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
        _must(
            waiting[0] <= LIMIT + 2 * waiting[1], f"{waiting[0]} bytes wait at a receiver that does not read"
        )
        client.shutdown(socket.SHUT_WR)
        _must(_receive(server, sent + 1) == _pattern(sent), "what a slow receiver reads is not what was sent")
    return AS_TCP, "a sender waits for a receiver that does not read; nothing is lost by that"


def _pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def _send_until_full(sock: socket.socket) -> int:
    """Send as much as goes without waiting, which is less than 16 MiB; returns how much that was."""
    sock.setblocking(False)
    sent, data = 0, _pattern(1 << 24)
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + 20_000])
        raise ProbeError("a sender never has to wait for a receiver that does not read")
    return sent


def _edges(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server), select.epoll() as epoll:
        server.setblocking(False)
        epoll.register(server, select.EPOLLIN | select.EPOLLET)
        for data in (b"one", b"two", b"three"):
            client.sendall(data)
            _must(bool(epoll.poll(_SECONDS)), "edge-triggered epoll does not report what is redirected")
            _must(server.recv(100) == data, "something else arrives than was sent")
            _must(not epoll.poll(0), "epoll reports data that is not there")
    return AS_TCP, "each message is reported to who reads until there is no more"


def _wakes(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server):
        server.settimeout(None)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", int(_SECONDS), 0))
        timer = threading.Timer(0.02, client.sendall, (b"x",))
        timer.start()
        try:
            _must(server.recv(1) == b"x", "a receiver that waits is not woken")
        except BlockingIOError:
            raise ProbeError("a receiver that waits is not woken") from None
        finally:
            timer.join()
    return AS_TCP, "a receiver that waits is woken"


def _ends(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server):
        server.sendall(b"unread")
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        _must(_receive(server, 100) == b"question", "a half-closed connection does not end where it should")
        server.sendall(b"answer")
        server.close()
        _must(_receive(client, 100) == b"unreadanswer", "what was sent before a connection's end is lost")
    return AS_TCP, "all that was sent is read before the end, each direction by itself"


# -- what programs have to do without ----------------------------------------------------------------------------------


def _fionread(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server):
        client.sendall(b"12345")
        direct = unread(server)
        _receive(server, 5)
        send_by_tcp(client, server, b"12345")
        plain = unread(server)
    if (direct, plain) == (5, 5):
        return AS_TCP, "it counts all that waits"
    missed = " and ".join(way for way, seen in (("past TCP", direct), ("by TCP", plain)) if seen != 5)
    return (
        DIFFERS,
        f"it does not count what came {missed}: not for programs that rely on it (nginx, Java, .NET)",
    )


def _splice(ground: Ground) -> tuple[str, str]:
    with ground.connection() as (client, server), contextlib.ExitStack() as closing:
        client.sendall(b"12345")
        server.setblocking(False)
        reader, writer = os.pipe()
        closing.callback(os.close, reader)
        closing.callback(os.close, writer)
        moved = _libc.splice(server.fileno(), None, writer, None, 100, 0)
        if moved < 0:
            _must(server.recv(100) == b"12345", "what splice(2) does not see is lost")
            return DIFFERS, "it does not see what is redirected: not for programs that use it (Go's io.Copy)"
        _must(os.read(reader, 100) == b"12345", "splice(2) gives something else than was sent")
    return AS_TCP, "it sees what is redirected"


PROBES: Final[tuple[tuple[str, Callable[[Ground], tuple[str, str]]], ...]] = (
    ("accounting", _accounting),
    ("ordering", _ordering),
    ("backpressure", _backpressure),
    ("epoll, edge-triggered", _edges),
    ("waiting receivers", _wakes),
    ("end of a stream", _ends),
    ("FIONREAD", _fionread),
    ("splice", _splice),
)
