"""HTTP/1.1 for the admin API: what is asked and answered, and one connection of it.

h11 knows the protocol, asyncio moves the bytes. A whole web framework costs the agent 11 MB for five small pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote

import h11

MAX_HEAD_BYTES: Final = 16 << 10
MAX_BODY_BYTES: Final = 64 << 10
IDLE_SECONDS: Final = 30.0
"""How long a request may take to arrive, a connection be of no use, and a client not read."""
TEXT: Final = "text/plain; charset=utf-8"
_READ_BYTES: Final = 16 << 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A request; nothing here takes a body."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    """The parameters, decoded, in order."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. `rest` is what follows the body, made while it is written; if it fails the connection is cut, which
    is the only way left to say that this is not all."""

    body: bytes = b""
    status: int = 200
    kind: str = TEXT
    headers: Mapping[str, str] | None = None
    rest: AsyncGenerator[bytes, None] | None = None
    after: Callable[[], None] | None = None
    """Called once the answer is written."""


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def text(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a plain text answer."""
    return Response((message.rstrip("\n") + "\n").encode("utf-8", "replace"), status, headers=headers)


class Connection:
    """One client's connection; `run` serves it until it ends."""

    def __init__(self, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._handler = handler
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.busy = False
        """A request is being answered."""

    async def run(self) -> None:
        """Serve until either side has had enough."""
        try:
            while (request := await self._next_request()) is not None:
                self.busy = True
                await self._answer(await self._handler(request), head_only=request.method == "HEAD")
                self.busy = False
                if self._http.our_state is h11.MUST_CLOSE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, str(error))
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        except asyncio.CancelledError:
            self._writer.transport.abort()
            raise
        finally:
            self._writer.close()

    async def _next_request(self) -> Request | None:
        """The next request, its body read and dropped; None when the client has no more."""
        found: Request | None = None
        size = 0
        async with asyncio.timeout(IDLE_SECONDS):
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._reader.read(_READ_BYTES))
                elif isinstance(event, h11.Request):
                    found = _request(event)
                    await self._go_ahead()
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > MAX_BODY_BYTES:
                        raise h11.RemoteProtocolError("the body is too large", 413)
                else:
                    return found if isinstance(event, h11.EndOfMessage) else None

    async def _go_ahead(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))

    async def _answer(self, response: Response, *, head_only: bool = False) -> None:
        headers = {"Date": formatdate(usegmt=True), "Content-Type": response.kind, **(response.headers or {})}
        if response.rest is None:
            headers["Content-Length"] = str(len(response.body))
        reason = HTTPStatus(response.status).phrase
        head = h11.Response(status_code=response.status, headers=list(headers.items()), reason=reason)
        try:
            await self._send(head)
            if not head_only:
                await self._write_body(response)
            await self._send(h11.EndOfMessage())
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            _log.exception("a page failed amid the answer")
            raise ConnectionAbortedError from None
        finally:
            if response.rest is not None:
                await response.rest.aclose()
        if response.after is not None:
            response.after()

    async def _write_body(self, response: Response) -> None:
        await self._send(h11.Data(data=response.body))
        if response.rest is not None:
            async for piece in response.rest:
                await self._send(h11.Data(data=piece))

    async def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._writer.write(data)
            async with asyncio.timeout(IDLE_SECONDS):
                await self._writer.drain()

    async def _refuse(self, status: int, reason: str) -> None:
        """Say what is wrong with a request that cannot be read, if that may still be said."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with contextlib.suppress(ConnectionError, TimeoutError):
                await self._answer(text(status, f"error: {reason}", {"Connection": "close"}))


def _request(event: h11.Request) -> Request:
    path, _, query = event.target.decode("latin-1").partition("?")
    if "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    pairs = parse_qsl(query, keep_blank_values=True)
    return Request(event.method.decode("latin-1"), unquote(path), tuple(pairs))
