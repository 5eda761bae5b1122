"""The gRPC server: listens on TCP and unix sockets, hands each call to a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc

from nodeagent.controlplane.xds.delta import DeltaStream
from nodeagent.controlplane.xds.guard import OPEN, Guard, StreamDenied
from nodeagent.controlplane.xds.hub import Hub
from nodeagent.controlplane.xds.sotw import SotwStream
from nodeagent.controlplane.xds.stream import Stream, StreamRefused
from nodeagent.errors import ConfigError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 200 << 20
MAX_STREAMS: Final = 10_000
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients ping every 30 s or so; do not take that for an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


class _Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """envoy.service.discovery.v3.AggregatedDiscoveryService."""

    def __init__(self, hub: Hub, guard: Guard | None) -> None:
        self._hub = hub
        self._guard = guard

    async def StreamAggregatedResources(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """State of the world."""
        await self._serve(SotwStream, request_iterator, context)

    async def DeltaAggregatedResources(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Delta."""
        await self._serve(DeltaStream, request_iterator, context)

    async def _serve(
        self, kind: type[Stream], requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        hub = self._hub
        if len(hub.streams) >= MAX_STREAMS:
            hub.metrics.refused.labels("streams").inc()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} clients are connected")
        stream = kind(hub, context.peer(), context)
        hub.streams.add(stream)
        hub.metrics.clients.labels(kind.variant).inc()
        try:
            await self._run(stream, requests, context)
        except StreamDenied as error:
            hub.metrics.refused.labels("caller").inc()
            log.warning("refused a stream of %s: %s", context.peer(), error)
            await context.abort(error.code, str(error))
        except StreamRefused as error:
            hub.metrics.refused.labels("names").inc()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        finally:
            hub.streams.discard(stream)
            hub.metrics.clients.labels(kind.variant).dec()
            log.info("%s left", stream.client.node_id if stream.client else context.peer())

    async def _run(
        self, stream: Stream, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Serve a stream that the guard admits, as long as it does."""
        metadata = context.invocation_metadata() or ()
        admission = await self._guard.admit(metadata, context.auth_context()) if self._guard else OPEN
        stream.permit, stream.caller = admission.permit, admission.caller
        try:
            async with asyncio.timeout(admission.seconds_left()) as limit:
                await stream.run(requests)
        except TimeoutError:
            if not limit.expired():
                raise
            message = "the client certificate has expired; connect with its successor"
            raise StreamDenied(grpc.StatusCode.UNAUTHENTICATED, message) from None


@dataclass(frozen=True, slots=True)
class Security:
    """What makes a server one over TLS, whose streams are authenticated."""

    credentials: Callable[[], grpc.ServerCredentials]
    """Called for each address."""
    guard: Guard
    register: Callable[[grpc.aio.Server], None] = lambda server: None
    """Adds services that are offered over TLS only."""


class XdsServer:
    """Serves a hub on addresses (`host:port`) and unix sockets: in plain text, or all over TLS."""

    def __init__(
        self, hub: Hub, addresses: Iterable[str], sockets: Iterable[Path], security: Security | None = None
    ) -> None:
        self._hub = hub
        self._security = security
        self._server = grpc.aio.server(options=_OPTIONS)
        discovery = _Discovery(hub, security.guard if security else None)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, self._server)
        if security is not None:
            security.register(self._server)
        self._sockets = list(sockets)
        self.ports = [self._bind(address) for address in addresses]
        for path in self._sockets:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._bind(f"unix:{path}")

    def _bind(self, address: str) -> int:
        """Bind; returns the port, chosen by the system if 0 was asked for."""
        try:
            if self._security is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._security.credentials())
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: {error}; is it in use, or not an address?"
            ) from error
        if port == 0:
            raise ConfigError(f"cannot listen on {address}: is it in use, or not an address of this machine?")
        return int(port)

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()
        for path in self._sockets:
            path.chmod(0o600)

    async def stop(self, grace_seconds: float) -> None:
        """End all streams, so that clients look for another server, then close."""
        self._hub.closing.set()
        await self._server.stop(grace_seconds)
        for path in self._sockets:
            path.unlink(missing_ok=True)
