"""TCP of the echo workload: every byte comes back; with a banner the server speaks first."""

from __future__ import annotations

import asyncio
from typing import cast

from nodeagent.lab.echo_connections import Connections


class TcpConnection(asyncio.Protocol):
    """One connection; it reads no faster than the peer reads."""

    def __init__(self, banner: bytes, connections: Connections) -> None:
        self._banner = banner
        self._connections = connections
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, if there is a banner."""
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        if self._banner:
            self._transport.write(self._banner)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._transport = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        if self._transport:
            self._transport.write(data)

    def pause_writing(self) -> None:
        """Read no more while the peer does not read."""
        if self._transport and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        """Close behind what has been written."""
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport:
            self._transport.abort()
