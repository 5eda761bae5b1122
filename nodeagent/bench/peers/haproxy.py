"""HAProxy, tuned: keep-alive with shared upstream connections, splicing where it helps, no log.

Its maxconn follows from the limit of descriptors.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import ClassVar, Final

from nodeagent.bench.peers.base import Peer, Running, ask_version
from nodeagent.bench.services import SERVICES, Service
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import CapabilityError

GLOBAL: Final = """\
global
    nbthread {workers}
    stats timeout 10s
defaults
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
"""
_HTTP: Final = """\
listen {name}
    mode http
    bind 0.0.0.0:{port}
    option http-keep-alive
    http-reuse always
    server backend 127.0.0.1:{backend} pool-max-conn -1
"""
_TCP: Final = """\
listen {name}
    mode tcp
    bind 0.0.0.0:{port}
    {splice}
    server backend 127.0.0.1:{backend}
"""


class Haproxy(Peer):
    """haproxy.org."""

    name: ClassVar[str] = "haproxy"
    index: ClassVar[int] = 3

    def find(self) -> str:
        """From `haproxy -v`."""
        if shutil.which("haproxy") is None:
            raise CapabilityError("apt-get install haproxy")
        return ask_version(["haproxy", "-v"]).removeprefix("HAProxy version ").split(" ")[0]

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Start it in the foreground with all services."""
        text = GLOBAL.format(workers=config.workers)
        for service in SERVICES:
            text += (_HTTP if service.http else _TCP).format(
                name=service.name,
                port=self.port(service),
                backend=service.backend_port,
                splice="option splice-response" if service.bulk else "",
            )
        path = stage.folder / "haproxy.cfg"
        path.write_text(text)
        process = stage.spawn(self.name, ["haproxy", "-db", "-f", str(path)], stage.cores.proxy)
        return self.running(process, services)
