"""Streams between two pods, by each way that the agent has for them: nothing is lost, doubled or out of order, and what
waits for a reader is bounded.

Two processes hold the ends of 400 connections, 200 made from each side; a third of the readers is fast, a third slow,
and a third does not read at first. Small messages there and back come before, half-closing after.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import Namespace, Network, require, scratch_cgroup
from harness.bypass_scene import CLIENT, SERVER, bypass_scene
from harness.capture_agent import CaptureAgent
from harness.direct import DirectPods, direct_pods
from harness.processes import wait_until
from harness.streaming import Pair, many_descriptors, pairs, streaming
from harness.streams import BLOCK, Side

from nodeagent.dataplane.bypass_layout import Access
from nodeagent.dataplane.ebpf_node import unload

pytestmark = pytest.mark.netns

CONNECTIONS = 200
LARGE = 2_000_000
"""A stream that sockets do not take without a reader."""
LIMIT = 1 << 16
"""Of what waits in the kernel past TCP: small, so that ways change often."""
_numbers = itertools.count()


@dataclass
class Way:
    """Two pods whose connections go some way."""

    name: str
    one: Namespace
    two: Namespace
    taken: Callable[[], int]
    """How many connections have gone it, each counted `ends` times."""
    ends: int
    size: int = 60_000
    """Of a stream."""
    open: Callable[[Namespace, Namespace, int], None] = lambda client, server, port: None
    """Called before connections are made to a port."""
    watched: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    """Looks, around streams, at what the way itself says of them."""

    def pairs(self, client: Namespace, server: Namespace, count: int) -> list[Pair]:
        return pairs(client, server, count, lambda port: self.open(client, server, port))

    @contextlib.contextmanager
    def streaming(self, stall: float, count: int = CONNECTIONS, size: int = 0) -> Iterator[tuple[Side, Side]]:
        """Over that many connections from each side, of the way's size where none is given."""
        there, back = self.pairs(self.one, self.two, count), self.pairs(self.two, self.one, count)
        with streaming(there, back, size=size or self.size, stall=stall) as sides:
            yield sides


@contextlib.contextmanager
def _engine(pins: Path | None) -> Iterator[Way]:
    with (
        Network("whole") as network,
        scratch_cgroup("whole") as group,
        CaptureAgent(group.join, pins) as agent,
    ):
        one, two = (network.add(name, default_route=True) for name in ("one", "two"))
        for each in (one, two):
            agent.enrol(each, each.name)
        taken = lambda: int(agent.ask("counters")["downstream_cx_total"])  # noqa: E731
        yield Way("ebpf" if pins else "nft", one, two, taken, 2)


@contextlib.contextmanager
def _bypass(pins: Path) -> Iterator[Way]:
    with bypass_scene("whole", pins) as scene:
        maps, number = scene.maps, {scene.client.name: CLIENT, scene.server.name: SERVER}
        maps.begin()
        for each in (scene.client, scene.server):
            maps.name(each, number[each.name])
            maps.source(each, number[each.name])

        def open_(client: Namespace, server: Namespace, port: int) -> None:
            to = number[server.name]
            maps.verdict(Access.ALLOW, number[client.name], port, server=to)
            for address in (server.v4, server.v6):
                service = next(_numbers)
                maps.service(address, port, service=service)
                maps.backend(0, address, port, to, service=service)

        yield Way("bypass", scene.client, scene.server, lambda: maps.count("bypassed"), 1, open=open_)


@contextlib.contextmanager
def _direct() -> Iterator[Way]:
    with direct_pods("whole", LIMIT) as pods:
        yield Way(
            "direct",
            pods.one,
            pods.two,
            lambda: pods.counted("joined"),
            2,
            size=150_000,
            watched=lambda: _changing_ways(pods),
        )


@contextlib.contextmanager
def _changing_ways(pods: DirectPods) -> Iterator[None]:
    """Some data has passed TCP by, some could not; no socket is left."""
    before = pods.direct.state().counters
    yield
    counters = {name: value - before[name] for name, value in pods.direct.state().counters.items()}
    for name in ("bytes", "pass_unread", "pass_full"):
        assert counters[name] > 0, f"{name}: the ways were not both taken"
    wait_until(lambda: pods.direct.state().sweep.sockets == 0, "all sockets are gone")


@pytest.fixture(scope="module", params=["nft", "ebpf", "bypass", "direct"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    require("root", "nft", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-whole-{os.getpid()}-{next(_numbers)}")
    made: dict[str, Any] = {
        "nft": lambda: _engine(None),
        "ebpf": lambda: _engine(pins),
        "bypass": lambda: _bypass(pins),
        "direct": _direct,
    }
    try:
        with many_descriptors(), made[request.param]() as way:
            yield way
    finally:
        unload(pins)


def test_streams_arrive_whole(way: Way) -> None:
    before = way.taken()
    with way.watched(), way.streaming(0.4) as sides:
        for side in sides:
            assert side.outcome() == {"whole": 2 * CONNECTIONS, "cut": 0, "wrong": []}
    assert way.taken() - before == 2 * CONNECTIONS * way.ends


def test_what_arrived_before_a_kill_is_right(way: Way) -> None:
    """Of the process that has one side's ends, in the middle of streams."""
    with way.streaming(1.5, 30, LARGE) as (one, two):
        time.sleep(0.1)
        two.kill()
        found = one.outcome()
    assert found["wrong"] == []
    assert found["whole"] + found["cut"] == 60
    assert found["cut"] > 0, "so much cannot have arrived yet"


def test_what_waits_for_a_reader_is_bounded(way: Way) -> None:
    """By the buffers of the sockets on the way, and arrives when it is read at last."""
    ((client, server),) = way.pairs(way.one, way.two, 1)
    data = BLOCK * 64
    with client, server:
        client.setblocking(False)
        sent = 0
        while sent < len(data) and select.select([], [client], [], 0.3)[1]:
            sent += client.send(data[sent : sent + 200_000])
        assert 0 < sent < len(data), "nothing stops the sender"
        client.shutdown(socket.SHUT_WR)
        with server.makefile("rb") as whole:
            assert whole.read() == data[:sent]
    wait_until(lambda: way.taken() > 0, "the way was taken")
