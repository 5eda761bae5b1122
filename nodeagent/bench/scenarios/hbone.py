"""Two nodes with tunnels between them: requests, bulk, and what an idle stream costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from nodeagent.bench.case import (
    CPU,
    RATE,
    WORKER_CPU,
    Case,
    LoadCase,
    Measurement,
    Opened,
    Scenario,
)
from nodeagent.bench.labs import BenchLab
from nodeagent.bench.load import Load, held, measure
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.peers.tunnelled import TUNNELLED
from nodeagent.bench.results import DIRECT, SUBJECT, Compare, Metric
from nodeagent.bench.scenarios.tcp import BULK, per_megabyte
from nodeagent.bench.services import ECHO, HTTP, STREAM
from nodeagent.bench.stage import Process, Stage
from nodeagent.config.bench import BenchConfig

_SETTLE_SECONDS: Final = 3.0
"""After what an agent has taken in, it gives memory back once."""
_OPEN_SECONDS: Final = 60.0
_STREAMS: Final = 1_000


def _in_tunnels(peers: Sequence[Peer]) -> list[Peer]:
    """Those that take part here, in place of the chosen ones of the same names."""
    chosen = {peer.name for peer in peers}
    return [peer for peer in TUNNELLED if peer.name in chosen]


class TunnelCase(LoadCase):
    """Load through both nodes."""

    def prepare(
        self, stack: ExitStack, stage: Stage, peers: Sequence[Peer], config: BenchConfig
    ) -> Sequence[Peer]:
        """Each has a lab of its own; the back end is a pod of it."""
        del stack, stage, config
        return _in_tunnels(peers)


class IdleStreams(Case):
    """Connections that do nothing: memory of both ends, and how many TLS sessions carry them."""

    name = f"{_STREAMS:,} idle connections"
    metrics = (
        Metric("private", "private memory per idle connection, both ends", "B"),
        Metric("pss", "PSS per idle connection, both ends", "B"),
        Metric("tunnels", "TLS sessions for all", "", Compare.NONE),
    )

    @contextmanager
    def open(self, stage: Stage, peers: Sequence[Peer], config: BenchConfig) -> Iterator[Opened]:
        """The labs are brought up one by one, so that every measurement has fresh processes."""
        able = {peer.name: peer for peer in _in_tunnels(peers) if peer.name != DIRECT}
        yield Opened(lambda name: self._measure(stage, able[name], config), list(able))

    def _measure(self, stage: Stage, peer: Peer, config: BenchConfig) -> Measurement:
        with peer.start(stage, config, [ECHO]) as running:

            def spawn(argv: list[str]) -> Process:
                return stage.spawn("load", argv, stage.cores.load, talk=True, namespace=running.client)

            target = running.target(ECHO)
            measure(spawn, Load("echo", 1, 64).argv(target, 0, 1.0), running.cpu_time)
            time.sleep(_SETTLE_SECONDS)
            before = running.memory()
            with held(spawn, Load("echo", _STREAMS, 64), target, _OPEN_SECONDS):
                time.sleep(_SETTLE_SECONDS)
                after = running.memory()
                tunnels = _tunnels(running)
                running.check()
        values = {
            "private": (after.private - before.private) / _STREAMS,
            "pss": (after.pss - before.pss) / _STREAMS,
        }
        return Measurement(values | tunnels)


def _tunnels(running: Running) -> dict[str, float]:
    """How many the client's agent has; nothing where there is none to ask."""
    if running.name != SUBJECT:
        return {}
    return {"tunnels": sum(p.tunnels() for p in running.processes if isinstance(p, BenchLab))}


def _cases(config: BenchConfig) -> Sequence[Case]:
    del config
    requests = (CPU, WORKER_CPU, RATE)
    return [
        TunnelCase("HTTP 40 B, 64 connections", HTTP, Load("http", 64, 40), requests),
        TunnelCase("TCP 64 B there and back, 64 connections", ECHO, Load("echo", 64, 64), requests),
        TunnelCase("bulk, 4 connections", STREAM, Load("stream", 4), BULK, per_megabyte),
        IdleStreams(),
    ]


SCENARIO = Scenario("hbone", "two nodes, tunnelled: requests, bulk, idle connections", _cases)
