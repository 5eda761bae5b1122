"""What connect() costs where connections are captured: by eBPF, by nftables, and without a mesh.

A lab for each way, all there at the same time; a client in a pod connects to a service, one connection after the other.
connect() does not wait for the agent, so its time is that of the capture alone. Without a mesh a connection takes the
way through the node to the other pod, and the service's address is translated there. Programs at the root of the cgroup
hierarchy are run for every connect() on the machine: the other two pay a look-up for them, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from nodeagent.bench.case import WORKER_CPU, LoadCase, Scenario
from nodeagent.bench.load import Load, Outcome
from nodeagent.bench.peers.base import Peer
from nodeagent.bench.peers.captured import CapturedByEbpf, CapturedByNft, PlainLab
from nodeagent.bench.results import DIRECT, Metric
from nodeagent.bench.services import HTTP
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig

_RATE: Final = 1_000
_METRICS: Final = (
    Metric("p50", "connect(), p50", "us"),
    Metric("p99", "connect(), p99", "us"),
    Metric("client_cpu", "CPU per connect, client", "us"),
    Metric(WORKER_CPU.key, "CPU per connect, agent's data path threads", "us"),
)


def _per_connect(outcome: Outcome) -> Mapping[str, float]:
    return {
        "p50": float(outcome.latency["p50"]),
        "p99": float(outcome.latency["p99"]),
        "client_cpu": outcome.load_cpu * 1e6 / outcome.requests,
        WORKER_CPU.key: outcome.cpu.workers / 1000 / outcome.requests,
    }


class ConnectCase(LoadCase):
    """The same client in each of the labs."""

    def prepare(
        self, stack: ExitStack, stage: Stage, peers: Sequence[Peer], config: BenchConfig
    ) -> Sequence[Peer]:
        """Both ways to capture always take part, without a mesh if `direct` was chosen; each has a lab."""
        del stack, stage, config
        able: list[Peer] = [CapturedByEbpf(), CapturedByNft()]
        able += [PlainLab()] if DIRECT in {peer.name for peer in peers} else []
        return able


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    load = Load("connect", 1, rate=_RATE)
    return [
        ConnectCase(f"{_RATE:,} connections per second, one at a time", HTTP, load, _METRICS, _per_connect)
    ]


SCENARIO = Scenario("capture", "connect() by eBPF (as nodeagent), by nft, and without a mesh", _cases)
