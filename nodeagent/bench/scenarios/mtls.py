"""One hop with mutual TLS on one side: keep-alive, bulk, and the handshakes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from nodeagent.bench.case import CPU, RATE, WORKER_CPU, LoadCase, Scenario
from nodeagent.bench.load import Load
from nodeagent.bench.peers.base import Peer
from nodeagent.bench.peers.mutual import Hop
from nodeagent.bench.peers.mutual_proxies import mutual_peers
from nodeagent.bench.scenarios.tcp import BULK, per_megabyte
from nodeagent.bench.services import HTTP, STREAM
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig

_REQUESTS: Final = (CPU, WORKER_CPU, RATE)


@dataclass(frozen=True)
class MutualCase(LoadCase):
    """Load through a hop with TLS."""

    server: bool = True
    """The hop is TLS's server, not its client."""

    def prepare(
        self, stack: ExitStack, stage: Stage, peers: Sequence[Peer], config: BenchConfig
    ) -> Sequence[Peer]:
        """Each has a lab of its own, in which the load is, too."""
        del stack, stage
        chosen = {peer.name for peer in peers}
        hop = Hop(self.server, near=config.layout == "loopback")
        return [peer for peer in mutual_peers(hop) if peer.name in chosen]


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    once = "a new connection per request"
    return [
        MutualCase("TLS in: keep-alive, 40 B, 64 connections", HTTP, Load("http", 64, 40), _REQUESTS),
        MutualCase("TLS in: bulk, 4 connections", STREAM, Load("stream", 4), BULK, per_megabyte),
        MutualCase(f"TLS in: {once}, full handshakes", HTTP, Load("http-close", 16, 40), _REQUESTS),
        MutualCase(f"TLS in: {once}, resumed", HTTP, Load("http-close", 16, 40, resume=True), _REQUESTS),
        MutualCase(
            "TLS out: keep-alive, 40 B, 64 connections", HTTP, Load("http", 64, 40), _REQUESTS, server=False
        ),
        MutualCase(
            "TLS out: bulk, 4 connections", STREAM, Load("stream", 4), BULK, per_megabyte, server=False
        ),
    ]


SCENARIO = Scenario("mtls", "mutual TLS on one side of a hop: requests, bulk, handshakes", _cases)
