"""Listening sockets of the admin API, and the bounded HTTP servers on them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final

from nodeagent.admin.http import Connection, Handler
from nodeagent.errors import ConfigError

MAX_CONNECTIONS: Final = 64
SHUTDOWN_SECONDS: Final = 1.0
# struct sockaddr_un holds 108 bytes with the final NUL (unix(7)).
MAX_PATH_BYTES: Final = 107

_log = logging.getLogger(__name__)


def parse_address(option: str, address: str) -> tuple[str, int]:
    """Read `ADDRESS:PORT` or `[IPV6]:PORT`; ConfigError naming the option if it is not of that form."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdigit() or int(port) > 65535 or (":" in host and not bracketed):
        raise ConfigError(f"{option} {address}: not ADDRESS:PORT (IPv6 as [ADDRESS]:PORT)")
    return host.strip("[]"), int(port)


def bind_tcp(option: str, address: str) -> socket.socket:
    """Return a listening TCP socket; ConfigError naming the option if the address cannot be had."""
    host, port = parse_address(option, address)
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 - a machine without IPv6 still has a wildcard address
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = infos[0]
        dual = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
        listener = socket.create_server(where[:2], family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise ConfigError(f"{option} {address}: cannot listen: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def bind_unix(option: str, path: Path) -> socket.socket:
    """Return a listening unix socket that only its owner may use, in place of a stale one.

    ConfigError if another process listens there, or if the path cannot be used.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES - len(".new"):
        raise ConfigError(
            f"{option} {path}: longer than the {MAX_PATH_BYTES - 4} bytes a socket path may have"
        )
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"{option} {path}: exists and is no socket; remove it or choose another path")
    if _is_live(path):
        raise ConfigError(f"{option} {path}: another process listens there; stop it or choose another path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        listener.bind(str(fresh))
        # Under a name of its own until it is ready: nobody connects before the mode is right, and the last
        # one's path is replaced with no moment of absence.
        fresh.chmod(0o600)
        listener.listen(128)
        fresh.replace(path)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{option} {path}: cannot listen: {error.strerror or error}") from error
    return listener


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            # A full backlog means that somebody listens, however busy.
            return error.errno in (errno.EAGAIN, errno.ETIMEDOUT) or isinstance(error, TimeoutError)
        return True


class HttpServer:
    """The pages of an application on one listening socket, with bounds.

    Over MAX_CONNECTIONS the oldest connection makes room for the new one: a peer that only holds connections
    open cannot keep a probe out.
    """

    def __init__(self, handler: Handler, listener: socket.socket, path: Path | None = None) -> None:
        self._handler = handler
        self._listener = listener
        self._server: asyncio.AbstractServer | None = None
        self._path = path  # of a unix socket
        self._inode = self._path.stat().st_ino if self._path else 0
        self._live: dict[asyncio.Task[None], Connection] = {}
        self.displaced = 0  # connections closed to make room

    async def start(self) -> None:
        """Begin to serve."""
        start = asyncio.start_unix_server if self._path else asyncio.start_server
        self._server = await start(self._accept, sock=self._listener)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._live) >= MAX_CONNECTIONS:
            self.displaced += 1
            next(iter(self._live)).cancel()
        connection = Connection(self._handler, reader, writer)
        task = asyncio.create_task(connection.run())
        self._live[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._live[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection of the admin API failed", exc_info=error)

    @property
    def port(self) -> int:
        """The TCP port; 0 for a unix socket."""
        return 0 if self._path else int(self._listener.getsockname()[1])

    async def stop(self) -> None:
        """Take no more connections, let requests end for a second, remove the socket's path."""
        if self._server:
            self._server.close()
        if self._path:
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
        busy = [task for task, connection in self._live.items() if connection.busy]
        if busy:
            await asyncio.wait(busy, timeout=SHUTDOWN_SECONDS)
        for task in self._live:
            task.cancel()
        await asyncio.gather(*self._live, return_exceptions=True)
