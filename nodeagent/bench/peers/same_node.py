"""Two pods of one node, and what there can be between them.

Each peer has a lab of its own, all there at the same time; one at a time has work. All services are declared TCP, so
that nodeagent connects the pods past its engine. Without a mesh the client asks for the other pod's address; nft's
translation of the service's address, and Envoy as a sidecar of the client, are what a mesh would otherwise need.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Final

from nodeagent import __version__
from nodeagent.bench.labs import HOST, BenchLab, Shape
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.peers.envoy import Envoy, lean, start_envoy
from nodeagent.bench.results import SUBJECT
from nodeagent.bench.services import SERVICES, Service, cluster, listener, socket_address, tcp_filter
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError
from nodeagent.lab import adminclient, netns

_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.05


class Bypass(Peer):
    """nodeagent, past its engine."""

    name: ClassVar[str] = SUBJECT
    index: ClassVar[int] = 1
    labels: ClassVar[str] = ""
    counter: ClassVar[str] = "bypassed"
    """Of capture: counts what goes the way that is to be measured."""

    def find(self) -> str:
        """Its version."""
        return __version__

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring the lab up, and connect until a connection goes the way that is to be measured."""
        if config.workers != 1:
            raise BenchError("a lab's agents have one worker; same-node goes with --workers 1")
        shape = Shape(identity=True, opaque=True, labels=self.labels)
        lab = BenchLab.bring_up(stage, config, f"n{self.index}", shape)
        try:
            self._wait(lab)
        except BaseException:
            lab.stop()
            raise
        return Running(self.name, lab.targets(), (lab,), lab.pod("client"), HOST)

    def _wait(self, lab: BenchLab) -> None:
        """The first connections to a port go through the engine, which asks for the port's configuration then."""
        deadline = time.monotonic() + _SECONDS
        pod = lab.names.pod_netns("default", "client")
        for service in SERVICES:
            before = capture_counter(lab, self.counter)
            while capture_counter(lab, self.counter) == before:
                with suppress(OSError):
                    netns.run_in(pod, partial(_connect, lab.service_address, service.backend_port))
                if time.monotonic() > deadline:
                    raise BenchError(
                        f"no connection is {self.counter} after {_SECONDS:g} s; `nodeagent doctor` tells why"
                    )
                time.sleep(_LOOK_SECONDS)


class Accelerated(Bypass):
    """nodeagent with the sockets of both pods joined (sk_msg)."""

    name: ClassVar[str] = "accelerated"
    index: ClassVar[int] = 2
    labels: ClassVar[str] = "nodeagent.io/acceleration: direct"


class PlainPods(Peer):
    """The same pods without a mesh: the client asks for the pod's address."""

    name: ClassVar[str] = "no-mesh"
    index: ClassVar[int] = 0
    translated: ClassVar[bool] = False

    def find(self) -> str:
        """Always there."""
        return "the same pods without agents"

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring the lab up."""
        lab = BenchLab.bring_up(stage, config, f"n{self.index}", Shape(plain=True, opaque=True))
        return Running(self.name, self.targets(lab), (lab,), lab.pod("client"), HOST)

    def targets(self, lab: BenchLab) -> dict[str, str]:
        """Where the client connects to."""
        return {service.name: f"{lab.backend_address}:{service.backend_port}" for service in SERVICES}


class TranslatedPods(PlainPods):
    """Without a mesh, but asking for the service, whose address nftables translates on the node."""

    name: ClassVar[str] = "nft"
    index: ClassVar[int] = 3

    def targets(self, lab: BenchLab) -> dict[str, str]:
        """The service's address."""
        return lab.targets()


class EnvoyBetween(Peer):
    """Envoy as the client's sidecar, with redirection, passing on TCP to the other pod."""

    name: ClassVar[str] = "envoy"
    index: ClassVar[int] = 4

    def find(self) -> str:
        """Its version."""
        return Envoy().find()

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring a lab up, and Envoy in the client's pod."""
        lab = BenchLab.bring_up(stage, config, f"n{self.index}", Shape(plain=True, opaque=True))
        running = Running(self.name, {}, (lab,), lab.pod("client"), HOST)
        try:
            ports = {service.name: self.port(service) for service in SERVICES}
            running.targets = lab.redirect(stage, "client", ports)
            process = start_envoy(
                stage, "same-node", lean(self._resources(lab)), config.workers, namespace=lab.pod("client")
            )
            running.processes = (process, *running.processes)
            process.wait_until_listening([self.port(service) for service in services])
        except BaseException:
            running.__exit__(None, None, None)
            raise
        return running

    def _resources(self, lab: BenchLab) -> dict[str, Any]:
        listeners = [listener(s.name, "0.0.0.0", self.port(s), tcp_filter(s)) for s in SERVICES]  # noqa: S104
        clusters = [cluster(s.name, socket_address(lab.backend_address, s.backend_port)) for s in SERVICES]
        return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def capture_counter(lab: BenchLab, name: str) -> int:
    """A counter of the node's capture, by its name in `nodeagent status`."""
    status = asyncio.run(adminclient.get_json(lab.names.node("node") / "admin.sock", "/status"))
    return int(status["capture"]["counters"].get(name, 0))


def _connect(address: str, port: int) -> None:
    socket.create_connection((address, port), 1).close()


def same_node_peers() -> tuple[Peer, ...]:
    """All that can take part."""
    return Bypass(), Accelerated(), PlainPods(), TranslatedPods(), EnvoyBetween()
