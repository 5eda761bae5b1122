"""Pairs of sockets between two pods, and checked streams over them in both directions (streams.py)."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from harness.direct import listen
from harness.netns import Namespace
from harness.streams import Side

_NUMBER: Final = struct.Struct("!I")
ASK, REPLY = 0, 10_000
"""Numbers of the first stream of either side."""

Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def many_descriptors(count: int = 4096) -> Iterator[None]:
    """Let this process have that many, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pairs(
    client: Namespace, server: Namespace, count: int, ready: Callable[[int], None] = lambda port: None
) -> list[Pair]:
    """Connections to a listener of the server's, by IPv4 and IPv6 in turns: the client's end and the server's of each.
    `ready` is called with the listener's port before the first. Each client says its number first, so that the ends
    are matched whoever is in between, and in whichever order they come."""

    def make(port: int) -> list[socket.socket]:
        made = []
        for number in range(count):
            address = (server.v4, server.v6)[number % 2]
            made.append(socket.create_connection((address, port), timeout=20))
            made[-1].sendall(_NUMBER.pack(number))
        return made

    with server.run(listen) as listener:
        listener.settimeout(20)
        ready(listener.getsockname()[1])
        near = client.run(lambda: make(listener.getsockname()[1]))
        far = dict(_accept(listener) for _ in near)
    found = [(near[number], far[number]) for number in range(count)]
    for pair in found:
        for each in pair:
            each.settimeout(None)
    return found


def _accept(listener: socket.socket) -> tuple[int, socket.socket]:
    accepted, _ = listener.accept()
    accepted.settimeout(20)
    number: int = _NUMBER.unpack(accepted.recv(_NUMBER.size, socket.MSG_WAITALL))[0]
    return number, accepted


@contextlib.contextmanager
def streaming(there: list[Pair], back: list[Pair], *, size: int, stall: float) -> Iterator[tuple[Side, Side]]:
    """Two processes with the ends: of the clients' of `there` and the servers' of `back`, and the others."""
    ones = [near for near, _ in there] + [far for _, far in back]
    twos = [far for _, far in there] + [near for near, _ in back]
    with (
        Side(ones, first=ASK, expected=REPLY, size=size, stall=stall, asks=True) as one,
        Side(twos, first=REPLY, expected=ASK, size=size, stall=stall, asks=False) as two,
    ):
        yield one, two
