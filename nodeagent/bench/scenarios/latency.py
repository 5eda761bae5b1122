"""What a proxy adds to the time of a request at a load far below what it could do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nodeagent.bench.case import LoadCase, Scenario
from nodeagent.bench.load import Load, Outcome
from nodeagent.bench.results import Compare, Metric
from nodeagent.bench.services import HTTP
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError

_RATE: Final = 1_000
_METRICS: Final = (
    Metric("p50", "added p50", "us", Compare.ADDED),
    Metric("p99", "added p99", "us", Compare.ADDED),
    Metric("p999", "added p99.9", "us", Compare.ADDED),
    Metric("mean", "added mean", "us", Compare.ADDED),
    Metric("cpu", "CPU per request, whole process", "us"),
)


def _percentiles(outcome: Outcome) -> Mapping[str, float]:
    if outcome.missed or outcome.requests < 0.98 * _RATE * outcome.seconds:
        raise BenchError(
            f"only {outcome.requests / outcome.seconds:.0f} of {_RATE} requests per second were answered: "
            "above the knee, latencies say nothing"
        )
    values = {key: float(outcome.latency[key]) for key in ("p50", "p99", "p999", "mean")}
    return values | {"cpu": outcome.cpu.total / 1000 / outcome.requests}


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    return [
        LoadCase(
            f"{_RATE:,} requests per second, {connections} connection{'s' if connections > 1 else ''}",
            HTTP,
            Load("http", connections, 40, _RATE),
            _METRICS,
            _percentiles,
        )
        for connections in (1, 16)
    ]


SCENARIO = Scenario(
    "latency", f"added latency, open loop at {_RATE:,} requests per second", _cases, captured=True
)
