"""The control plane's admin API: HTTP on a unix socket, for people and for `nodeagent status`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from nodeagent import __version__
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.report import Issue
from nodeagent.controlplane.world import World
from nodeagent.controlplane.xds.hub import Hub


class Described(Protocol):
    """A source of configuration that tells what it has read."""

    def describe(self) -> dict[str, Any]:
        """Files, or whatever the source reads."""
        ...


class AdminServer:
    """Serves /status, /config_errors, /config_files, /debug/syncz, /healthz/ready and /stats/prometheus."""

    def __init__(
        self,
        hub: Hub,
        source: Described,
        metrics: Metrics,
        path: Path,
        describe_ca: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._describe_ca = describe_ca
        self._hub = hub
        self._source = source
        self._metrics = metrics
        self._path = path
        self._started = time.time()
        self.ready = False
        app = web.Application()
        app.add_routes(
            [
                web.get("/status", self._status),
                web.get("/config_errors", self._config_errors),
                web.get("/config_files", self._config_files),
                web.get("/debug/syncz", self._syncz),
                web.get("/healthz/ready", self._ready),
                web.get("/stats/prometheus", self._stats),
            ]
        )
        app.router.add_route("*", "/{path:.*}", self._unknown)
        self._runner = web.AppRunner(app, access_log=None)

    def _analysed(self) -> World:
        """The world with its findings up to date."""
        self._hub.world.analyze()
        return self._hub.world

    async def start(self) -> None:
        """Listen; a socket that an earlier run left is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, self._path).start()
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Close and remove the socket."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    async def _status(self, request: web.Request) -> web.Response:
        del request
        world = self._analysed()
        issues = [_issue(found) for found in world.report]
        return web.json_response(
            {
                "version": __version__,
                "started": self._started,
                "uptime_seconds": round(time.time() - self._started, 3),
                "ready": self.ready,
                "generation": world.generation,
                "cluster_id": world.settings.cluster_id,
                "domain": world.settings.domain,
                "trust_domain": world.settings.trust_domain,
                "clients": self._hub.clients(),
                "ca": self._describe_ca() if self._describe_ca is not None else None,
                "issues": world.report.counts(),
                "config_errors": issues,
                "resources": world.counts(),
            }
        )

    async def _config_errors(self, request: web.Request) -> web.Response:
        del request
        world = self._analysed()
        issues = [_issue(found) for found in world.report]
        return web.json_response({"generation": world.generation, **world.report.counts(), "issues": issues})

    async def _config_files(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"generation": self._hub.world.generation, "files": self._source.describe()})

    async def _syncz(self, request: web.Request) -> web.Response:
        del request
        return web.json_response(self._hub.clients())

    async def _ready(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ready\n") if self.ready else web.Response(text="starting\n", status=503)

    async def _stats(self, request: web.Request) -> web.Response:
        del request
        for severity, count in self._analysed().report.counts().items():
            self._metrics.issues.labels(severity).set(count)
        return web.Response(
            body=self._metrics.expose(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _unknown(self, request: web.Request) -> web.Response:
        paths = sorted({route.resource.canonical for route in request.app.router.routes() if route.resource})
        known = "\n".join(path for path in paths if "{" not in path)
        return web.Response(text=f"there is no {request.path}; there are:\n{known}\n", status=404)


def _issue(issue: Issue) -> dict[str, str]:
    return {
        "severity": issue.severity.value,
        "code": issue.code,
        "source": issue.source,
        "resource": issue.resource,
        "path": issue.path,
        "message": issue.message,
        "text": str(issue),
    }
