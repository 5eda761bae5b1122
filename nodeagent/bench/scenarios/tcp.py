"""Plain TCP: small messages to and fro, and bulk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nodeagent.bench.case import BUSY, PSS, RSS, LoadCase, Scenario
from nodeagent.bench.load import Load, Outcome
from nodeagent.bench.results import Compare, Metric
from nodeagent.bench.services import ECHO, STREAM
from nodeagent.config.bench import BenchConfig

_CPU_PER_MB: Final = Metric("cpu_mb", "CPU per MB, whole process", "us")
_WORKER_CPU_PER_MB: Final = Metric("worker_cpu_mb", "CPU per MB, data path threads", "us")
_THROUGHPUT: Final = Metric("throughput", "throughput", "MB/s", Compare.NONE, lower_is_better=False)
BULK: Final = (_CPU_PER_MB, _WORKER_CPU_PER_MB, _THROUGHPUT, BUSY, RSS, PSS)


def per_megabyte(outcome: Outcome) -> Mapping[str, float]:
    """Microseconds of CPU time per MB, and MB per second."""
    megabytes = outcome.bytes / 1e6
    values = {_THROUGHPUT.key: megabytes / outcome.seconds}
    if outcome.cpu.total:  # not on the direct way
        values[_CPU_PER_MB.key] = outcome.cpu.total / 1000 / megabytes
        values[_WORKER_CPU_PER_MB.key] = outcome.cpu.workers / 1000 / megabytes
    return values


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    return [
        LoadCase("64 B there and back, 64 connections", ECHO, Load("echo", 64, 64)),
        LoadCase("bulk, 4 connections", STREAM, Load("stream", 4), BULK, per_megabyte),
    ]


SCENARIO = Scenario("tcp", "TCP request/response and bulk", _cases, captured=True)
