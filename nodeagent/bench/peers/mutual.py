"""One hop with mutual TLS on one side of it: as its server (TLS in, plain out), or as its client (plain in, TLS out).

Each peer has a lab of one node. nodeagent captures the back end's pod and takes Istio's mTLS for it, or captures the
client's pod and speaks it to a back end that counts as a sidecar. The other proxies are in the same pod, in labs
without agents. All is TLS 1.3 with P-256 certificates on both sides, and AES-128-GCM, which load and back end insist
on. Where the other ends are is the layout:

- `loopback`: as near as they can be. The back end shares the proxy's pod and its loopback. So does the load, where the
  proxy is a client; a pod that serves it reaches over one veth pair, from its node: what a pod says to itself is not
  captured. Other proxies are asked at ports of their own.
- `pods`: load and back end are pods, between which the node forwards over two veth pairs. Other proxies get their
  connections by a redirect, as sidecars do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from nodeagent import __version__
from nodeagent.bench.certificates import Certified, certify
from nodeagent.bench.labs import HOST, BenchLab, Shape
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.results import SUBJECT
from nodeagent.bench.services import SERVICES, Service
from nodeagent.bench.stage import Process, Stage, program
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError


@dataclass(frozen=True, slots=True)
class Hop:
    """Which side of the hop has TLS, and where its other ends are."""

    server: bool
    near: bool
    """Layout `loopback`."""

    @property
    def shape(self) -> Shape:
        """Of nodeagent's lab."""
        return replace(self.plain_shape, plain=False, identity=True, client_mesh=not self.server)

    @property
    def plain_shape(self) -> Shape:
        """Of another proxy's."""
        return Shape(plain=True, sidecar=not self.server, untracked=self.near)

    @property
    def pod(self) -> str:
        """Where the proxy is."""
        return "backend" if self.server else "client"

    def key(self, name: str) -> str:
        """Tells labs apart."""
        return f"m{'s' if self.server else 'c'}{name[0]}"

    def load(self, lab: BenchLab) -> Path:
        """Namespace in which the load is."""
        return lab.node if self.server and self.near else lab.pod("client")

    def targets(self, lab: BenchLab, stage: Stage, ports: dict[str, int]) -> dict[str, str]:
        """Where the load finds a proxy other than nodeagent, which listens at these ports."""
        if not self.near:
            return lab.redirect(stage, self.pod, ports)
        address = lab.backend_address if self.server else "127.0.0.1"
        return {name: f"{address}:{port}" for name, port in ports.items()}

    def upstream(self, lab: BenchLab) -> str:
        """Address of the back end, for a proxy."""
        return "127.0.0.1" if self.server else lab.backend_address


class MutualSubject(Peer):
    """nodeagent, captured."""

    name: ClassVar[str] = SUBJECT
    index: ClassVar[int] = 1

    def __init__(self, hop: Hop) -> None:
        self._hop = hop

    def find(self) -> str:
        """Its version."""
        return __version__

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring up a lab with identities; its CA signs for load or back end."""
        if config.workers != 1:
            raise BenchError("a lab's agents have one worker; mtls goes with --workers 1")
        lab = BenchLab.bring_up(stage, config, self._hop.key(self.name), self._hop.shape)
        if self._hop.server:
            here = {service.name: f"{lab.backend_address}:{service.backend_port}" for service in SERVICES}
            tls = certify(lab.names.identity, "client").prefix
            return Running(self.name, here, (lab,), self._hop.load(lab), HOST, tls)
        running = Running(self.name, lab.targets(), (lab,), self._hop.load(lab), HOST)
        return with_tls_backend(running, stage, self._hop, lab, certify(lab.names.identity, "backend"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy other than nodeagent is to be, and who it is."""

    lab: BenchLab
    pod: Path
    upstream: str
    own: Certified
    other: Certified
    """Of whom it meets."""


class MutualPeer(Peer):
    """Another proxy, in a lab without agents."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring a lab up, and the proxy in one of its pods."""
        hop = self._hop
        lab = BenchLab.bring_up(stage, config, hop.key(self.name), hop.plain_shape)
        client, backend = certify(stage.folder, "client"), certify(stage.folder, "backend")
        running = Running(self.name, {}, (lab,), hop.load(lab), HOST, client.prefix if hop.server else "")
        try:
            running.targets = hop.targets(
                lab, stage, {service.name: self.port(service) for service in SERVICES}
            )
            if not hop.server:
                running = with_tls_backend(running, stage, hop, lab, backend)
            own, other = (backend, client) if hop.server else (client, backend)
            place = Place(lab, lab.pod(hop.pod), hop.upstream(lab), own, other)
            started = self._spawn(stage, config, place, services)
            running.processes = (*started, *running.processes)
            for process in started[:1]:
                process.wait_until_listening([self.port(service) for service in services])
        except BaseException:
            running.__exit__(None, None, None)
            raise
        return running

    @abstractmethod
    def _spawn(
        self, stage: Stage, config: BenchConfig, place: Place, services: Sequence[Service]
    ) -> Sequence[Process]:
        """Run the proxy."""


def with_tls_backend(running: Running, stage: Stage, hop: Hop, lab: BenchLab, own: Certified) -> Running:
    """Start a back end that speaks TLS alone: in its pod, or near, with its address. It ends with the peer."""
    argv = [program("backend"), "--tls", own.prefix]
    for service in SERVICES:
        argv += [f"--{service.name}", str(service.backend_port)]
    pod = lab.pod("client" if hop.near else "backend")
    try:
        if hop.near:
            stage.run_now(["ip", "addr", "add", f"{lab.backend_address}/32", "dev", "lo"], pod)
        process = stage.spawn("backend", argv, stage.cores.load, namespace=pod)
        running.beside = (process,)
        process.wait_until_listening([service.backend_port for service in SERVICES])
    except BaseException:
        running.__exit__(None, None, None)
        raise
    return running
