"""No proxy: what the load generator and the back end do by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.results import DIRECT
from nodeagent.bench.services import SERVICES, Service
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig


class Direct(Peer):
    """The client talks to the back end."""

    name: ClassVar[str] = DIRECT
    index: ClassVar[int] = 0

    def find(self) -> str:
        """Always there."""
        return "no proxy"

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Nothing to start."""
        del stage, config, services
        return Running(self.name, {s.name: f"127.0.0.1:{s.backend_port}" for s in SERVICES})
