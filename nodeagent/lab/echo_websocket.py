"""WebSocket of the echo workload: each message comes back, fragment by fragment (RFC 6455)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import Any, Final, cast

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from nodeagent.lab.echo_connections import Connections
from nodeagent.lab.echo_message import Answer, Controls, Request, Responder

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_token(key: str) -> str:
    """Return Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(
        hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    ).decode()


class WebSocketUpgrade:
    """Takes over requests that ask for WebSocket properly."""

    def __init__(self, responder: Responder, connections: Connections) -> None:
        self._pod = responder.identity.pod
        self._connections = connections

    def __call__(self, request: Request) -> tuple[bytes, asyncio.Protocol] | None:
        """Answer a valid opening handshake with 101; None for anything else."""
        headers = {name.lower(): value for name, value in request.headers}
        if headers.get("upgrade", "").lower() != "websocket" or request.method != "GET":
            return None
        key = headers.get("sec-websocket-key", "")
        if headers.get("sec-websocket-version") != "13" or not _is_key(key):
            return None
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "upgrade: websocket",
            "connection: Upgrade",
            f"sec-websocket-accept: {accept_token(key)}",
            f"x-echo-pod: {self._pod}",
        ]
        if offered := headers.get("sec-websocket-protocol"):
            lines.append(f"sec-websocket-protocol: {offered.partition(',')[0].strip()}")
        response = "\r\n".join(lines) + "\r\n\r\n"
        return response.encode("latin-1", "replace"), WebSocketConnection(self._connections)


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


class WebSocketConnection(asyncio.Protocol):
    """A WebSocket after its handshake."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._frames = Connection(ConnectionType.SERVER)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over."""
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._transport = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Send back what has come; a violation ends the connection with its close code."""
        try:
            self._frames.receive_data(data)
            for event in self._frames.events():
                self._handle(event)
        except RemoteProtocolError as error:
            self._close(error.event_hint)
        except LocalProtocolError:
            self._close(None)

    def _handle(self, event: Any) -> None:
        if isinstance(event, TextMessage):
            self._send(TextMessage(data=event.data, message_finished=event.message_finished))
        elif isinstance(event, BytesMessage):
            self._send(BytesMessage(data=event.data, message_finished=event.message_finished))
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._close(event.response())

    def _send(self, event: Message[Any] | Any) -> None:
        if self._transport:
            self._transport.write(self._frames.send(event))

    def _close(self, event: Any) -> None:
        if isinstance(event, CloseConnection) and self._frames.state in (
            ConnectionState.OPEN,
            ConnectionState.REMOTE_CLOSING,
        ):
            self._send(event)
        if self._transport:
            self._transport.close()

    def pause_writing(self) -> None:
        """Read no more while the peer does not read what comes back."""
        if self._transport and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        """Say goodbye (1001: going away)."""
        self._close(CloseConnection(code=1001, reason="echo ends"))

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport:
            self._transport.abort()


class WebSocketOnly(Responder):
    """Answers plain requests on a WebSocket port."""

    def answer(self, request: Request, controls: Controls) -> Answer:
        """Say that this port wants an upgrade (RFC 9110 section 15.5.22)."""
        answer = self.refuse(426, "this port speaks WebSocket (version 13) only")
        answer.headers.extend([("upgrade", "websocket"), ("sec-websocket-version", "13")])
        return answer
