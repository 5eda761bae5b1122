"""Streams over accelerated connections: nothing is lost, doubled or out of order, and the kernel's memory is bounded.

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
from harness.streams import Side

pytestmark = pytest.mark.netns

LIMIT = 1 << 16
"""Small, so that ways change often."""
CONNECTIONS = 200
SIZE = 150_000
TCP_RMEM = 131_072
"""What TCP's own queue may hold before its window has grown (net.ipv4.tcp_rmem)."""


@pytest.fixture
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


def test_streams_arrive_whole_and_memory_is_bounded(pods: DirectPods) -> None:
    with _streaming(pods, 0.4) as (one, two):
        most = 0
        while one.runs() and two.runs():
            sweep = pods.direct.state().sweep
            most = max(most, sweep.queued)
            # Accepted once more by TCP: a segment that finds the buffer full (tcp_data_queue()).
            assert sweep.queued <= sweep.sockets * (LIMIT + 2 * TCP_RMEM)
            time.sleep(0.01)
        for side in (one, two):
            assert side.outcome() == {"whole": 2 * CONNECTIONS, "cut": 0, "wrong": []}
    counters = pods.direct.state().counters
    assert counters["joined"] == 4 * CONNECTIONS
    assert most > LIMIT, "the readers that stalled were waited for"
    for name in ("bytes", "pass_unread", "pass_full"):
        assert counters[name] > 0, f"{name}: the ways were not both taken"
    wait_until(lambda: pods.direct.state().sweep.sockets == 0, "all sockets are gone")


def test_what_arrived_before_a_kill_is_right(pods: DirectPods) -> None:
    with _streaming(pods, 1.0, 30) as (one, two):
        wait_until(lambda: pods.counted("bytes") > 30 * LIMIT, "streams run")
        two.kill()
        found = one.outcome()
    assert found["wrong"] == []
    assert found["whole"] + found["cut"] == 60
    assert found["cut"] > 0


def test_streams_survive_a_withdrawal(pods: DirectPods) -> None:
    """The sockets become plain ones while they are used."""
    with _streaming(pods, 0.3, 40) as (one, two):
        wait_until(lambda: pods.counted("bytes") > 40 * LIMIT, "streams run")
        pods.direct.settle([])
        wait_until(lambda: not pods.direct.tend(), "what is withdrawn has gone")
        assert not pods.pins.exists()
        for side in (one, two):
            assert side.outcome() == {"whole": 80, "cut": 0, "wrong": []}


def test_small_messages_count_with_what_they_take(pods: DirectPods) -> None:
    """A byte in the receiver's queue takes a kilobyte of the kernel's memory, which it does not account for."""
    client, server = connect(pods.one, pods.two)
    with client, server:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 10_000:
                sent += client.send(b"x")
        assert 0 < pods.counted("redirected") < LIMIT / 1024
        # Those that were read count no more.
        client.setblocking(True)
        while sent:
            sent -= len(server.recv(1 << 16))
        before = pods.counted("redirected")
        for _ in range(500):
            client.sendall(b"x")
            assert server.recv(10) == b"x"
        assert pods.counted("redirected") == before + 500
