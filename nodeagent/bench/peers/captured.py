"""A lab's capture as a peer: a client and the back end as pods of one node, whose agent captures both.

What is compared with is the same lab without agents. Both are there at the same time; one at a time has work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from nodeagent import __version__
from nodeagent.bench.accounting import CpuTime, Memory, cpu_time, memory
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.results import DIRECT, SUBJECT
from nodeagent.bench.services import SERVICES, Service
from nodeagent.bench.stage import Stage, program
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError, ConfigError
from nodeagent.lab import cgroups, down, up
from nodeagent.lab.names import LabNames, netns_path

_LAB: Final = """\
nodes: [{{name: node}}]
pods:
- {{name: client, node: node, labels: {{app: client}}}}
- name: backend
  node: node
  labels: {{app: backend}}
  command: [{command}]
config: [{config}]
"""
_SERVICE: Final = """\
apiVersion: v1
kind: Service
metadata: {{name: backend, namespace: default}}
spec:
  selector: {{app: backend}}
  ports: [{ports}]
"""
_HOST: Final = "backend.default.svc.cluster.local"
_UP_SECONDS: Final = 60.0


class CapturedPeer(Peer):
    """A lab, with agents or without."""

    plain: ClassVar[bool]

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring the lab up, with its processes on their cores."""
        if config.workers != 1:
            raise BenchError("a lab's agents have one worker; --captured goes with --workers 1")
        names = LabNames(f"bench{os.getpid()}{self.name[0]}")
        file = self._write(stage.folder)
        status = up.bring_up(names, file, plain=self.plain, timeout=_UP_SECONDS, progress=lambda _: None)
        lab = _Lab(names, None if self.plain else names.agent_cgroup("node"))
        try:
            _pin(cgroups.processes(names.cgroup), stage.cores.load)
            if lab.agent is not None:
                _pin(cgroups.processes(lab.agent), stage.cores.proxy)
            service = next(each for each in status["services"] if each["name"] == "backend")
            address = next(each for each in service["virtualIPs"] if ":" not in each)
        except BaseException:
            lab.stop()
            raise
        return Running(
            self.name,
            {each.name: f"{address}:{each.backend_port}" for each in SERVICES},
            (lab,),
            netns_path(names.pod_netns("default", "client")),
            _HOST,
        )

    def _write(self, folder: Path) -> Path:
        ports = ", ".join(
            f"{{name: {'http' if s.http else 'tcp'}-{s.name}, port: {s.backend_port}}}" for s in SERVICES
        )
        command = [program("backend")]
        for service in SERVICES:
            command += [f"--{service.name}", f'"{service.backend_port}"']
        objects = folder / f"{self.name}-services.yaml"
        objects.write_text(_SERVICE.format(ports=ports))
        file = folder / f"{self.name}-lab.yaml"
        file.write_text(_LAB.format(command=", ".join(command), config=objects))
        return file


class CapturedSubject(CapturedPeer):
    """Captured by nodeagent."""

    name: ClassVar[str] = SUBJECT
    index: ClassVar[int] = 1
    plain: ClassVar[bool] = False

    def find(self) -> str:
        """Its version."""
        return f"{__version__}, captured"


class PlainLab(CapturedPeer):
    """The same pods without agents."""

    name: ClassVar[str] = DIRECT
    index: ClassVar[int] = 0
    plain: ClassVar[bool] = True

    def find(self) -> str:
        """Always there."""
        return "the same lab without agents"


def captured_peers(names: Sequence[str]) -> list[Peer]:
    """Who can take part in a lab; ConfigError for the others."""
    for name in names:
        if name not in (SUBJECT, DIRECT):
            raise ConfigError(f"--peers {name}: with --captured only {DIRECT} can be compared with")
    return [CapturedSubject(), PlainLab()]


class _Lab:
    """Implements base.Accounted: the cost of the node's agent."""

    def __init__(self, names: LabNames, agent: str | None) -> None:
        self._names = names
        self.agent = agent

    def _pids(self) -> list[int]:
        return cgroups.processes(self.agent) if self.agent is not None else []

    def check(self) -> None:
        """BenchError if the agent is gone."""
        if self.agent is not None and not self._pids():
            raise BenchError("the lab's agent has ended")

    def cpu_time(self) -> CpuTime:
        """Of the agent."""
        return cpu_time(self._pids())

    def memory(self) -> Memory:
        """Of the agent."""
        return memory(self._pids())

    def stop(self) -> None:
        """Take the lab down."""
        down.take_down(self._names)


def _pin(pids: Iterable[int], cores: Sequence[int]) -> None:
    """Put all threads of processes on some cores; those that they make later follow."""
    for pid in pids:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    os.sched_setaffinity(int(task.name), cores)
