"""The control plane put together: file source -> world -> hub -> xDS server, with its admin API and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from typing import TYPE_CHECKING, Final

from nodeagent.app.mesh_settings import file_source, mesh_settings, settled
from nodeagent.config.controlplane import ControlPlaneConfig
from nodeagent.controlplane.admin import AdminServer
from nodeagent.controlplane.istio.key_sets import KeySource
from nodeagent.controlplane.key_fetcher import KeyFetcher
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch, Source
from nodeagent.controlplane.world import World
from nodeagent.controlplane.xds.hub import Hub
from nodeagent.controlplane.xds.server import Security, XdsServer

if TYPE_CHECKING:
    from nodeagent.controlplane.ca.setup import CertificateAuthority

log = logging.getLogger(__name__)

ANALYSIS_DELAY_SECONDS: Final = 0.2
FIRST_KEYS_SECONDS: Final = 2.0
"""How long clients wait at the start for key sets: served without, they would refuse good tokens for a moment."""


class ControlPlane:
    """One control plane; start() to serve, stop() to end."""

    def __init__(self, config: ControlPlaneConfig, source: Source | None = None) -> None:
        """`source` takes the place of the files of the configuration."""
        self.config = config = settled(config)
        self.metrics = Metrics()
        self.report = Report()
        self.world = World(mesh_settings(config), self.report)
        self.hub = Hub(self.world, self.metrics)
        self.source = source if source is not None else file_source(config, self.report)
        sockets = (config.unix,) if config.unix else ()
        self.xds = XdsServer(self.hub, config.listen, sockets)
        self.ca = self._make_ca()
        self.secure_xds = self._make_secure_xds()
        self.admin = AdminServer(
            self.hub, self.source, self.metrics, config.admin, self.ca.describe if self.ca else None
        )
        self.keys = KeyFetcher(
            self._put_keys,
            self.world.key_sets.forget,
            self.report,
            self.metrics,
            config.token_keys_root,
            config.key_sets,
        )
        self._watcher: asyncio.Task[None] | None = None

    def _make_ca(self) -> CertificateAuthority | None:
        config = self.config
        if not config.listen_tls:
            return None
        assert config.ca is not None
        # A control plane without a CA does without the cryptography library.
        from nodeagent.controlplane.ca.setup import CertificateAuthority

        return CertificateAuthority(config.ca, config.trust_domain, self.world.registry, self.metrics)

    def _make_secure_xds(self) -> list[XdsServer]:
        """The servers over TLS: for callers with tokens, and for workloads with certificates."""
        ca = self.ca
        if ca is None:
            return []
        by_token = Security(ca.credentials, ca.guard, ca.register)
        by_certificate = Security(ca.mutual_credentials, ca.certificate_guard)
        pairs = ((self.config.listen_tls, by_token), (self.config.listen_mtls, by_certificate))
        return [XdsServer(self.hub, addresses, (), security) for addresses, security in pairs if addresses]

    async def start(self) -> None:
        """Read the configuration, whatever is wrong with it, then serve."""
        await self.admin.start()
        self._apply(await self.source.load())
        await self.keys.first_attempts(FIRST_KEYS_SECONDS)
        # What was loaded mostly stays: spare every later garbage collection from walking it.
        gc.collect()
        gc.freeze()
        await self.xds.start()
        if self.ca is not None:
            self.ca.start()
        for server in self.secure_xds:
            await server.start()
        self._watcher = asyncio.create_task(self._watch())
        self.admin.ready = True
        counts = self.report.counts()
        log.info("serving; configuration has %d errors, %d warnings", counts["error"], counts["warning"])

    async def stop(self) -> None:
        """End streams and close everything."""
        self.admin.ready = False
        self.source.close()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        servers = (self.xds, *self.secure_xds)
        await asyncio.gather(*(server.stop(self.config.drain_seconds) for server in servers))
        if self.ca is not None:
            await self.ca.stop()
        await self.keys.close()
        await self.admin.stop()

    def _put_keys(self, source: KeySource, text: str) -> None:
        self.hub.publish(self.world.put_keys(source, text))

    async def _watch(self) -> None:
        async for batch in self.source.watch():
            self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        change = self.world.apply(batch)
        self.metrics.changes.inc()
        self.hub.publish(change)
        self.keys.want(self.world.security.key_sources())
        # Analysis is for people: pushes go first. Who asks the admin API sooner has it made at once.
        asyncio.get_running_loop().call_later(ANALYSIS_DELAY_SECONDS, self.world.analyze)
        log.debug(
            "generation %d: %d changed, %d removed",
            self.world.generation,
            len(batch.changed),
            len(batch.removed),
        )


async def run(config: ControlPlaneConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    plane = ControlPlane(config)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        await plane.start()
        await ended.wait()
    finally:
        await plane.stop()
