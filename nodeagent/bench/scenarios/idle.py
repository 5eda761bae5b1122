"""What an idle client connection costs: memory after minus memory before, divided by their number."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from nodeagent.bench.case import Case, Measurement, Opened, Scenario
from nodeagent.bench.load import Load, held, measure
from nodeagent.bench.peers.base import Peer
from nodeagent.bench.results import DIRECT, Compare, Metric
from nodeagent.bench.services import HTTP, start_backend
from nodeagent.bench.stage import Process, Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError

_SETTLE_SECONDS: Final = 0.5
_BUSY_SECONDS: Final = 1.5
_OPEN_SECONDS: Final = 60.0
_METRICS: Final = (
    Metric("private", "private memory per idle connection", "B"),
    Metric("pss", "PSS per idle connection", "B"),
    Metric("start_rss", "RSS at start", "MB"),
    Metric("start_pss", "PSS at start", "MB"),
    Metric("full_rss", "RSS with all connections", "MB", Compare.NONE),
)


class IdleCase(Case):
    """A fresh process each time: what an allocator keeps of an earlier run would hide the cost.

    One busy connection comes first, so that tables, logs and interpreter have grown to what traffic needs, with
    no other connection's memory to be used again. Then each connection has one request, so that it has passed
    through everything a used one has.
    """

    metrics = _METRICS

    def __init__(self, connections: int) -> None:
        self.name = f"{connections:,} HTTP connections"
        self._connections = connections

    @contextmanager
    def open(self, stage: Stage, peers: Sequence[Peer], config: BenchConfig) -> Iterator[Opened]:
        """Start the back end; the peers are started one by one."""
        able = {peer.name: peer for peer in peers if peer.name != DIRECT}
        with start_backend(stage):
            yield Opened(lambda name: self._measure(stage, able[name], config), list(able))

    def _measure(self, stage: Stage, peer: Peer, config: BenchConfig) -> Measurement:
        def spawn(argv: list[str]) -> Process:
            return stage.spawn("load", argv, stage.cores.load, talk=True)

        with peer.start(stage, config, [HTTP]) as running:
            time.sleep(_SETTLE_SECONDS)
            start = running.memory()
            target = running.target(HTTP)
            measure(spawn, Load("http", 1, 40).argv(target, 0, _BUSY_SECONDS), running.cpu_time)
            time.sleep(_SETTLE_SECONDS)
            before = running.memory()
            with held(spawn, Load("http", self._connections, 40), target, _OPEN_SECONDS):
                time.sleep(_SETTLE_SECONDS)
                after = running.memory()
                running.check()
        if after.rss <= 0 or before.rss <= 0:
            raise BenchError(f"{peer.name}: no memory accounted")
        return Measurement(
            {
                "private": (after.private - before.private) / self._connections,
                "pss": (after.pss - before.pss) / self._connections,
                "start_rss": start.rss / 1e6,
                "start_pss": start.pss / 1e6,
                "full_rss": after.rss / 1e6,
            }
        )


def _cases(config: BenchConfig) -> Sequence[Case]:
    return [IdleCase(config.connections)]


SCENARIO = Scenario("idle", "memory per idle connection, and at start", _cases)
