"""Drives the load generator (native/bench/load.c) and reads the accounts of a proxy while it measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.bench.accounting import CpuTime, MachineTime
from nodeagent.bench.stage import Process, program
from nodeagent.errors import BenchError

_GRACE_SECONDS: Final = 20.0
_ERROR_SHARE: Final = 0.001
"""More failed requests than this share make a measurement worthless."""


Spawn = Callable[[list[str]], Process]
"""Starts the load generator with a command line."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask for. `protocol` is one of the load generator's; rate 0 is a closed loop."""

    protocol: str
    connections: int
    body: int = 64
    rate: int = 0
    resume: bool = False
    """With TLS: new connections resume the session of earlier ones."""

    def argv(self, target: str, warm_up: float, seconds: float, host: str = "", tls: str = "") -> list[str]:
        """The load generator's command line; `host` is what HTTP requests are for, `tls` the prefix of the client's
        certificate, if TLS is spoken."""
        argv = [program("load"), "--protocol", self.protocol, "--target", target]
        argv += ["--connections", str(self.connections), "--body", str(self.body)]
        argv += ["--warm-up", f"{warm_up:g}", "--seconds", f"{seconds:g}"]
        argv += ["--rate", str(self.rate)] if self.rate else []
        argv += ["--tls", tls, *(["--resume"] if self.resume else [])] if tls else []
        return argv + (["--host", host] if host else [])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it, and what it cost the proxy meanwhile."""

    seconds: float
    requests: int
    bytes: int
    missed: int
    """Open loop: requests for which there was no room even to wait."""
    latency: Mapping[str, Any]
    """Microseconds: min, mean, max, p50 .. p9999, and buckets of [value, count]."""
    cpu: CpuTime
    steal_percent: float
    load_cpu: float
    """Seconds of the load generator's own processor time."""

    def curve(self) -> tuple[tuple[float, float], ...]:
        """(share of requests, microseconds): the distribution, for plots; thinned out."""
        total = self.latency["count"]
        points: list[tuple[float, float]] = []
        seen = 0
        for value, count in self.latency["buckets"]:
            seen += count
            share = seen / total
            if not points or share - points[-1][0] > min(0.01, (1 - points[-1][0]) / 10) or seen == total:
                points.append((round(share, 7), value))
        return tuple(points)


def measure(spawn: Spawn, argv: list[str], read_cpu: Callable[[], CpuTime]) -> Outcome:
    """Run the load generator once; BenchError if what came back was wrong."""
    with spawn(argv) as process:
        _read_event(process, "begin")
        cpu, machine = read_cpu(), MachineTime.now()
        end = _read_event(process, "end")
        spent, steal = read_cpu() - cpu, MachineTime.now().steal_percent_since(machine)
    _judge(end)
    return Outcome(
        end["seconds"], end["requests"], end["bytes"], end["missed"], end["latency"], spent, steal, end["cpu"]
    )


@contextmanager
def held(spawn: Spawn, load: Load, target: str, seconds: float) -> Iterator[None]:
    """Open all connections, one request on each, and keep them for the time of the block; BenchError if they
    cannot be had within `seconds`, or if some are gone at the end."""
    with spawn([*load.argv(target, 0, seconds), "--hold"]) as process:
        _read_event(process, "begin")
        yield
        process.stdin.close()
        end = _read_event(process, "end")
    _judge(end)
    if end["held"] != load.connections:
        raise BenchError(f"of {load.connections} idle connections {end['held']} are left")


def _read_event(process: Process, name: str) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        process.wait(_GRACE_SECONDS)
        process.check()
    event: dict[str, Any] = json.loads(line)
    if event["event"] != name:
        raise BenchError(f"{process.name} says {event['event']!r}, not {name!r}")
    return event


def _judge(end: Mapping[str, Any]) -> None:
    failed = sum(end["errors"].values())
    if failed > _ERROR_SHARE * end["requests"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in end["errors"].items() if count)
        raise BenchError(f"requests failed ({kinds} of {end['requests']}): {end['first_error']}")
    if not end["requests"] and not end["bytes"]:
        raise BenchError("nothing came back")
