"""Accelerated connections: streams survive a withdrawal, and what waits is bounded to the byte. That streams arrive
whole is test_stream_integrity.py's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from harness import require
from harness.direct import DirectPods, connect, direct_pods
from harness.processes import wait_until
from harness.streaming import pairs, streaming
from harness.streams import BLOCK

pytestmark = pytest.mark.netns

LIMIT = 1 << 16
"""Small, so that ways change often."""
SIZE = 150_000
DATA = BLOCK * 8


@pytest.fixture(scope="module")
def pods() -> Iterator[DirectPods]:
    require("root", "engine")
    with direct_pods("whole", LIMIT) as pods:
        yield pods


def test_streams_survive_a_withdrawal(pods: DirectPods) -> None:
    """The sockets become plain ones while they are used."""
    before = pods.counted("bytes")
    there, back = pairs(pods.one, pods.two, 40), pairs(pods.two, pods.one, 40)
    with streaming(there, back, size=SIZE, stall=0.3) as (one, two):
        wait_until(lambda: pods.counted("bytes") - before > 40 * LIMIT, "streams run")
        pods.direct.settle([])
        wait_until(lambda: not pods.direct.tend(), "what is withdrawn has gone")
        assert not pods.pins.exists()
        for side in (one, two):
            assert side.outcome() == {"whole": 80, "cut": 0, "wrong": []}
    pods.admit(pods.one, pods.two)


@pytest.mark.parametrize("size", [1, 700, 20_000, 100_000])
def test_what_waits_is_bounded(pods: DirectPods, size: int) -> None:
    """A message in the receiver's queue takes a kilobyte of the kernel's memory beside its bytes, which the kernel does
    not account for."""
    before = pods.direct.state().counters
    client, server = connect(pods.one, pods.two)
    with client, server:
        sent = _send_what_goes(client, size)
        after = pods.direct.state().counters
        messages, waiting = (after[name] - before[name] for name in ("redirected", "bytes"))
        assert waiting + 1024 * messages <= LIMIT
        # One more would not have fitted.
        assert waiting + 1024 * messages > LIMIT - size - 1024
        client.shutdown(socket.SHUT_WR)
        with server.makefile("rb") as whole:
            assert whole.read() == DATA[:sent]


def _send_what_goes(sock: socket.socket, size: int) -> int:
    """Send messages of a size until one would have to wait; returns the bytes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(DATA):
            sent += sock.send(DATA[sent : sent + size])
    assert sent < len(DATA), "nothing stops the sender"
    return sent


def test_messages_that_were_read_count_no_more(pods: DirectPods) -> None:
    client, server = connect(pods.one, pods.two)
    with client, server:
        before = pods.counted("redirected")
        for _ in range(2 * LIMIT // 1024):
            client.sendall(b"x")
            assert server.recv(10) == b"x"
        assert pods.counted("redirected") == before + 2 * LIMIT // 1024
