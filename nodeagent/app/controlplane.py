"""The control plane put together: file source -> world -> hub -> xDS server, with its admin API and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from typing import Final

from nodeagent.config.controlplane import ControlPlaneConfig
from nodeagent.controlplane.admin import AdminServer
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch
from nodeagent.controlplane.sources.files import FileSource
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.hub import Hub
from nodeagent.controlplane.xds.server import XdsServer

log = logging.getLogger(__name__)

ANALYSIS_DELAY_SECONDS: Final = 0.2


class ControlPlane:
    """One control plane; start() to serve, stop() to end."""

    def __init__(self, config: ControlPlaneConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.report = Report()
        settings = MeshSettings(config.cluster_id, config.domain, config.trust_domain, config.root_namespace)
        self.world = World(settings, self.report)
        self.hub = Hub(self.world, self.metrics)
        self.source = FileSource(config.config, self.report)
        sockets = (config.unix,) if config.unix else ()
        self.xds = XdsServer(self.hub, config.listen, sockets)
        self.admin = AdminServer(self.hub, self.source, self.metrics, config.admin)
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the configuration, whatever is wrong with it, then serve."""
        await self.admin.start()
        self._apply(await self.source.load())
        # What was loaded mostly stays: spare every later garbage collection from walking it.
        gc.collect()
        gc.freeze()
        await self.xds.start()
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
        await self.xds.stop(self.config.drain_seconds)
        await self.admin.stop()

    async def _watch(self) -> None:
        async for batch in self.source.watch():
            self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        change = self.world.apply(batch)
        self.metrics.changes.inc()
        self.hub.publish(change)
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
