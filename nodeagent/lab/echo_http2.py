"""HTTP/2 of the echo workload, in clear text.

By prior knowledge (RFC 9113 section 3.3) or by upgrade (RFC 7540 section 3.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from nodeagent.lab.echo_connections import Connections
from nodeagent.lab.echo_message import (
    Answer,
    ControlError,
    Controls,
    Request,
    Responder,
    plain_address,
)

MAX_STREAMS: Final = 256
_PREFACE: Final = b"PRI"  # no HTTP/1.1 method that llhttp knows begins so
_UPGRADED: Final = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n"
# RFC 9113 section 8.2.2: what a field of an HTTP/1.1 connection may not be in HTTP/2.
_CONNECTION_FIELDS: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"}
)


class H2cUpgrade:
    """Takes over HTTP/1.1 requests that ask for h2c; the request becomes stream 1."""

    def __init__(self, responder: Responder, connections: Connections) -> None:
        self._responder = responder
        self._connections = connections

    def __call__(self, request: Request) -> tuple[bytes, asyncio.Protocol] | None:
        """Answer a proper `Upgrade: h2c` with 101; None for anything else."""
        headers = {name.lower(): value for name, value in request.headers}
        settings = headers.get("http2-settings")
        if headers.get("upgrade", "").lower() != "h2c" or settings is None:
            return None
        connection = Http2Connection(self._responder, self._connections)
        try:
            connection.upgrade(settings.encode("latin-1"), request)
        except (h2.exceptions.ProtocolError, ValueError):
            return None
        return _UPGRADED, connection


class PrefaceSwitch(asyncio.Protocol):
    """Chooses the protocol of a connection by its first bytes: the HTTP/2 preface or an HTTP/1.1 request."""

    def __init__(self, http1: Callable[[], asyncio.Protocol], http2: Callable[[], asyncio.Protocol]) -> None:
        self._http1 = http1
        self._http2 = http2
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for bytes."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand the connection over when it is clear what it speaks."""
        self._data += data
        if len(self._data) < len(_PREFACE) and _PREFACE.startswith(self._data):
            return
        assert self._transport is not None
        protocol = self._http2() if self._data.startswith(_PREFACE) else self._http1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._data)


class Http2Connection(asyncio.Protocol):
    """One connection with its streams; each answer that takes time has a task."""

    def __init__(self, responder: Responder, connections: Connections) -> None:
        self._responder = responder
        self._connections = connections
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._upgraded: Request | None = None
        self._transport: asyncio.Transport | None = None
        self._remote: tuple[str, int] = ("", 0)
        self._requests: dict[int, Request] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._progress = asyncio.Event()  # a window has opened, or the transport takes bytes again
        self._paused = False
        self._ending = False

    def upgrade(self, settings: bytes, request: Request) -> None:
        """Begin as the other side of an HTTP/1.1 upgrade: the request is stream 1."""
        self._h2.initiate_upgrade_connection(settings)
        self._upgraded = request
        request.protocol = "HTTP/2"
        request.headers = [pair for pair in request.headers if pair[0].lower() not in _CONNECTION_FIELDS]

    # -- transport ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        self._transport = cast(asyncio.Transport, transport)
        self._remote = plain_address(transport.get_extra_info("peername"))
        self._connections.add(self)
        if self._upgraded is None:
            self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._flush()
        if self._upgraded is not None:
            self._serve(1, self._upgraded)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop all streams."""
        self._transport = None
        self._connections.discard(self)
        for task in list(self._tasks.values()):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Handle frames; a violation ends the connection with GOAWAY."""
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            if self._transport:
                self._transport.close()
            return
        for event in events:
            self._handle(event)
        self._flush()

    def pause_writing(self) -> None:
        """Hold the bodies."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on with them."""
        self._paused = False
        self._progress.set()

    def end(self) -> None:
        """Say that no new streams are taken, and close when none is left."""
        self._ending = True
        if self._transport and not (self._requests or self._tasks):
            self._h2.close_connection()
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport:
            self._transport.abort()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport:
            self._transport.write(data)

    # -- events ------------------------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        match event:
            case h2.events.RequestReceived():
                self._requests[event.stream_id] = self._request_of(event.headers)
            case h2.events.DataReceived():
                if request := self._requests.get(event.stream_id):
                    request.add_body(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                if request := self._requests.get(event.stream_id):
                    request.trailers = [_text(pair) for pair in event.headers]
            case h2.events.StreamEnded():
                if request := self._requests.pop(event.stream_id, None):
                    self._serve(event.stream_id, request)
            case h2.events.StreamReset():
                self._requests.pop(event.stream_id, None)
                if task := self._tasks.get(event.stream_id):
                    task.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._progress.set()
            case h2.events.ConnectionTerminated():
                self.end()

    def _request_of(self, fields: Any) -> Request:
        pseudo: dict[str, str] = {}
        headers: list[tuple[str, str]] = []
        for name, value in map(_text, fields):
            if name.startswith(":"):
                pseudo[name] = value
            else:
                headers.append((name, value))
        host = pseudo.get(":authority") or next((value for name, value in headers if name == "host"), "")
        return Request(
            "HTTP/2", pseudo.get(":method", ""), pseudo.get(":path", ""), host, headers, self._remote
        )

    # -- answers -----------------------------------------------------------------------------------------

    def _serve(self, stream: int, request: Request) -> None:
        try:
            controls = request.controls()
        except ControlError as error:
            refusal = self._responder.refuse(400, str(error))
            self._start(stream, self._send(stream, refusal, request.method == "HEAD"))
            return
        self._start(stream, self._answer(stream, request, controls))

    def _start(self, stream: int, answer: Any) -> None:
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks[stream] = task
        task.add_done_callback(lambda done: self._done(stream, done))

    def _done(self, stream: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(stream, None)
        error = None if task.cancelled() else task.exception()
        # A ProtocolError: the peer reset the stream, or closed the connection, amid the answer.
        if error and not isinstance(error, h2.exceptions.ProtocolError):
            self.abort()
            raise error
        if self._ending:
            self.end()

    async def _answer(self, stream: int, request: Request, controls: Controls) -> None:
        await self._responder.prepare(controls)
        await self._send(stream, self._responder.answer(request, controls), request.method == "HEAD")

    async def _send(self, stream: int, answer: Answer, head_only: bool) -> None:
        fields = [(":status", str(answer.status))]
        fields += [
            (name.lower(), value) for name, value in answer.headers if name.lower() not in _CONNECTION_FIELDS
        ]
        if answer.status not in (204, 304) and not any(name == "content-length" for name, _ in fields):
            fields.append(("content-length", str(answer.length)))
        bodiless = head_only or not answer.length
        trailers = [] if head_only else [(name.lower(), value) for name, value in answer.trailers]
        self._h2.send_headers(stream, fields, end_stream=bodiless and not trailers)
        if not bodiless:
            await self._send_body(stream, answer, end=not trailers)
        if trailers:
            self._h2.send_headers(stream, trailers, end_stream=True)
        if answer.close:
            self._ending = True
        self._flush()

    async def _send_body(self, stream: int, answer: Answer, *, end: bool) -> None:
        left = answer.length
        for part in answer.parts():
            while part:
                room = await self._room(stream)
                left -= len(part[:room])
                self._h2.send_data(stream, part[:room], end_stream=end and not left)
                self._flush()
                part = part[room:]

    async def _room(self, stream: int) -> int:
        """Wait until the peer takes bytes of the stream; return how many go into one frame."""
        while True:
            room: int = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if room > 0 and not self._paused:
                return room
            self._progress.clear()
            await self._progress.wait()


def _text(pair: tuple[bytes, bytes]) -> tuple[str, str]:
    return pair[0].decode("latin-1"), pair[1].decode("latin-1")
