"""External authorizers that answer as a test says: Envoy's ext_authz by gRPC (grpcio) and by HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.protobuf import text_format

from harness.netns import Namespace

CheckResponse = external_auth_pb2.CheckResponse


def response(text: str = "") -> Any:
    """A CheckResponse in text format."""
    return text_format.Parse(text, CheckResponse())


def denied(text: str = "", code: int = 7) -> Any:
    """A refusal; `text` is of its denied_response."""
    return response(f"status {{ code: {code} }} denied_response {{ {text} }}")


class GrpcAuthorizer(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    """`answer` makes a CheckResponse of each CheckRequest, or raises."""

    def __init__(
        self, namespace: Namespace, port: int, address: str = "127.0.0.1", max_streams: int = 1000
    ) -> None:
        self.answer: Callable[[Any], Any] = lambda request: response()
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.peers: set[str] = set()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(64), options=(("grpc.max_concurrent_streams", max_streams),)
        )
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self, self.server)
        namespace.run(lambda: self.server.add_insecure_port(f"{address}:{port}"))
        namespace.run(self.server.start)

    def Check(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        return self.answer(request)

    def stop(self) -> None:
        self.server.stop(0).wait()


@dataclass
class HttpCheck:
    """What an HTTP authorizer was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class HttpAnswer:
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    close: bool = False
    """Close the connection afterwards, without having said so."""


@dataclass
class HttpAuthorizer:
    """`answer` makes an HttpAnswer of each HttpCheck."""

    namespace: Namespace
    port: int
    answer: Callable[[HttpCheck], HttpAnswer] = lambda check: HttpAnswer()
    checks: list[HttpCheck] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                check = HttpCheck(self.command, self.path, headers, body)
                outer.checks.append(check)
                outer.connections.add(self.client_address)
                answer = outer.answer(check)
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
                self.close_connection = self.close_connection or answer.close

            do_GET = do_POST = do_PUT = do_HEAD = _answer

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        self.server = self.namespace.run(lambda: ThreadingHTTPServer(("127.0.0.1", self.port), Handler))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
