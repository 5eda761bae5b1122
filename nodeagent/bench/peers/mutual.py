"""One hop with mutual TLS on one side of it: as its server (TLS in, plain out), or as its client (plain in, TLS out).

Each peer has a lab of one node, in whose pods load and back end are. nodeagent captures the back end's pod and takes
Istio's mTLS for it, or captures the client's pod and speaks it to a back end that counts as a sidecar. The other
proxies are in the same pod, in labs without agents, and get their connections by a redirect, as sidecars do. All is
TLS 1.3 with P-256 certificates on both sides and AES-128-GCM, which load and back end insist on.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from nodeagent import __version__
from nodeagent.bench.certificates import Certified, certify
from nodeagent.bench.labs import HOST, BenchLab, Shape
from nodeagent.bench.peers.base import Peer, Running, ask_version
from nodeagent.bench.peers.envoy import Envoy, lean, start_envoy, tls_socket
from nodeagent.bench.peers.haproxy import GLOBAL
from nodeagent.bench.results import SUBJECT
from nodeagent.bench.services import (
    SERVICES,
    Service,
    cluster,
    http_filter,
    listener,
    socket_address,
    tcp_filter,
)
from nodeagent.bench.stage import Process, Stage, program
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError, CapabilityError

_TLS: Final = "ssl crt {pair} ca-file {roots} verify required ssl-min-ver TLSv1.3"
_HAPROXY: Final = """\
listen {name}
    mode {mode}
    bind 0.0.0.0:{port} {bind}
    server backend {address}:{backend} {server}
"""


@dataclass(frozen=True, slots=True)
class Hop:
    """Which side of the hop has TLS."""

    server: bool

    @property
    def shape(self) -> Shape:
        """Of nodeagent's lab."""
        return Shape(identity=True, client_mesh=not self.server, sidecar=not self.server)

    @property
    def pod(self) -> str:
        """Where the proxy is."""
        return "backend" if self.server else "client"

    def key(self, name: str) -> str:
        """Tells labs apart."""
        return f"m{'s' if self.server else 'c'}{name[0]}"


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
            return Running(self.name, here, (lab,), lab.pod("client"), HOST, tls)
        running = Running(self.name, lab.targets(), (lab,), lab.pod("client"), HOST)
        return _with_tls_backend(running, stage, lab, certify(lab.names.identity, "backend"))


class MutualPeer(Peer):
    """Another proxy, in a lab without agents."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring a lab up, and the proxy in one of its pods."""
        hop = self._hop
        lab = BenchLab.bring_up(stage, config, hop.key(self.name), Shape(plain=True, sidecar=not hop.server))
        client, backend = certify(stage.folder, "client"), certify(stage.folder, "backend")
        running = Running(self.name, {}, (lab,), lab.pod("client"), HOST, client.prefix if hop.server else "")
        try:
            ports = {service.name: self.port(service) for service in SERVICES}
            running.targets = lab.redirect(stage, hop.pod, ports)
            if not hop.server:
                running = _with_tls_backend(running, stage, lab, backend)
            own, other = (backend, client) if hop.server else (client, backend)
            process = self._spawn(stage, config, lab, own, other)
            running.processes = (process, *running.processes)
            process.wait_until_listening([self.port(service) for service in services])
        except BaseException:
            running.__exit__(None, None, None)
            raise
        return running

    def target(self, lab: BenchLab) -> str:
        """Address that it passes on to."""
        return "127.0.0.1" if self._hop.server else lab.backend_address

    @abstractmethod
    def _spawn(
        self, stage: Stage, config: BenchConfig, lab: BenchLab, own: Certified, other: Certified
    ) -> Process:
        """Run the proxy in the hop's pod; `own` is its certificate, `other` the one of whom it meets."""


class MutualEnvoy(MutualPeer):
    """envoyproxy/envoy."""

    name: ClassVar[str] = "envoy"
    index: ClassVar[int] = 2

    def find(self) -> str:
        """Its version."""
        return Envoy().find()

    def _spawn(
        self, stage: Stage, config: BenchConfig, lab: BenchLab, own: Certified, other: Certified
    ) -> Process:
        listeners: list[dict[str, Any]] = []
        clusters: list[dict[str, Any]] = []
        for service in SERVICES:
            network = http_filter(service) if service.http else tcp_filter(service)
            listeners.append(listener(service.name, "0.0.0.0", self.port(service), network))  # noqa: S104
            clusters.append(cluster(service.name, socket_address(self.target(lab), service.backend_port)))
            if self._hop.server:
                chain = listeners[-1]["filter_chains"][0]
                chain["transport_socket"] = tls_socket("DownstreamTlsContext", own, other, "http/1.1")
            else:
                clusters[-1]["transport_socket"] = tls_socket("UpstreamTlsContext", own, other, "http/1.1")
        bootstrap = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        pod = lab.pod(self._hop.pod)
        return start_envoy(stage, self._hop.key(self.name), lean(bootstrap), config.workers, namespace=pod)


class MutualHaproxy(MutualPeer):
    """haproxy.org."""

    name: ClassVar[str] = "haproxy"
    index: ClassVar[int] = 3

    def find(self) -> str:
        """From `haproxy -v`."""
        if shutil.which("haproxy") is None:
            raise CapabilityError("apt-get install haproxy")
        return ask_version(["haproxy", "-v"]).removeprefix("HAProxy version ").split(" ")[0]

    def _spawn(
        self, stage: Stage, config: BenchConfig, lab: BenchLab, own: Certified, other: Certified
    ) -> Process:
        tls = _TLS.format(pair=own.pair, roots=own.roots)
        text = GLOBAL.format(workers=config.workers)
        for service in SERVICES:
            text += _HAPROXY.format(
                name=service.name,
                mode="http" if service.http else "tcp",
                port=self.port(service),
                bind=tls if self._hop.server else "",
                address=self.target(lab),
                backend=service.backend_port,
                server=("" if self._hop.server else tls) + (" pool-max-conn -1" if service.http else ""),
            )
            text += "    http-reuse always\n" if service.http else ""
        path = stage.folder / f"{self._hop.key(self.name)}.cfg"
        path.write_text(text)
        argv = ["haproxy", "-db", "-f", str(path)]
        return stage.spawn(self.name, argv, stage.cores.proxy, namespace=lab.pod(self._hop.pod))


def mutual_peers(hop: Hop) -> tuple[Peer, ...]:
    """All that can take part."""
    return MutualSubject(hop), MutualEnvoy(hop), MutualHaproxy(hop)


def _with_tls_backend(running: Running, stage: Stage, lab: BenchLab, own: Certified) -> Running:
    """Start a back end that speaks TLS alone, in its pod; it ends with the peer."""
    argv = [program("backend"), "--tls", own.prefix]
    for service in SERVICES:
        argv += [f"--{service.name}", str(service.backend_port)]
    try:
        process = stage.spawn("backend", argv, stage.cores.load, namespace=lab.pod("backend"))
        running.beside = (process,)
        process.wait_until_listening([service.backend_port for service in SERVICES])
    except BaseException:
        running.__exit__(None, None, None)
        raise
    return running
