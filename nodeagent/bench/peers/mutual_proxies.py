"""The proxies that nodeagent's mutual TLS is compared with (mutual.py)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from nodeagent.bench.peers.base import Peer, ask_version
from nodeagent.bench.peers.envoy import Envoy, lean, start_envoy, tls_socket
from nodeagent.bench.peers.floor import Floor
from nodeagent.bench.peers.haproxy import GLOBAL
from nodeagent.bench.peers.mutual import Hop, MutualPeer, MutualSubject, Place
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
from nodeagent.errors import CapabilityError

_TLS: Final = "ssl crt {pair} ca-file {roots} verify required ssl-min-ver TLSv1.3"
_HAPROXY: Final = """\
listen {name}
    mode {mode}
    bind 0.0.0.0:{port} {bind}
    server backend {address}:{backend} {server}
"""


class MutualEnvoy(MutualPeer):
    """envoyproxy/envoy."""

    name: ClassVar[str] = Envoy.name
    index: ClassVar[int] = 2

    def find(self) -> str:
        """Its version."""
        return Envoy().find()

    def _spawn(
        self, stage: Stage, config: BenchConfig, place: Place, services: Sequence[Service]
    ) -> Sequence[Process]:
        listeners: list[dict[str, Any]] = []
        clusters: list[dict[str, Any]] = []
        own, other = place.own, place.other
        for service in SERVICES:
            network = http_filter(service) if service.http else tcp_filter(service)
            listeners.append(listener(service.name, "0.0.0.0", self.port(service), network))  # noqa: S104
            clusters.append(cluster(service.name, socket_address(place.upstream, service.backend_port)))
            if self._hop.server:
                chain = listeners[-1]["filter_chains"][0]
                chain["transport_socket"] = tls_socket("DownstreamTlsContext", own, other, "http/1.1")
            else:
                clusters[-1]["transport_socket"] = tls_socket("UpstreamTlsContext", own, other, "http/1.1")
        bootstrap = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        key = self._hop.key(self.name)
        return [start_envoy(stage, key, lean(bootstrap), config.workers, namespace=place.pod)]


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
        self, stage: Stage, config: BenchConfig, place: Place, services: Sequence[Service]
    ) -> Sequence[Process]:
        tls = _TLS.format(pair=place.own.pair, roots=place.own.roots)
        text = GLOBAL.format(workers=config.workers)
        for service in SERVICES:
            text += _HAPROXY.format(
                name=service.name,
                mode="http" if service.http else "tcp",
                port=self.port(service),
                bind=tls if self._hop.server else "",
                address=place.upstream,
                backend=service.backend_port,
                server=("" if self._hop.server else tls) + (" pool-max-conn -1" if service.http else ""),
            )
            text += "    http-reuse always\n" if service.http else ""
        path = stage.folder / f"{self._hop.key(self.name)}.cfg"
        path.write_text(text)
        argv = ["haproxy", "-db", "-f", str(path)]
        return [stage.spawn(self.name, argv, stage.cores.proxy, namespace=place.pod)]


class MutualFloor(MutualPeer):
    """The floor relay of native/bench, with OpenSSL and nothing else."""

    name: ClassVar[str] = Floor.name
    index: ClassVar[int] = Floor.index

    def find(self) -> str:
        """It is built with us."""
        return Floor().find()

    def _spawn(
        self, stage: Stage, config: BenchConfig, place: Place, services: Sequence[Service]
    ) -> Sequence[Process]:
        del config
        side = "--tls-in" if self._hop.server else "--tls-out"
        processes = []
        for service in services:
            argv = [program("floor"), "--mode", "http" if service.http else "tcp", side, place.own.prefix]
            argv += ["--listen", f"0.0.0.0:{self.port(service)}"]
            argv += ["--upstream", f"{place.upstream}:{service.backend_port}"]
            processes.append(
                stage.spawn(f"floor-{service.name}", argv, stage.cores.proxy, namespace=place.pod)
            )
        return processes


def mutual_peers(hop: Hop) -> tuple[Peer, ...]:
    """All that can take part."""
    return MutualSubject(hop), MutualEnvoy(hop), MutualHaproxy(hop), MutualFloor(hop)
