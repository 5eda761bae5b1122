"""What a peer is."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from nodeagent.bench.accounting import CpuTime, Memory
from nodeagent.bench.services import SERVICES, Service, port_of
from nodeagent.bench.stage import Process, Stage
from nodeagent.config.bench import BenchConfig

FIRST_PORT = 10_000
PORTS_EACH = 20


class Accounted(Protocol):
    """A program whose cost can be told."""

    def check(self) -> None:
        """BenchError if it has ended."""

    def cpu_time(self) -> CpuTime:
        """Processor time of all its threads."""
        ...

    def memory(self) -> Memory:
        """Memory of all its processes."""
        ...

    def stop(self) -> None:
        """End it."""


@dataclass(slots=True)
class Running:
    """A peer at work: where a client finds the services, and what it costs. A context manager."""

    name: str
    targets: dict[str, str]
    """`ADDRESS:PORT` by service."""
    processes: tuple[Accounted, ...] = ()
    client: Path | None = None
    """Network namespace in which the load runs; None: the stage's."""
    host: str = ""
    """What HTTP requests are for; empty: does not matter."""
    tls: str = ""
    """Prefix of the certificate with which clients speak TLS; empty: they do not."""
    beside: tuple[Accounted, ...] = ()
    """What goes with it and is not its cost."""

    def target(self, service: Service) -> str:
        """Where a client connects to."""
        return self.targets[service.name]

    def check(self) -> None:
        """BenchError if one of its processes has ended."""
        for process in (*self.beside, *self.processes):
            process.check()

    def cpu_time(self) -> CpuTime:
        """Of all its processes."""
        parts = [process.cpu_time() for process in self.processes]
        return CpuTime(sum(part.total for part in parts), sum(part.workers for part in parts))

    def memory(self) -> Memory:
        """Of all its processes."""
        parts = [process.memory() for process in self.processes]
        return Memory(
            *(sum(getattr(part, name) for part in parts) for name in ("rss", "pss", "private", "peak_rss"))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in (*self.beside, *self.processes):
            process.stop()


class Peer(ABC):
    """A proxy that can be put between the load and the back end."""

    name: ClassVar[str]
    index: ClassVar[int]
    """Tells the ports of peers apart."""

    @abstractmethod
    def find(self) -> str:
        """Its version; CapabilityError, with how to get it, if it is not here."""

    @abstractmethod
    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Start it for some of the services; returns when it serves."""

    def serves(self, service: Service) -> bool:
        """Whether it can proxy the service at all."""
        del service
        return True

    @property
    def base(self) -> int:
        """Its first port."""
        return FIRST_PORT + self.index * PORTS_EACH

    def port(self, service: Service) -> int:
        """Where it listens for a service."""
        return port_of(service, self.base)

    def running(self, process: Process, services: Sequence[Service]) -> Running:
        """Wait until it listens for the services."""
        try:
            process.wait_until_listening([self.port(service) for service in services])
        except BaseException:
            process.stop()
            raise
        targets = {service.name: f"127.0.0.1:{self.port(service)}" for service in SERVICES}
        return Running(self.name, targets, (process,))


def ask_version(argv: Sequence[str]) -> str:
    """What a program prints of its version, both streams, first line."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown version"
