"""The live connections of the echo workload, so that it can end in good order."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Connection(Protocol):
    """A live connection, as far as the shutdown cares."""

    def end(self) -> None:
        """Close as soon as nothing is due."""

    def abort(self) -> None:
        """Cut it."""


class Connections:
    """The set of live connections."""

    def __init__(self) -> None:
        self._live: set[Connection] = set()
        self._ending = False
        self._empty = asyncio.Event()

    def add(self, connection: Connection) -> None:
        """Take up a new connection; it is ended at once if all are being ended."""
        self._live.add(connection)
        if self._ending:
            connection.end()

    def discard(self, connection: Connection) -> None:
        """Forget a connection that has closed or changed its protocol."""
        self._live.discard(connection)
        if not self._live:
            self._empty.set()

    async def end(self, grace: float) -> None:
        """Let each end what is due, within the grace (seconds); cut those that have not."""
        self._ending = True
        for connection in list(self._live):
            connection.end()
        if self._live:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), grace)
            except TimeoutError:
                for connection in list(self._live):
                    connection.abort()
