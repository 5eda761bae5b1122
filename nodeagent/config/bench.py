"""Settings of the benchmark."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nodeagent.config.agent import CAPTURE_MODES
from nodeagent.errors import CapabilityError, ConfigError

LAYOUTS = ("loopback", "pods")


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What `nodeagent bench` was told. Times are seconds."""

    rounds: int = 7
    seconds: float = 3.0
    """Measured in each round, after the warm-up."""
    warm_up: float = 1.0
    workers: int = 1
    """Worker threads of every proxy."""
    captured: bool = False
    """Measure through a lab's capture, not through an explicit proxy."""
    capture_mode: str = "auto"
    """How labs' agents capture: one of config.agent.CAPTURE_MODES."""
    case: str = ""
    """Only cases with this in their names are measured."""
    layout: str = "loopback"
    """Scenario mtls: where load and back end are, one of LAYOUTS (bench/peers/mutual.py)."""
    access_log: bool = True
    """nodeagent makes an access record of each request and writes a log; the peers never do."""
    steal_percent: float = 1.0
    """A measurement during which the hypervisor took more than this away is dropped."""
    services: int = 10_000
    """Scenario config: services, with ten endpoints each."""
    connections: int = 5_000
    """Scenario idle: connections."""

    def __post_init__(self) -> None:
        _within("--rounds", self.rounds, 1, 1000)
        _within("--seconds", self.seconds, 0.1, 3600)
        _within("--warm-up", self.warm_up, 0, 600)
        _within("--workers", self.workers, 1, 256)
        _within("--steal", self.steal_percent, 0, 100)
        _within("--services", self.services, 1, 50_000)
        _within("--connections", self.connections, 1, 20_000)
        _one_of("--capture-mode", self.capture_mode, CAPTURE_MODES)
        _one_of("--layout", self.layout, LAYOUTS)


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{option} {value:g}: must be between {low:g} and {high:g}")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} {value}: must be one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: the proxy alone on its cores, load generator and back end on the others."""

    proxy: tuple[int, ...]
    load: tuple[int, ...]


def choose_cores(workers: int) -> Cores:
    """As many cores for the proxy as it has workers, the last ones; the rest for what drives it.

    With as many workers as cores the load shares them: what a request costs can still be told, the time it
    takes cannot.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise CapabilityError("the benchmark needs two cores: one for the proxy, one for what drives it")
    if workers > len(cores):
        raise ConfigError(f"--workers {workers}: this machine lends us {len(cores)} cores")
    proxy = tuple(cores[-workers:])
    return Cores(proxy, tuple(core for core in cores if core not in proxy) or proxy)
