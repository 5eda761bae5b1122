"""Who may open a stream, and as whom. Listeners in plain text have no guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc

from nodeagent.controlplane.view import Client

Permit: TypeAlias = Callable[[Client], None]
"""Called with the client that a stream says it is; StreamDenied if it may not be."""
AuthContext: TypeAlias = Mapping[str, Iterable[bytes]]
"""What TLS knows of the peer, as gRPC tells it."""


class StreamDenied(Exception):
    """The stream is refused; ends it with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Admission:
    """What an admitted stream may do, and how long."""

    permit: Permit
    caller: str = ""
    """Who was admitted, for people; empty: nobody asked."""
    ends: float | None = None
    """Seconds since the epoch at which what it was admitted by is void; None: at no certain time."""

    def seconds_left(self) -> float | None:
        """How long the stream may live; None: for ever."""
        return None if self.ends is None else max(0.0, self.ends - time.time())


class Guard(Protocol):
    """Authenticates streams."""

    async def admit(self, metadata: Iterable[tuple[str, Any]], peer: AuthContext) -> Admission:
        """Who a stream is from; StreamDenied if neither its metadata nor its TLS peer proves it."""
        ...


def _anybody(client: Client) -> None:
    del client


OPEN = Admission(_anybody)
"""The admission of streams without a guard."""
