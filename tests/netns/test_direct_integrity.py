"""Streams over accelerated connections: nothing is lost, doubled or out of order, and what waits is bounded.

Two processes hold the ends of 400 connections, 200 made from each side; a third of the readers is fast, a third slow,
and a third does not read at first. Small messages there and back come before, half-closing after.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from harness import Namespace, require
from harness.direct import DirectPods, connect, dial, direct_pods, listen
from harness.processes import wait_until
from harness.streams import BLOCK, Side

pytestmark = pytest.mark.netns

LIMIT = 1 << 16
"""Small, so that ways change often."""
CONNECTIONS = 200
SIZE = 150_000
DATA = BLOCK * 8


@pytest.fixture(scope="module")
def pods() -> Iterator[DirectPods]:
    require("root", "engine")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with direct_pods("whole", LIMIT) as pods:
            yield pods
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _connections(
    client: Namespace, server: Namespace, count: int
) -> list[tuple[socket.socket, socket.socket]]:
    addresses = (server.v4, server.v6)
    with server.run(listen) as listener:
        return [dial(client, listener, addresses[number % 2]) for number in range(count)]


@contextlib.contextmanager
def _streaming(pods: DirectPods, stall: float, count: int = CONNECTIONS) -> Iterator[tuple[Side, Side]]:
    there = _connections(pods.one, pods.two, count)
    back = [(near, far) for far, near in _connections(pods.two, pods.one, count)]
    pairs = there + back
    with (
        Side([a for a, _ in pairs], first=0, expected=10_000, size=SIZE, stall=stall, asks=True) as one,
        Side([b for _, b in pairs], first=10_000, expected=0, size=SIZE, stall=stall, asks=False) as two,
    ):
        yield one, two


def test_streams_arrive_whole(pods: DirectPods) -> None:
    before = pods.direct.state().counters
    with _streaming(pods, 0.4) as (one, two):
        most = 0
        while one.runs() and two.runs():
            most = max(most, pods.direct.state().sweep.queued)
            time.sleep(0.01)
        for side in (one, two):
            assert side.outcome() == {"whole": 2 * CONNECTIONS, "cut": 0, "wrong": []}
    counters = {name: value - before[name] for name, value in pods.direct.state().counters.items()}
    assert counters["joined"] == 4 * CONNECTIONS
    assert most > LIMIT, "the readers that stalled were waited for"
    for name in ("bytes", "pass_unread", "pass_full"):
        assert counters[name] > 0, f"{name}: the ways were not both taken"
    wait_until(lambda: pods.direct.state().sweep.sockets == 0, "all sockets are gone")


def test_what_arrived_before_a_kill_is_right(pods: DirectPods) -> None:
    before = pods.counted("bytes")
    with _streaming(pods, 1.0, 30) as (one, two):
        wait_until(lambda: pods.counted("bytes") - before > 30 * LIMIT, "streams run")
        two.kill()
        found = one.outcome()
    assert found["wrong"] == []
    assert found["whole"] + found["cut"] == 60
    assert found["cut"] > 0


def test_streams_survive_a_withdrawal(pods: DirectPods) -> None:
    """The sockets become plain ones while they are used."""
    before = pods.counted("bytes")
    with _streaming(pods, 0.3, 40) as (one, two):
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
