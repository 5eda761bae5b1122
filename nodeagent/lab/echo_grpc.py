"""gRPC of the echo workload: an echo service of all four kinds of call, and grpc.health.v1.

The service is `nodeagent.echo.Echo`. A request may be any message: its bytes are counted and hashed, not
decoded. A reply is a `google.protobuf.Struct` with the fields of the HTTP answer. There is neither reflection
nor generated code: any client can call by path.

| method | call |
|---|---|
| Unary | one request, one reply |
| ServerStream | one request, `x-echo-count` replies (default 3) |
| ClientStream | many requests, one reply about all of them |
| BidiStream | a reply for each request |

Controls are metadata: `x-echo-status` (a gRPC code by number or name), `x-echo-delay`, `x-echo-fail` with
`x-echo-key` (UNAVAILABLE), `x-echo-header` (initial metadata), `x-echo-trailer`, `x-echo-count`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from nodeagent.errors import ConfigError
from nodeagent.lab.echo_message import (
    ControlError,
    Controls,
    Identity,
    Request,
    Responder,
    describe,
    parse_controls,
    plain_address,
)

SERVICE: Final = "nodeagent.echo.Echo"
MAX_COUNT: Final = 100_000
_PEER: Final = re.compile(r"ipv[46]:\[?(?P<ip>[^\]]+?)\]?:(?P<port>\d+)")
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class _Call:
    """One call: its request as described, its controls."""

    def __init__(self, method: str, context: Any) -> None:
        metadata = [(key, _metadata_text(value)) for key, value in context.invocation_metadata() or ()]
        named = dict(metadata)
        self.code = _code(named.get("x-echo-status"))
        self.count = _count(named.get("x-echo-count"))
        self.controls: Controls = parse_controls(
            "", [pair for pair in metadata if pair[0] not in ("x-echo-status", "x-echo-size")]
        )
        self.request = Request("gRPC", method, f"/{SERVICE}/{method}", "", metadata, _peer(context.peer()))


def _metadata_text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _peer(peer: str) -> tuple[str, int]:
    match = _PEER.fullmatch(unquote(peer))
    return plain_address((match["ip"], int(match["port"]))) if match else ("", 0)


def _code(value: str | None) -> Any:
    if value is None:
        return grpc.StatusCode.OK
    if value.isdigit() and int(value) in _CODES:
        return _CODES[int(value)]
    try:
        return grpc.StatusCode[value.upper()]
    except KeyError:
        raise ControlError(f"x-echo-status={value}: no gRPC status code (0 to 16, or a name)") from None


def _count(value: str | None) -> int:
    if value is None:
        return 3
    if not value.isdigit() or int(value) > MAX_COUNT:
        raise ControlError(f"x-echo-count={value}: not a whole number from 0 to {MAX_COUNT}")
    return int(value)


class EchoServicer(grpc.GenericRpcHandler):
    """The echo service."""

    def __init__(self, identity: Identity, responder: Responder) -> None:
        self._identity = identity
        self._responder = responder
        self._handlers: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "ServerStream": grpc.unary_stream_rpc_method_handler(self._server_stream),
            "ClientStream": grpc.stream_unary_rpc_method_handler(self._client_stream),
            "BidiStream": grpc.stream_stream_rpc_method_handler(self._bidi_stream),
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method of ours; None for other services."""
        service, _, method = handler_call_details.method.rpartition("/")
        return self._handlers.get(method) if service == f"/{SERVICE}" else None

    async def _begin(self, method: str, context: Any) -> _Call:
        """Read the controls and do what they want before the first reply."""
        try:
            call = _Call(method, context)
        except ControlError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort raises") from None
        controls = call.controls
        await context.send_initial_metadata(
            (("x-echo-pod", self._identity.pod), *((name.lower(), value) for name, value in controls.headers))
        )
        if controls.trailers:
            context.set_trailing_metadata(tuple((name.lower(), value) for name, value in controls.trailers))
        await self._responder.prepare(controls)
        if controls.fail and self._responder.fails(call.request, controls):
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"one of the first {controls.fail} calls")
        return call

    async def _end(self, call: _Call, context: Any) -> None:
        if call.code is not grpc.StatusCode.OK:
            await context.abort(call.code, "asked for by x-echo-status")

    def _reply(self, call: _Call) -> bytes:
        reply = Struct()
        reply.update(describe(self._identity, call.request))
        return bytes(reply.SerializeToString())

    async def _unary(self, message: bytes, context: Any) -> bytes:
        call = await self._begin("Unary", context)
        call.request.add_body(message)
        await self._end(call, context)
        return self._reply(call)

    async def _server_stream(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        call = await self._begin("ServerStream", context)
        call.request.add_body(message)
        reply = self._reply(call)
        for _ in range(call.count):
            yield reply
        await self._end(call, context)

    async def _client_stream(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        call = await self._begin("ClientStream", context)
        async for message in messages:
            call.request.add_body(message)
        await self._end(call, context)
        return self._reply(call)

    async def _bidi_stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = await self._begin("BidiStream", context)
        async for message in messages:
            call.request.add_body(message)
            yield self._reply(call)
        await self._end(call, context)


class GrpcEcho:
    """A gRPC server with the echo and the health service."""

    def __init__(self, identity: Identity, responder: Responder) -> None:
        # Without this a second server would share the port silently.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((EchoServicer(identity, responder),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self, host: str, ports: Iterable[int]) -> list[int]:
        """Listen and serve; return the ports. ConfigError if one cannot be had."""
        bound: list[int] = []
        for port in ports:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            try:
                bound.append(self._server.add_insecure_port(address))
            except RuntimeError as error:
                raise ConfigError(
                    f"--grpc {port}: cannot listen on {host} port {port}: address in use?"
                ) from error
        await self._server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, grace: float) -> None:
        """Let calls in progress end within the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
