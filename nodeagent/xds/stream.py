"""One delta ADS stream over gRPC: connects, exchanges, and connects again for as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio

from nodeagent.errors import IdentityError, XdsError
from nodeagent.xds.backoff import Backoff
from nodeagent.xds.protocol import Consumer, DeltaProtocol
from nodeagent.xds.transport import Transport
from nodeagent.xds.types import Message

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 5.0
MESSAGE_LIMIT: Final = 200 * 1024 * 1024
INITIAL_FETCH_TIMEOUT: Final = 15.0
_METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # A connection attempt of gRPC's ends after this; retrying is ours.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),
    # Each stream speaks for a workload of its own, so no two share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


@dataclass(slots=True)
class StreamState:
    """How a stream stands, for people."""

    connected: bool = False
    since: float = 0.0
    """Seconds since the epoch; of the connection, or 0."""
    attempts: int = 0
    """Failed attempts since the last success."""
    connects: int = 0
    last_error: str = ""


@dataclass(slots=True)
class DeltaStream:
    """Keeps one stream to `address` open and in step with its subscriptions.

    `subscribe` and `unsubscribe` may be called at any time, connected or not; `run` does the rest until it is
    cancelled. The consumer is called on the event loop.
    """

    name: str
    address: str
    node: Message
    types: Sequence[str]
    consumer: Consumer
    transport: Transport | None = None
    """How to connect; None: to `address` in plain text."""
    choose: Callable[[], Transport] | None = None
    """Asked before each connection how to connect, in place of `transport`."""
    backoff: Backoff = field(default_factory=Backoff)
    fetch_timeout: float = INITIAL_FETCH_TIMEOUT
    state: StreamState = field(default_factory=StreamState, init=False)
    protocol: DeltaProtocol = field(init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _reopen: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _transport: Transport = field(init=False)
    _applying: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._transport = self.transport or Transport(self.address)
        self.protocol = DeltaProtocol(self.node, self.types, self.consumer)

    @property
    def outstanding(self) -> str:
        """What keeps it from being in step with the server; empty if nothing does."""
        if not self.state.connected or self._reopen.is_set():
            return "is not connected"
        if self._applying:
            return "takes an answer"
        return f"waits for a {kind}" if (kind := self.protocol.outstanding) else ""

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Want names of a type ("*": everything)."""
        if self.protocol.subscribe(type_url, names):
            self._wake.set()

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Want names no more."""
        if self.protocol.unsubscribe(type_url, names):
            self._wake.set()

    def reopen(self) -> None:
        """End the stream and open another at once, from what is held; for when who asks, or for what, is to
        be said anew."""
        self._reopen.set()

    def identify(self, node: Message) -> None:
        """Be another node from now on, on a new stream."""
        self.node = node
        self.protocol.node = node
        self.reopen()

    async def run(self) -> None:
        """Connect again and again, until cancelled."""
        while True:
            try:
                if await self._connect_once():
                    continue
                raise XdsError("the server ended the stream")
            except (XdsError, IdentityError, grpc.RpcError, OSError) as error:
                self._note_failure(error)
            finally:
                self.state.connected = False
                self.state.since = 0.0
            await asyncio.sleep(self.backoff.next())

    def _note_failure(self, error: Exception) -> None:
        message = self._error_text(error)
        if message != self.state.last_error:
            logger.warning("xDS stream %s to %s: %s", self.name, self.address, message)
        self.state.last_error = message
        self.state.attempts = self.backoff.attempts + 1

    def _error_text(self, error: Exception) -> str:
        if not isinstance(error, grpc.aio.AioRpcError):
            return str(error) or type(error).__name__
        return self._status_text(error.code(), error.details() or "")

    def _status_text(self, code: grpc.StatusCode, details: str) -> str:
        if code is grpc.StatusCode.UNAVAILABLE:
            details = self._transport.explain(details)[1]
        return f"{code.name}: {details}"

    async def _connect_once(self) -> bool:
        """Exchange until the stream ends; True if it ended because it is to be opened anew."""
        # What asks for another stream from here on means what this one is about to be.
        self._reopen.clear()
        if self.choose is not None:
            self._transport = self.choose()
            self.address = self._transport.address
        async with self._transport.channel(_OPTIONS) as channel:
            await self._await_connection(channel)
            from envoy.service.discovery.v3 import discovery_pb2

            method = channel.stream_stream(
                _METHOD,
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
            )
            call = method(metadata=self._transport.metadata())
            try:
                return await self._exchange(call)
            finally:
                call.cancel()

    async def _await_connection(self, channel: Any) -> None:
        """Until connected, refused or timed out. What a refusal says is told by the call that follows it."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                state = channel.get_state(try_to_connect=True)
                while state not in (
                    grpc.ChannelConnectivity.READY,
                    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                ):
                    await channel.wait_for_state_change(state)
                    state = channel.get_state()
        except TimeoutError:
            raise XdsError(
                f"no connection within {CONNECT_TIMEOUT:g} s; is the control plane running and reachable?"
            ) from None

    async def _exchange(self, call: Any) -> bool:
        self.protocol.reopen()
        self._wake.set()
        receiver = asyncio.create_task(self._receive(call))
        reopen = asyncio.create_task(self._reopen.wait())
        helpers = (reopen, *map(asyncio.create_task, (self._send_subscriptions(call), self._watch_clock())))
        try:
            await asyncio.wait((receiver, reopen), return_when=asyncio.FIRST_COMPLETED)
            if not receiver.done():
                return True
            receiver.result()
            return False
        finally:
            for task in (receiver, *helpers):
                task.cancel()
            await asyncio.gather(receiver, *helpers, return_exceptions=True)

    async def _receive(self, call: Any) -> None:
        """Take responses until the stream ends; each is answered before the next is read, so that a server
        that does not read cannot make answers pile up here."""
        while (response := await call.read()) is not grpc.aio.EOF:
            self.backoff.reset()
            self._note_answered()
            await self._write(call, await self._apply(response))
        code = await call.code()
        if code != grpc.StatusCode.OK:
            raise XdsError(self._status_text(code, await call.details() or ""))

    async def _apply(self, response: Message) -> Message:
        steps = self.protocol.receive_in_steps(response)
        self._applying = True
        try:
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value
                await asyncio.sleep(0)
        finally:
            self._applying = False

    async def _send_subscriptions(self, call: Any) -> None:
        """Say what changed, whenever it does. A broken call ends this quietly: the reader has the reason."""
        with contextlib.suppress(grpc.RpcError):
            while True:
                await self._wake.wait()
                self._wake.clear()
                for request in self.protocol.requests():
                    await self._write(call, request)
                    self._note_connected()

    async def _write(self, call: Any, request: Message) -> None:
        async with self._writing:
            # The call is over; reading from it tells why.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(request)

    def _note_connected(self) -> None:
        """The server takes requests. Whether it is content with them is not known yet, so what the last stream
        failed of stays: the same again is no news."""
        if self.state.connected:
            return
        error = self.state.last_error
        self.state = StreamState(True, time.time(), connects=self.state.connects + 1, last_error=error)
        if not error:
            logger.info("xDS stream %s to %s is connected", self.name, self.address)

    def _note_answered(self) -> None:
        self._note_connected()
        if self.state.last_error:
            self.state.last_error = ""
            logger.info("xDS stream %s to %s is connected again", self.name, self.address)

    async def _watch_clock(self) -> None:
        """Ends resources whose TTL is over and waits that have lasted too long. A server that has nothing to say but
        keeps the stream is content with it."""
        while True:
            await asyncio.sleep(min(1.0, self.fetch_timeout / 4))
            if self.state.connected:
                self._note_answered()
            self.protocol.expire()
            self.protocol.give_up(self.fetch_timeout)
