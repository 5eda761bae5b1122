"""A line of the table: what is measured, and how one measurement is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from nodeagent.bench.load import Load, Outcome, measure
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.results import DIRECT, Compare, Metric
from nodeagent.bench.services import Service, start_backend
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import NodeagentError


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement; `values` by Metric.key."""

    values: Mapping[str, float]
    steal_percent: float = 0.0
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(slots=True)
class Opened:
    """A case whose peers are ready: measure one of them."""

    measure: Callable[[str], Measurement]
    peers: list[str]
    failures: dict[str, str] = field(default_factory=dict)
    """Peers that could not be made ready, and why."""


class Case(ABC):
    """Something that is measured of each peer, in each round."""

    name: str
    metrics: tuple[Metric, ...]

    @abstractmethod
    def open(
        self, stage: Stage, peers: Sequence[Peer], config: BenchConfig
    ) -> AbstractContextManager[Opened]:
        """Make everything ready for the time of the block."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What `nodeagent bench NAME` measures."""

    name: str
    summary: str
    cases: Callable[[BenchConfig], Sequence[Case]]
    captured: bool = False
    """Whether it can also be measured through a lab's capture."""


CPU: Final = Metric("cpu", "CPU per request, whole process", "us")
WORKER_CPU: Final = Metric("worker_cpu", "CPU per request, data path threads", "us")
RATE: Final = Metric("rate", "requests per second", "1/s", Compare.NONE, lower_is_better=False)
BUSY: Final = Metric("busy", "proxy's share of its cores", "%", Compare.NONE)
RSS: Final = Metric("peak_rss", "peak RSS", "MB", Compare.NONE)
PSS: Final = Metric("pss", "PSS", "MB", Compare.NONE)


@dataclass(frozen=True)
class LoadCase(Case):
    """Load on a service, through each peer in turn. All peers run; one at a time has work."""

    name: str
    service: Service
    load: Load
    metrics: tuple[Metric, ...] = (CPU, WORKER_CPU, RATE, BUSY, RSS, PSS)
    judge: Callable[[Outcome], Mapping[str, float]] | None = None
    """Values of a measurement instead of those per request."""

    @contextmanager
    def open(self, stage: Stage, peers: Sequence[Peer], config: BenchConfig) -> Iterator[Opened]:
        """Start the peers, and what they need."""
        with ExitStack() as stack:
            able = self.prepare(stack, stage, peers, config)
            running, failures = start_peers(stack, stage, able, config, self.service)

            def one(name: str) -> Measurement:
                return self.measure(stage, running[name], config)

            yield Opened(one, list(running), failures)

    def prepare(
        self, stack: ExitStack, stage: Stage, peers: Sequence[Peer], config: BenchConfig
    ) -> Sequence[Peer]:
        """Start what the peers share, here a back end. Which peers take part, of those that were chosen."""
        del config
        stack.enter_context(start_backend(stage))
        return peers

    def measure(self, stage: Stage, peer: Running, config: BenchConfig) -> Measurement:
        """Measure a running peer."""
        argv = self.load.argv(peer.target(self.service), config.warm_up, config.seconds, peer.host, peer.tls)
        outcome = measure(
            lambda line: stage.spawn("load", line, stage.cores.load, talk=True, namespace=peer.client),
            argv,
            peer.cpu_time,
        )
        peer.check()
        return self.as_measurement(outcome, peer, len(stage.cores.proxy))

    def as_measurement(self, outcome: Outcome, peer: Running, cores: int) -> Measurement:
        """The metrics of an outcome."""
        values = dict((self.judge or per_request)(outcome))
        if peer.name == DIRECT:
            for metric in (CPU, WORKER_CPU):
                values.pop(metric.key, None)
        else:
            values[BUSY.key] = 100 * outcome.cpu.total / (outcome.seconds * 1e9 * cores)
            used = peer.memory()
            values[RSS.key], values[PSS.key] = used.peak_rss / 1e6, used.pss / 1e6
        known = {metric.key for metric in self.metrics}
        kept = {key: value for key, value in values.items() if key in known}
        return Measurement(kept, outcome.steal_percent, outcome.curve() if outcome.requests else ())


def per_request(outcome: Outcome) -> Mapping[str, float]:
    """Microseconds of CPU time per request, and requests per second."""
    return {
        CPU.key: outcome.cpu.total / 1000 / outcome.requests,
        WORKER_CPU.key: outcome.cpu.workers / 1000 / outcome.requests,
        RATE.key: outcome.requests / outcome.seconds,
    }


def start_peers(
    stack: ExitStack, stage: Stage, peers: Sequence[Peer], config: BenchConfig, service: Service
) -> tuple[dict[str, Running], dict[str, str]]:
    """Start those that can serve it; (running, failures) by name."""
    running: dict[str, Running] = {}
    failures: dict[str, str] = {}
    for peer in peers:
        if not peer.serves(service):
            continue
        try:
            running[peer.name] = stack.enter_context(peer.start(stage, config, [service]))
        except NodeagentError as error:
            failures[peer.name] = str(error)
    return running, failures
