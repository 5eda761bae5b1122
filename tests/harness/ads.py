"""A real ADS server of the tests' own, over real gRPC, in this process.

Two ways to use it. `AdsServer.session()` hands over each stream raw, for tests of the protocol: they read
each request and write each response. `MeshServer` answers by itself from resources that a test sets and
changes, wildcard and on demand, for tests of what a client does with a control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from envoy.service.discovery.v3 import discovery_pb2

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_END = object()


@dataclass
class Session:
    """One stream that a client opened."""

    context: Any
    requests: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _responses: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _nonces: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    async def request(self, timeout: float = 5) -> Any:
        """The next request of the client."""
        return await asyncio.wait_for(self.requests.get(), timeout)

    async def silence(self, seconds: float = 0.2) -> None:
        """Assert that the client says nothing for a while."""
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"unexpected request: {await self.request(seconds)}")

    def respond(
        self,
        type_url: str,
        resources: Iterable[Any] = (),
        removed: Iterable[str] = (),
        nonce: str = "",
        identifier: str = "",
    ) -> str:
        """Send a response of Resource messages (see `resource`); returns its nonce."""
        nonce = nonce or f"nonce-{next(iter(self._nonces))}"
        self._responses.put_nowait(
            discovery_pb2.DeltaDiscoveryResponse(
                system_version_info="test",
                type_url=type_url,
                resources=list(resources),
                removed_resources=list(removed),
                nonce=nonce,
                control_plane={"identifier": identifier},
            )
        )
        return nonce

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> None:
        """End the stream with a status."""
        self._responses.put_nowait((_END, code, details))

    async def responses(self) -> AsyncIterator[Any]:
        """What the test sends, for the server."""
        while True:
            item = await self._responses.get()
            if isinstance(item, tuple):
                if item[1] is not grpc.StatusCode.OK:
                    await self.context.abort(item[1], item[2])
                return
            yield item


def resource(name: str, message: Any, version: str = "1", aliases: Iterable[str] = ()) -> Any:
    """A Resource that carries a message."""
    item = discovery_pb2.Resource(name=name, version=version, aliases=list(aliases))
    item.resource.Pack(message, "type.googleapis.com/")
    return item


class AdsServer:
    """Listens on a loopback port or a unix socket; each accepted stream becomes a Session."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.address = address
        self.sessions: asyncio.Queue[Session] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        service, _, method = METHOD[1:].partition("/")
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler})]
        )
        port = self._server.add_insecure_port(self.address)
        if not self.address.startswith("unix:"):
            self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def __aenter__(self) -> AdsServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def session(self, timeout: float = 5) -> Session:
        """The next stream that a client opens."""
        return await asyncio.wait_for(self.sessions.get(), timeout)

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        session = Session(context)
        self.accept(session)
        reader = asyncio.ensure_future(self._read(requests, session))
        try:
            async for response in session.responses():
                yield response
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
            self.closed(session)

    async def _read(self, requests: AsyncIterator[Any], session: Session) -> None:
        async for request in requests:
            self.received(session, request)

    def accept(self, session: Session) -> None:
        """A stream was opened."""
        self.sessions.put_nowait(session)

    def received(self, session: Session, request: Any) -> None:
        """A request came."""
        session.requests.put_nowait(request)

    def closed(self, session: Session) -> None:
        """A stream ended."""


@dataclass
class _Client:
    session: Session
    node: Any = None
    wanted: dict[str, set[str]] = field(default_factory=dict)
    versions: dict[tuple[str, str], str] = field(default_factory=dict)


class MeshServer(AdsServer):
    """Answers from `resources`: type URL -> name -> message. `put` and `drop` change and push.

    A name that is asked for and not there is answered in removed_resources, and pushed once it is. `delay`
    seconds pass before each answer; `mute` types are not answered at all.
    """

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        super().__init__(address)
        self.resources: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.clients: list[_Client] = []
        self.nacks: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.delay = 0.0
        self.mute: set[str] = set()
        self._versions = itertools.count(1)
        self._version: dict[tuple[str, str], str] = {}

    def put(self, type_url: str, name: str, message: Any) -> None:
        """Set a resource and push it to who wants it."""
        self.resources.setdefault(type_url, {})[name] = message
        self._version[type_url, name] = f"v{next(self._versions)}"
        self._push(type_url, [name])

    def drop(self, type_url: str, name: str) -> None:
        """Remove a resource and tell who wants it."""
        self.resources.get(type_url, {}).pop(name, None)
        self._push(type_url, [name])

    def wanted(self, type_url: str) -> set[str]:
        """What all clients together are subscribed to."""
        return set().union(*(client.wanted.get(type_url, set()) for client in self.clients))

    def accept(self, session: Session) -> None:
        self.clients.append(_Client(session))
        super().accept(session)

    def closed(self, session: Session) -> None:
        self.clients = [client for client in self.clients if client.session is not session]

    def received(self, session: Session, request: Any) -> None:
        client = next(client for client in self.clients if client.session is session)
        if request.HasField("node"):
            client.node = request.node
        if request.HasField("error_detail"):
            self.nacks.append((request.type_url, request.error_detail.message))
        first = request.type_url not in client.wanted
        wanted = client.wanted.setdefault(request.type_url, set())
        subscribe = set(request.resource_names_subscribe)
        if first and not subscribe and not request.response_nonce:
            subscribe = {"*"}
        for name, version in request.initial_resource_versions.items():
            client.versions[request.type_url, name] = version
        for name in request.resource_names_unsubscribe:
            wanted.discard(name)
            client.versions.pop((request.type_url, name), None)
        for name in subscribe - {"*"}:
            if name not in request.initial_resource_versions:
                client.versions.pop((request.type_url, name), None)
        self.asked.extend((request.type_url, name) for name in sorted(subscribe))
        wanted |= subscribe
        if subscribe:
            names = set(self.resources.get(request.type_url, {})) if "*" in subscribe else set()
            gone = {name for url, name in client.versions if url == request.type_url}
            self._send(client, request.type_url, names | (subscribe - {"*"}) | gone, initial=True)

    def _push(self, type_url: str, names: list[str]) -> None:
        for client in list(self.clients):
            wanted = client.wanted.get(type_url, set())
            mine = [name for name in names if name in wanted or "*" in wanted]
            if mine:
                self._send(client, type_url, mine)

    def _send(self, client: _Client, type_url: str, names: Iterable[str], initial: bool = False) -> None:
        if type_url in self.mute:
            return
        held = self.resources.get(type_url, {})
        fresh, removed = [], []
        for name in sorted(names):
            key = (type_url, name)
            if name not in held:
                removed.append(name)
                client.versions.pop(key, None)
            elif client.versions.get(key) != self._version[key]:
                client.versions[key] = self._version[key]
                fresh.append(resource(name, held[name], self._version[key], self.aliases.get(name, ())))
        if not (fresh or removed or initial):
            return
        if self.delay:
            loop = asyncio.get_running_loop()
            loop.call_later(self.delay, client.session.respond, type_url, fresh, removed)
        else:
            client.session.respond(type_url, fresh, removed)
