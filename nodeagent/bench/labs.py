"""A lab for a benchmark: a client and the back end as pods, with agents or without, on cores of their own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nodeagent.bench.accounting import CpuTime, Memory, cpu_time, memory
from nodeagent.bench.services import ECHO, SERVICES
from nodeagent.bench.stage import Stage, program
from nodeagent.config.bench import BenchConfig
from nodeagent.config.lab import AgentOptions
from nodeagent.errors import BenchError
from nodeagent.lab import adminclient, cgroups, down, netns, up
from nodeagent.lab.names import LabNames, netns_path

HOST: Final = "backend.default.svc.cluster.local"
"""Name of the service before the back end."""
_CLIENT_NODE: Final = "node"
_LAB: Final = """\
nodes: [{nodes}]
identity: {identity}
pods:
- {{name: client, node: node, serviceAccount: client, mesh: {client_mesh}, labels: {{app: client{labels}}}}}
- name: backend
  node: {backend_node}
  serviceAccount: backend
{backend}
config: [{config}]
"""
_BACKEND: Final = """\
  labels: {{app: backend{labels}}}
  command: [{command}]"""
_SIDECAR: Final = """\
  mesh: false
  labels: {app: backend, security.istio.io/tlsMode: istio}"""
_SERVICE: Final = """\
apiVersion: v1
kind: Service
metadata: {{name: backend, namespace: default}}
spec:
  selector: {{app: backend}}
  ports: [{ports}]
"""
_REDIRECT: Final = """\
table ip bench {{
  chain capture {{
    type nat hook {hook} priority -100
{rules}
  }}
}}
"""
_UNTRACKED: Final = """\
table ip bench-near {{
  chain arriving {{
    type filter hook prerouting priority raw
    ip saddr {address} notrack
  }}
  chain leaving {{
    type filter hook output priority raw
    ip daddr {address} notrack
  }}
}}
"""
_UP_SECONDS: Final = 60.0
_TUNNEL_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.1
_TUNNELS: Final = "hbone_dialed_active"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a lab is like."""

    nodes: int = 1
    """With two, client and back end are on different ones."""
    plain: bool = False
    """No agents."""
    identity: bool = False
    client_mesh: bool = True
    """The client is captured."""
    sidecar: bool = False
    """The back end's pod has a sidecar: it is not captured, and nothing runs in it that the stage does not start."""
    opaque: bool = False
    """All services are declared TCP, whatever is spoken there, and may pass the engine; else nothing does."""
    untracked: bool = False
    """The client's node follows no connections of its own with the back end's pod. It would for its services, and
    whoever sends pays for both ends."""
    labels: str = ""
    """Further labels of both pods, `name: value, ...`."""


class BenchLab:
    """The lab, up. Implements peers.base.Accounted: the cost is that of its agents, none without them."""

    def __init__(self, names: LabNames, agents: Sequence[str]) -> None:
        self.names = names
        self._agents = agents
        self.service_address = ""
        self.backend_address = ""

    @classmethod
    def bring_up(cls, stage: Stage, config: BenchConfig, key: str, shape: Shape) -> Self:
        """Bring one up; `key` tells labs apart."""
        names = LabNames(f"bench{os.getpid()}{key}")
        nodes = (_CLIENT_NODE, "other")[: shape.nodes]
        file = _write(stage.folder, key, nodes, shape)
        status = up.bring_up(
            names,
            file,
            AgentOptions(config.capture_mode, bypass="on" if shape.opaque else "off"),
            plain=shape.plain,
            timeout=_UP_SECONDS,
            progress=lambda _: None,
        )
        lab = cls(names, [] if shape.plain else [names.agent_cgroup(node) for node in nodes])
        try:
            _pin(cgroups.processes(names.cgroup), stage.cores.load)
            for agent in lab._agents:
                _pin(cgroups.processes(agent), stage.cores.proxy)
            service = next(each for each in status["services"] if each["name"] == "backend")
            lab.service_address = next(each for each in service["virtualIPs"] if ":" not in each)
            pod = next(each for each in status["pods"] if each["name"] == "backend")
            lab.backend_address = next(each for each in pod["ips"] if ":" not in each)
            if shape.untracked:
                lab._untrack(stage)
            if shape.identity and shape.nodes > 1:
                lab.wait_for_tunnels()
        except BaseException:
            lab.stop()
            raise
        return lab

    def targets(self) -> dict[str, str]:
        """Where a client in the lab finds each service."""
        return {service.name: f"{self.service_address}:{service.backend_port}" for service in SERVICES}

    def pod(self, name: str) -> Path:
        """Network namespace of `client` or `backend`."""
        return netns_path(self.names.pod_netns("default", name))

    @property
    def node(self) -> Path:
        """Network namespace of the client's node."""
        return netns_path(self.names.node_netns(_CLIENT_NODE))

    def tunnels(self) -> int:
        """How many tunnels the client's agent holds."""
        status = asyncio.run(adminclient.get_json(self.names.node(_CLIENT_NODE) / "admin.sock", "/status"))
        return int(status["engine"]["counters"].get(_TUNNELS, 0))

    def wait_for_tunnels(self) -> None:
        """Connect until a connection goes through a tunnel, so that no later one goes without."""
        deadline = time.monotonic() + _TUNNEL_SECONDS
        pod = self.names.pod_netns("default", "client")
        while not self.tunnels():
            with suppress(OSError):
                netns.run_in(pod, self._exchange)
            if time.monotonic() > deadline:
                raise BenchError(f"nothing goes through a tunnel after {_TUNNEL_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)

    def _exchange(self) -> None:
        with socket.create_connection((self.service_address, ECHO.backend_port), 1) as client:
            client.sendall(b"x")
            client.recv(1)

    def _untrack(self, stage: Stage) -> None:
        file = stage.folder / f"{self.names.lab}-near.nft"
        file.write_text(_UNTRACKED.format(address=self.backend_address))
        stage.run_now(["nft", "-f", str(file)], self.node)

    def redirect(self, stage: Stage, pod: str, ports: Mapping[str, int]) -> dict[str, str]:
        """Capture for another proxy in a pod, as Istio does for sidecars: what comes to the services at `backend`, or
        goes to them from `client`, is redirected to the proxy's port for each. Where clients find them then."""
        outgoing = pod == "client"
        address = self.service_address if outgoing else self.backend_address
        rules = "\n".join(
            f"    ip daddr {address} tcp dport {service.backend_port} redirect to :{ports[service.name]}"
            for service in SERVICES
        )
        file = stage.folder / f"{self.names.lab}.nft"
        file.write_text(_REDIRECT.format(hook="output" if outgoing else "prerouting", rules=rules))
        stage.run_now(["nft", "-f", str(file)], self.pod(pod))
        return {service.name: f"{address}:{service.backend_port}" for service in SERVICES}

    def _pids(self) -> list[int]:
        return [pid for agent in self._agents for pid in cgroups.processes(agent)]

    def check(self) -> None:
        """BenchError if an agent is gone."""
        for agent in self._agents:
            if not cgroups.processes(agent):
                raise BenchError("the lab's agent has ended")

    def cpu_time(self) -> CpuTime:
        """Of the agents."""
        return cpu_time(self._pids())

    def memory(self) -> Memory:
        """Of the agents."""
        return memory(self._pids())

    def stop(self) -> None:
        """Take the lab down."""
        down.take_down(self.names)


def _write(folder: Path, key: str, nodes: Sequence[str], shape: Shape) -> Path:
    ports = ", ".join(
        f"{{name: {'http' if s.http and not shape.opaque else 'tcp'}-{s.name}, port: {s.backend_port}}}"
        for s in SERVICES
    )
    objects = folder / f"{key}-services.yaml"
    objects.write_text(_SERVICE.format(ports=ports))
    file = folder / f"{key}-lab.yaml"
    labels = f", {shape.labels}" if shape.labels else ""
    text = _LAB.format(
        labels=labels,
        nodes=", ".join(f"{{name: {node}}}" for node in nodes),
        identity=_yes(shape.identity),
        client_mesh=_yes(shape.client_mesh),
        backend_node=nodes[-1],
        backend=_SIDECAR
        if shape.sidecar
        else _BACKEND.format(labels=labels, command=", ".join(_backend_command())),
        config=objects,
    )
    file.write_text(text)
    return file


def _backend_command() -> Iterator[str]:
    yield program("backend")
    for service in SERVICES:
        yield f"--{service.name}"
        yield f'"{service.backend_port}"'


def _yes(value: bool) -> str:
    return "true" if value else "false"


def _pin(pids: Iterable[int], cores: Sequence[int]) -> None:
    """Put all threads of processes on some cores; those that they make later follow."""
    for pid in pids:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    os.sched_setaffinity(int(task.name), cores)
