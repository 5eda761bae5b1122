"""HTTP/1.1 of the echo workload: a connection, its requests in order, its answers streamed.

Written on llhttp's events and not on a web framework because the workload must show what was received as it
was received (order and case of headers, trailers) and must not be the slowest part of a load test.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections import deque
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Final, Protocol, cast

import httptools

from nodeagent.lab.echo_connections import Connections
from nodeagent.lab.echo_message import (
    Answer,
    ControlError,
    Controls,
    Request,
    Responder,
    plain_address,
)

MAX_HEAD_BYTES: Final = 256 << 10
MAX_PIPELINED: Final = 64
LINGER_SECONDS: Final = 1.0
_REASONS: Final = {status.value: status.phrase for status in http.HTTPStatus}
_BODILESS: Final = frozenset({204, 304})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Upgrade(Protocol):
    """Takes the connection over when a request asks for it.

    Returns the bytes of the answer and the protocol that goes on, or None to answer the request as HTTP.
    """

    def __call__(self, request: Request) -> tuple[bytes, asyncio.Protocol] | None:
        """Decide about one request that carries `Upgrade`."""


class _Date:
    """The Date header, formatted once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._line = f"date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._line


_date: Final = _Date()


def head_of(answer: Answer, *, old: bool, keep_alive: bool, chunked: bool) -> bytes:
    """Return the head of an answer, with the framing that its body will have (`old`: to HTTP/1.0)."""
    reason = _REASONS.get(answer.status, "Unknown")
    lines = [f"HTTP/1.1 {answer.status} {reason}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in answer.headers]
    if chunked:
        lines.append("transfer-encoding: chunked\r\n")
    elif answer.status not in _BODILESS:
        lines.append(f"content-length: {answer.length}\r\n")
    if answer.trailers and chunked:
        lines.append(f"trailer: {', '.join(name for name, _ in answer.trailers)}\r\n")
    if not keep_alive:
        lines.append("connection: close\r\n")
    elif old:
        lines.append("connection: keep-alive\r\n")
    return "".join(lines).encode("latin-1", "replace") + _date.line() + b"\r\n"


@dataclass(frozen=True, slots=True)
class _Due:
    """A request whose answer is due."""

    request: Request
    old: bool  # HTTP/1.0
    keep_alive: bool


class Http1Connection(asyncio.Protocol):
    """One downstream connection. Requests are answered in order; at most MAX_PIPELINED wait unread."""

    def __init__(
        self, responder: Responder, connections: Connections, upgrade: Upgrade | None = None
    ) -> None:
        self._responder = responder
        self._connections = connections
        self._upgrade = upgrade
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._remote: tuple[str, int] = ("", 0)
        self._waiting: deque[_Due] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable: asyncio.Event | None = None  # set: writing is paused until the event
        self._ending = False  # close as soon as nothing is due
        self._deaf = False  # what still comes in is of no interest
        self._request: Request | None = None  # whose body is being read
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0

    # -- transport ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection."""
        # No isinstance check: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._remote = plain_address(transport.get_extra_info("peername"))
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what is due."""
        self._transport = None
        self._connections.discard(self)
        self._waiting.clear()
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse; an error of the peer's is answered with 400."""
        if self._deaf:
            return
        if self._request is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(400, f"not HTTP/1.1: {error}")
        else:
            if self._request is None and self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"request head over {MAX_HEAD_BYTES} bytes")

    def eof_received(self) -> bool:
        """Keep the connection for the answers that are due: a peer may end its side first."""
        self._request = None
        self._ending = True
        return self._is_due()

    def pause_writing(self) -> None:
        """Hold the answer that is being streamed."""
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        """Go on with it."""
        if self._writable:
            self._writable.set()
        self._writable = None

    def end(self) -> None:
        """Close as soon as nothing is due."""
        self._ending = True
        if self._transport and not self._is_due():
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport:
            self._transport.abort()

    def _is_due(self) -> bool:
        return bool(self._task or self._waiting or self._request)

    # -- parser events -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start afresh."""
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        """Gather the target, which may come in parts."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Gather a header, or a trailer when the head is over."""
        pair = (name.decode("latin-1"), value.decode("latin-1"))
        if self._request is None:
            self._headers.append(pair)
        else:
            self._request.trailers = [*(self._request.trailers or ()), pair]

    def on_headers_complete(self) -> None:
        """Make the request; ask for its body if the peer waits to be asked (RFC 9110 section 10.1.1)."""
        host = ""
        expects = False
        for name, value in self._headers:
            lower = name.lower()
            if lower == "host":
                host = value
            elif lower == "expect":
                expects = value.lower() == "100-continue"
        self._request = Request(
            f"HTTP/{self._parser.get_http_version()}",
            self._parser.get_method().decode(),
            self._url.decode("latin-1"),
            host,
            self._headers,
            self._remote,
        )
        if expects and not self._task and not self._waiting and self._transport:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Hash a part of the body."""
        assert self._request is not None
        self._request.add_body(body)

    def on_message_complete(self) -> None:
        """Queue the request for its answer."""
        request = self._request
        assert request is not None
        self._request = None
        self._head_bytes = 0
        self._waiting.append(
            _Due(request, self._parser.get_http_version() == "1.0", self._parser.should_keep_alive())
        )
        if not self._parser.should_upgrade():
            self._serve()

    # -- answers -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer what waits, up to the first answer that takes time."""
        while self._waiting and self._task is None and self._transport:
            due = self._waiting.popleft()
            try:
                controls = due.request.controls()
            except ControlError as error:
                self._write(self._responder.refuse(400, str(error)), due)
                continue
            if controls.plain and self._writable is None:
                self._write(self._responder.answer(due.request, controls), due)
            else:
                self._task = asyncio.get_running_loop().create_task(self._stream(due, controls))
                self._task.add_done_callback(self._streamed)
        self._pause_reading(len(self._waiting) >= MAX_PIPELINED)
        if self._ending:
            self.end()

    def _pause_reading(self, pause: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if pause and self._transport.is_reading():
            self._transport.pause_reading()
        elif not pause and not self._transport.is_reading():
            self._transport.resume_reading()

    def _keeps_alive(self, due: _Due, answer: Answer) -> bool:
        return due.keep_alive and not answer.close and not (self._ending and not self._waiting)

    def _write(self, answer: Answer, due: _Due) -> None:
        """Write a whole answer at once."""
        assert self._transport is not None
        keep_alive = self._keeps_alive(due, answer)
        head = head_of(answer, old=due.old, keep_alive=keep_alive, chunked=False)
        self._transport.write(head if due.request.method == "HEAD" else head + answer.body)
        if not keep_alive:
            self._close()

    def _close(self) -> None:
        """Close behind what has been written."""
        self._deaf = True
        self._waiting.clear()
        if self._transport:
            self._transport.close()

    async def _stream(self, due: _Due, controls: Controls) -> None:
        """Answer after the delay, part by part as the peer reads."""
        await self._responder.prepare(controls)
        answer = self._responder.answer(due.request, controls)
        chunked = not due.old and (answer.chunked or bool(answer.trailers)) and answer.status not in _BODILESS
        keep_alive = self._keeps_alive(due, answer)
        await self._send(head_of(answer, old=due.old, keep_alive=keep_alive, chunked=chunked))
        if due.request.method != "HEAD":
            for part in answer.parts():
                await self._send(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if chunked:
                await self._send(_last_chunk(answer.trailers))
        if not keep_alive:
            self._close()

    async def _send(self, data: bytes) -> None:
        if self._writable:
            await self._writable.wait()
        if self._transport:
            self._transport.write(data)

    def _streamed(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        if error := task.exception():
            self.abort()
            raise error
        self._serve()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer an error of the peer's, unless earlier answers are still due, and close."""
        self._deaf = True
        self._request = None
        self._ending = True
        if self._transport is None or self._is_due():
            return
        answer = self._responder.refuse(status, reason)
        self._transport.write(head_of(answer, old=False, keep_alive=False, chunked=False) + answer.body)
        # Closing now would reset the connection if bytes are unread, and the peer would never see the answer.
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    # -- upgrades ----------------------------------------------------------------------------------------

    def _switch(self, rest: bytes) -> None:
        """Let the upgrade take over, or answer the request as if it had not asked (RFC 9110 section 7.8)."""
        assert self._transport is not None
        if len(self._waiting) > 1 or self._task:
            self._waiting.pop()
            self._refuse(400, "an upgrade behind unanswered requests")
            return
        due = self._waiting.popleft()
        if due.request.method == "CONNECT":
            answer = self._responder.refuse(405, "CONNECT is not served here")
            self._write(answer, replace(due, keep_alive=False))
            return
        taken = self._upgrade(due.request) if self._upgrade else None
        if taken is None:
            self._parser = httptools.HttpRequestParser(self)
            self._waiting.append(due)
            self._serve()
            if rest:
                self.data_received(rest)
            return
        response, protocol = taken
        transport, self._transport = self._transport, None
        self._connections.discard(self)
        transport.write(response)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if rest:
            protocol.data_received(rest)


def _last_chunk(trailers: tuple[tuple[str, str], ...]) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return b"0\r\n" + fields.encode("latin-1", "replace") + b"\r\n"
