"""The floor relay of native/bench: the least that a hop in user space costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from nodeagent import __version__
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.services import SERVICES, Service
from nodeagent.bench.stage import Stage, program
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import CapabilityError


class Floor(Peer):
    """One process a service, each with one thread; only the one under load works."""

    name: ClassVar[str] = "floor"
    index: ClassVar[int] = 5

    def find(self) -> str:
        """It is built with us."""
        try:
            program("floor")
        except CapabilityError as error:
            raise CapabilityError(f"not built: {error}") from None
        return f"nodeagent-floor {__version__}"

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Start one for each of the services."""
        del config
        processes = []
        for service in services:
            mode = "http" if service.http else "splice" if service.bulk else "tcp"
            argv = [program("floor"), "--mode", mode, "--listen", str(self.port(service))]
            argv += ["--upstream", f"127.0.0.1:{service.backend_port}"]
            processes.append(stage.spawn(f"floor-{service.name}", argv, stage.cores.proxy))
        for process, service in zip(processes, services, strict=True):
            process.wait_until_listening([self.port(service)])
        targets = {s.name: f"127.0.0.1:{self.port(s)}" for s in SERVICES}
        return Running(self.name, targets, tuple(processes))
