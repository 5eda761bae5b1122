"""The echo workload: listens on the ports asked for and answers with what it received.

One process, one event loop (uvloop). It holds no request body in memory: bodies are hashed as they pass.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.errors import ConfigError
from nodeagent.lab.echo_connections import Connections
from nodeagent.lab.echo_message import Identity, Responder

BACKLOG: Final = 4096
GRACE_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """The ports of one echo process, by what they speak."""

    http: tuple[int, ...] = ()
    h2c: tuple[int, ...] = ()
    grpc: tuple[int, ...] = ()
    ws: tuple[int, ...] = ()
    tcp: tuple[int, ...] = ()
    tcp_banner: str = ""
    host: str = "::"

    def ports(self) -> Iterator[tuple[str, int]]:
        """Yield (option, port)."""
        for option in ("http", "h2c", "grpc", "ws", "tcp"):
            for port in getattr(self, option):
                yield option, port

    def check(self) -> None:
        """Raise ConfigError unless there is a port, and none twice."""
        seen: dict[int, str] = {}
        for option, port in self.ports():
            if port in seen and port != 0:
                raise ConfigError(f"--{option} {port}: the port is taken by --{seen[port]} {port} already")
            seen[port] = option
        if not seen:
            raise ConfigError("no port to listen on: give --http, --h2c, --grpc, --ws or --tcp PORT")


def bind(option: str, host: str, port: int) -> socket.socket:
    """Return a listening socket, of both address families where the host is `::`; ConfigError if it fails."""
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = infos[0]
        dual = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        # A machine without IPv6 still has a wildcard address.
        if host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return bind(option, "0.0.0.0", port)  # noqa: S104 - asked for with `::`
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(f"--{option} {port}: cannot listen on {host} port {port}: {reason}") from error
    listener.setblocking(False)
    return listener


class EchoServer:
    """All listeners of one echo process."""

    def __init__(self, options: EchoOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._responder = Responder(identity)
        self._connections = Connections()
        self._servers: list[asyncio.Server] = []
        self._grpc: Any = None
        self.bound: list[tuple[str, int]] = []  # (option, port), with the port chosen for 0

    async def start(self) -> None:
        """Listen on every port, or on none and raise ConfigError."""
        self._options.check()
        loop = asyncio.get_running_loop()
        listeners: list[tuple[str, socket.socket]] = []
        try:
            for option, port in self._options.ports():
                if option != "grpc":
                    listeners.append((option, bind(option, self._options.host, port)))
            if self._options.grpc:
                from nodeagent.lab.echo_grpc import GrpcEcho

                self._grpc = GrpcEcho(self._identity, self._responder)
                self.bound += [
                    ("grpc", port) for port in await self._grpc.start(self._options.host, self._options.grpc)
                ]
        except BaseException:
            for _, listener in listeners:
                listener.close()
            raise
        for option, listener in listeners:
            self.bound.append((option, listener.getsockname()[1]))
            server = await loop.create_server(self._factory(option), sock=listener, backlog=BACKLOG)
            self._servers.append(server)

    def _factory(self, option: str) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of a new connection to a port of the option."""
        connections, responder = self._connections, self._responder
        if option == "tcp":
            from nodeagent.lab.echo_tcp import TcpConnection

            banner = self._banner()
            return lambda: TcpConnection(banner, connections)
        from nodeagent.lab.echo_http1 import Http1Connection

        if option == "h2c":
            from nodeagent.lab.echo_http2 import H2cUpgrade, Http2Connection, PrefaceSwitch

            to_http2 = H2cUpgrade(responder, connections)
            return lambda: PrefaceSwitch(
                lambda: Http1Connection(responder, connections, to_http2),
                lambda: Http2Connection(responder, connections),
            )
        from nodeagent.lab.echo_websocket import WebSocketOnly, WebSocketUpgrade

        to_websocket = WebSocketUpgrade(responder, connections)
        if option == "ws":
            responder = WebSocketOnly(self._identity)
        return lambda: Http1Connection(responder, connections, to_websocket)

    def _banner(self) -> bytes:
        text = self._options.tcp_banner
        if not text:
            return b""
        text = text.replace("{pod}", self._identity.pod).replace("{namespace}", self._identity.namespace)
        return text.encode() + b"\n"

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Take no more connections, let requests in progress end within the grace, cut the rest."""
        for server in self._servers:
            server.close()
        await asyncio.gather(self._connections.end(grace), *([self._grpc.stop(grace)] if self._grpc else []))


async def serve(options: EchoOptions, identity: Identity) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = EchoServer(options, identity)
    await server.start()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    ports = ", ".join(f"{option} {port}" for option, port in server.bound)
    print(f"echo {identity.namespace}/{identity.pod}: {ports}", file=sys.stderr, flush=True)
    await stopping.wait()
    await server.stop()


def run(options: EchoOptions, identity: Identity) -> None:
    """Serve on a uvloop event loop until told to stop; ConfigError if a port cannot be had."""
    import uvloop

    options.check()
    # gRPC would log what is raised as an error anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    uvloop.run(serve(options, identity))
