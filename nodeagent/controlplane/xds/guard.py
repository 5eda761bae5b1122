"""Who may open a stream, and as whom. Listeners in plain text have no guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

import grpc

from nodeagent.controlplane.view import Client

Permit: TypeAlias = Callable[[Client], None]
"""Called with the client that a stream says it is; StreamDenied if it may not be."""


class StreamDenied(Exception):
    """The stream is refused; ends it with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        super().__init__(message)


class Guard(Protocol):
    """Authenticates streams."""

    async def admit(self, metadata: Iterable[tuple[str, Any]]) -> Permit:
        """Who a stream is from; StreamDenied if its metadata does not prove it."""
        ...


def anybody(client: Client) -> None:
    """The permit of streams without a guard."""
    del client
