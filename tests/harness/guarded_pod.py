"""A pod in a namespace whose inbound connections the real engine judges, with an application that tells what it got.

The client's connections come from an address of their own, which is how they are told apart from the engine's: they
are redirected to the engine's inbound listener, and the engine connects to the application.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from harness.netns import Namespace
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.dataplane.listener_kinds import Listener
from nodeagent.dataplane.report import AccessRecord
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.policies import ConnectionStage, Guards, RequestStage
from nodeagent.snapshot.values import Cluster, Endpoint, Inbound, InboundPort, Protocol, Snapshot, View

WEB, TCP, INBOUND = 9000, 9001, 15006
HERE, CLIENT = "127.0.0.1", "127.0.0.2"
UID: Final = "pod"
CLUSTER: Final = "v/authorizer"
_RULES: Final = f"""
table ip guarded {{
  chain output {{
    type nat hook output priority -100
    ip saddr {CLIENT} tcp dport {{ {WEB}, {TCP} }} redirect to :{INBOUND}
  }}
}}
"""


@dataclass
class Answer:
    """What a client got."""

    status: int
    body: str
    headers: dict[str, str]
    """By lower-case name."""

    @property
    def seen(self) -> dict[str, Any]:
        """The request as the application saw it: method, path, body and headers (pairs, names in lower case)."""
        assert self.status == 200, self
        seen: dict[str, Any] = json.loads(self.body)
        return seen

    def header(self, name: str) -> list[str]:
        """The values of a header that the application saw."""
        return [value for key, value in self.seen["headers"] if key == name]


class _Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = [(name.lower(), value) for name, value in self.headers.items()]
        seen = {"method": self.command, "path": self.path, "body": body.decode(), "headers": headers}
        text = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_OPTIONS = _answer

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class _Tcp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"hello")


@dataclass
class GuardedPod:
    """The pod; `guarded_pod()` makes one."""

    namespace: Namespace
    engine: EngineOwner
    _servers: list[socketserver.BaseServer] = field(default_factory=list)

    def serve(self, make: Callable[[], socketserver.BaseServer]) -> None:
        """Run a server inside."""
        server = self.namespace.run(make)
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    async def guard(
        self,
        *request: RequestStage,
        connection: tuple[ConnectionStage, ...] = (),
        authorizers: tuple[int, ...] = (),
    ) -> None:
        """Put guards of both ports in force; `authorizers` are ports of the cluster CLUSTER."""
        guards = Guards(connection, request)
        ports = (
            InboundPort(WEB, Protocol.HTTP, guards=guards),
            InboundPort(TCP, Protocol.TCP, guards=guards),
        )
        cluster = Cluster(CLUSTER, "authorizer", connect_timeout_ms=1000)
        endpoints = tuple(Endpoint(parse_address(HERE), port) for port in authorizers)
        view = View("v", {CLUSTER: cluster}, {CLUSTER: endpoints}) if authorizers else View("v")
        assert self.engine.apply(Snapshot(views={"v": view}, inbound={UID: Inbound(ports)})) == ()
        async with asyncio.timeout(5):
            while not self.engine.settled():
                await asyncio.sleep(0.005)

    async def ask(
        self,
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: Any = None,
        port: int = WEB,
        **options: Any,
    ) -> Answer:
        """Send a request from the client."""

        def request() -> Answer:
            connection = http.client.HTTPConnection(HERE, port, timeout=10, source_address=(CLIENT, 0))
            try:
                connection.request(method, path, body, dict(headers or {}), **options)
                response = connection.getresponse()
                found = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, response.read().decode(), found)
            finally:
                connection.close()

        return await asyncio.to_thread(self.namespace.run, request)

    async def raw(self, data: bytes, port: int = WEB) -> bytes:
        """Send bytes from the client and read until the end; b"reset" if it ends so."""

        def exchange() -> bytes:
            received = b""
            try:  # a refusal may come before connect() returns
                with socket.create_connection((HERE, port), 10, (CLIENT, 0)) as connection:
                    connection.sendall(data)
                    while chunk := connection.recv(65536):
                        received += chunk
            except ConnectionResetError:
                return received or b"reset"
            return received

        return await asyncio.to_thread(self.namespace.run, exchange)

    def counter(self, name: str) -> int:
        return next(counter.value for counter in self.engine.counters() if counter.name == name)

    async def record(self, path: str = "/") -> AccessRecord:
        """The next record of a path that begins so: it may come a moment after the answer."""
        async with asyncio.timeout(5):
            while True:
                for record in self.engine.drain_access():
                    if record.path.startswith(path):
                        return record
                await asyncio.sleep(0.005)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@asynccontextmanager
async def guarded_pod(name: str, **limits: int) -> AsyncIterator[GuardedPod]:
    """A pod in a namespace of that name; `limits` are the engine's."""
    namespace = Namespace(name)
    engine = EngineOwner(EngineSettings(access_log=True, **limits))
    engine.start()
    pod = GuardedPod(namespace, engine)
    try:
        namespace.check(["nft", "-f", "-"], stdin=_RULES)
        addresses = [parse_address(HERE), parse_address(CLIENT)]
        engine.add_workload(UID, namespace.handle, "v", addresses, (Listener(1, INBOUND),))
        pod.serve(lambda: ThreadingHTTPServer((HERE, WEB), _Application))
        pod.serve(lambda: socketserver.ThreadingTCPServer((HERE, TCP), _Tcp))
        yield pod
    finally:
        await engine.stop(0)
        engine.close()
        pod.close()
        namespace.close()
