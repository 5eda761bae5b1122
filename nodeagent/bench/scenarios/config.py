"""What a large mesh costs a node: time to load, memory, and how soon a change of one endpoint takes effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from nodeagent.bench import meshed
from nodeagent.bench.case import Case, Measurement, Opened, Scenario
from nodeagent.bench.mesh_source import USED_ADDRESSES
from nodeagent.bench.peers.base import Peer
from nodeagent.bench.results import SUBJECT, Compare, Metric
from nodeagent.bench.stage import Process, Stage
from nodeagent.bench.statistics import median
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError

_CHANGES: Final = 20
_LOAD_SECONDS: Final = 120.0
_EFFECT_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 0.02
_METRICS: Final = (
    Metric("load", "from start to all loaded", "s"),
    Metric("first", "from start to the first answer", "s"),
    Metric("effect", "one endpoint's change to effect, median", "ms"),
    Metric("effect_max", "one endpoint's change to effect, longest", "ms"),
    Metric("memory", "memory per service (PSS)", "kB"),
    Metric("rss", "RSS", "MB"),
    Metric("peak_rss", "peak RSS while loading", "MB"),
    Metric("empty_rss", "RSS with an empty mesh", "MB"),
    Metric("cpu", "CPU to load", "s"),
    Metric("clusters", "clusters in the engine", "", Compare.NONE),
)
_Start = Callable[[Stage, meshed.ClientPod, meshed.MeshServer, BenchConfig], AbstractContextManager[Process]]
_MESHED: Final[dict[str, _Start]] = {SUBJECT: meshed.meshed_agent, "envoy": meshed.meshed_envoy}


class ConfigCase(Case):
    """nodeagent and Envoy with the same control plane, traffic captured in a pod. Fresh processes each time."""

    metrics = _METRICS

    def __init__(self, services: int) -> None:
        self.name = f"{services:,} services of ten endpoints"
        self._services = services

    @contextmanager
    def open(self, stage: Stage, peers: Sequence[Peer], config: BenchConfig) -> Iterator[Opened]:
        """Run two control planes: of the mesh, and of one with no service."""
        able = [peer.name for peer in peers if peer.name in _MESHED]
        with (
            meshed.mesh_server(stage, 0) as empty,
            meshed.mesh_server(stage, self._services) as full,
        ):

            def one(name: str) -> Measurement:
                # A pod each time: capture by nodeagent outlives the agent, as it must.
                with meshed.client_pod(stage) as pod:
                    base_pss, base_rss = _empty(_MESHED[name](stage, pod, empty, config))
                with meshed.client_pod(stage) as pod:
                    values = self._measure(stage, name, pod, full, config)
                values["memory"] = (values.pop("pss") - base_pss) / 1e3 / self._services
                values["empty_rss"] = base_rss / 1e6
                return Measurement(values)

            yield Opened(one, able)

    def _measure(
        self, stage: Stage, name: str, pod: meshed.ClientPod, server: meshed.MeshServer, config: BenchConfig
    ) -> dict[str, float]:
        probe = meshed.Probe(pod)
        began = time.monotonic()
        with _MESHED[name](stage, pod, server, config) as process:
            try:
                first = _wait_for_answer(probe, process) - began
                loaded = _wait_until_loaded(stage, name, process) - began
                cpu = process.cpu_time().total
                time.sleep(_SETTLE_SECONDS)
                effects = [_effect(server, probe) for _ in range(_CHANGES)]
                memory = process.memory()
                held = {"clusters": float(meshed.agent_clusters(stage))} if name == SUBJECT else {}
            finally:
                probe.close()
        return {
            "first": first,
            "load": max(first, loaded) if name != SUBJECT else loaded,
            "effect": median(effects),
            "effect_max": max(effects),
            "pss": float(memory.pss),
            "rss": memory.rss / 1e6,
            "peak_rss": memory.peak_rss / 1e6,
            "cpu": cpu / 1e9,
            **held,
        }


def _empty(starting: AbstractContextManager[Process]) -> tuple[float, float]:
    """(PSS, RSS) of a proxy that knows of nothing."""
    with starting as process:
        time.sleep(2 * _SETTLE_SECONDS)
        process.check()
        used = process.memory()
    return float(used.pss), float(used.rss)


def _wait_for_answer(probe: meshed.Probe, process: Process) -> float:
    deadline = time.monotonic() + _LOAD_SECONDS
    while probe.ask() not in USED_ADDRESSES:
        process.check()
        if time.monotonic() > deadline:
            raise BenchError(f"no answer within {_LOAD_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)
    return time.monotonic()


def _wait_until_loaded(stage: Stage, name: str, process: Process) -> float:
    """nodeagent says when it has all. Envoy's listeners come last, so that an answer says it."""
    deadline = time.monotonic() + _LOAD_SECONDS
    while name == SUBJECT and not meshed.agent_ready(stage):
        process.check()
        if time.monotonic() > deadline:
            raise BenchError(f"not ready within {_LOAD_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)
    return time.monotonic()


def _effect(server: meshed.MeshServer, probe: meshed.Probe) -> float:
    """Milliseconds from the control plane's being told to an answer from the new endpoint. After a pause: what
    is gathered in a burst is another question."""
    time.sleep(_PAUSE_SECONDS)
    changed, address = server.move_endpoint()
    return (probe.wait_for(address, _EFFECT_SECONDS) - changed) / 1e6


def _cases(config: BenchConfig) -> Sequence[Case]:
    return [ConfigCase(config.services)]


SCENARIO = Scenario("config", "a large mesh: load, memory, one endpoint's change", _cases)
