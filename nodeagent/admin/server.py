"""The admin API's servers: the unix socket, the metrics port, the readiness port."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from nodeagent.admin.handlers import Application, Handlers
from nodeagent.admin.listen import HttpServer, bind_tcp, bind_unix, parse_address
from nodeagent.admin.state import AgentState
from nodeagent.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdminOptions:
    """Where the admin API listens; an empty address turns a port off."""

    path: Path = Path("/run/nodeagent/admin.sock")
    metrics: str = "0.0.0.0:15020"
    ready: str = "0.0.0.0:15021"
    # Where `istioctl ztunnel-config` and users of Envoy look; reading only. They expect 127.0.0.1:15000.
    loopback: str = ""


def _bind_loopback(address: str) -> socket.socket:
    option = "--admin-address"
    host, _ = parse_address(option, address)
    if host not in ("localhost", "::1") and not host.startswith("127."):
        raise ConfigError(
            f"{option} {address}: not a loopback address; the admin API is for this machine only"
        )
    return bind_tcp(option, address)


class AdminServer:
    """Serves an agent's state until stopped."""

    def __init__(self, state: AgentState, options: AdminOptions) -> None:
        self._handlers = Handlers(state)
        self._options = options
        self._servers: list[HttpServer] = []
        self._ports: dict[str, int] = {}
        self.problems: tuple[str, ...] = ()  # what does not work but does not stop the agent; for `warnings`

    async def start(self) -> None:
        """Listen everywhere. ConfigError if an address cannot be had, but for the metrics'.

        Without a metrics port the mesh works: that is a problem to show, not a reason not to start.
        """
        try:
            listener = bind_unix("--admin", self._options.path)
            await self._serve("admin", self._handlers.admin(), listener, self._options.path)
            if self._options.loopback:
                await self._serve(
                    "loopback", self._handlers.reading(), _bind_loopback(self._options.loopback)
                )
            if self._options.ready:
                await self._serve("ready", self._handlers.ready(), bind_tcp("--ready", self._options.ready))
        except ConfigError:
            await self.stop()
            raise
        if self._options.metrics:
            try:
                listener = bind_tcp("--metrics", self._options.metrics)
            except ConfigError as error:
                _log.error("%s; metrics are on the admin socket only", error)
                self.problems = (str(error),)
            else:
                await self._serve("metrics", self._handlers.metrics(), listener)

    async def _serve(
        self, name: str, application: Application, listener: socket.socket, path: Path | None = None
    ) -> None:
        server = HttpServer(application, listener, path)
        self._servers.append(server)
        await server.start()
        self._ports[name] = server.port

    def port(self, name: str) -> int:
        """Return the TCP port of `metrics`, `ready` or `loopback` (useful where port 0 was asked for)."""
        return self._ports[name]

    async def stop(self) -> None:
        """Stop all; requests in progress get a second."""
        for server in self._servers:
            await server.stop()
        self._servers.clear()
