"""Pods of one node: past the engine, and with joined sockets; without a mesh, with nft's translation, with Envoy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from nodeagent.bench.case import CPU, RATE, LoadCase, Measurement, Opened, Scenario, start_peers
from nodeagent.bench.load import Load, Outcome
from nodeagent.bench.peers.base import Peer
from nodeagent.bench.peers.envoy import Envoy
from nodeagent.bench.peers.same_node import same_node_peers
from nodeagent.bench.results import Compare, Metric
from nodeagent.bench.services import ECHO, HTTP, STREAM, Service
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.dataplane.bpf import ProgramTimes

_CONNECTS: Final = 1_000
_REQUESTS: Final = Metric(RATE.key, "requests per second", "1/s", lower_is_better=False)
_LOAD_CPU: Final = Metric("load_cpu", "CPU per request, client", "us")
_BYTES: Final = Metric("mb", "MB per second", "MB/s", lower_is_better=False)
_BPF: Final = Metric("bpf", "BPF programs, share of a core", "%", Compare.NONE)
_COUNTED: Final = Metric("bpf_counted", "the same with the counting itself", "%", Compare.NONE)
_PROXY_CPU: Final = Metric(CPU.key, "CPU per request, proxy or agent", "us", Compare.NONE)


def _per_request(outcome: Outcome) -> Mapping[str, float]:
    return {
        _REQUESTS.key: outcome.requests / outcome.seconds,
        _LOAD_CPU.key: outcome.load_cpu * 1e6 / outcome.requests,
        CPU.key: outcome.cpu.total / 1000 / outcome.requests,
    }


def _per_connect(outcome: Outcome) -> Mapping[str, float]:
    return {
        "p50": float(outcome.latency["p50"]),
        "p99": float(outcome.latency["p99"]),
        _LOAD_CPU.key: outcome.load_cpu * 1e6 / outcome.requests,
    }


def _per_byte(outcome: Outcome) -> Mapping[str, float]:
    return {_BYTES.key: outcome.bytes / 1e6 / outcome.seconds}


class SameNodeCase(LoadCase):
    """The same client in each of the labs."""

    @contextmanager
    def open(self, stage: Stage, peers: Sequence[Peer], config: BenchConfig) -> Iterator[Opened]:
        """Bring up the labs; Envoy's only if it was chosen."""
        chosen = {peer.name for peer in peers}
        able = [peer for peer in same_node_peers() if peer.name in chosen or peer.name != Envoy.name]
        with ExitStack() as stack:
            running, failures = start_peers(stack, stage, able, config, self.service)
            times = stack.enter_context(ProgramTimes())
            empty = times.empty_run()

            def one(name: str) -> Measurement:
                (ns, runs), begun = times.read(), time.monotonic_ns()
                found = self.measure(stage, running[name], config)
                (ns_now, runs_now), passed = times.read(), time.monotonic_ns() - begun
                counted = 100 * (ns_now - ns) / passed
                share = counted - 100 * (runs_now - runs) * empty / passed
                return replace(found, values={**found.values, _BPF.key: share, _COUNTED.key: counted})

            yield Opened(one, list(running), failures)


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    metrics = (_REQUESTS, _LOAD_CPU, _PROXY_CPU, _BPF, _COUNTED)
    times = (
        Metric("p50", "connect(), p50", "us"),
        Metric("p99", "connect(), p99", "us"),
        _LOAD_CPU,
        _BPF,
        _COUNTED,
    )

    def case(name: str, service: Service, load: Load) -> LoadCase:
        return SameNodeCase(name, service, load, metrics, _per_request)

    return [
        case("HTTP/1.1 keep-alive, 40 B, 16 connections", HTTP, Load("http", 16, 40)),
        case("64 B there and back, 16 connections", ECHO, Load("echo", 16, 64)),
        SameNodeCase("bulk, 4 connections", STREAM, Load("stream", 4), (_BYTES, _BPF, _COUNTED), _per_byte),
        SameNodeCase(
            f"{_CONNECTS:,} connections per second, one at a time",
            HTTP,
            Load("connect", 1, rate=_CONNECTS),
            times,
            _per_connect,
        ),
    ]


SCENARIO = Scenario("same-node", "two pods of one node, past the engine, and with joined sockets", _cases)
