"""An external authorizer of a test, as a program: Envoy's ext_authz by gRPC and by HTTP.

As Istio's sample it lets pass what carries the header `x-ext-authz: allow`; of a TCP connection what comes from an
address it was given. Each check is a line on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2

HEADER = "x-ext-authz"


def command(grpc_port: int, http_port: int, allowed: str) -> list[str]:
    """How to start it."""
    ports = ["--grpc", str(grpc_port), "--http", str(http_port), "--allowed", allowed]
    return [sys.executable, str(Path(__file__)), *ports]


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


class _Authorization(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    def __init__(self, allowed: str) -> None:
        self._allowed = allowed

    def Check(self, request: Any, context: Any) -> Any:
        http = request.attributes.request.http
        source = request.attributes.source.address.socket_address.address
        _tell(protocol="grpc", path=http.path, source=source)
        if http.headers.get(HEADER) == "allow" if http.method else source == self._allowed:
            answer = external_auth_pb2.CheckResponse()
            answer.status.code = 0
            answer.ok_response.headers.add().header.key = "x-ext-authz-check-result"
            answer.ok_response.headers[0].header.value = "allowed"
            return answer
        denied = external_auth_pb2.DeniedHttpResponse(
            status=http_status_pb2.HttpStatus(code=http_status_pb2.Forbidden), body="denied by the authorizer"
        )
        answer = external_auth_pb2.CheckResponse(denied_response=denied)
        answer.status.code = grpc.StatusCode.PERMISSION_DENIED.value[0]
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size).decode()
        seen = {name.lower(): value for name, value in self.headers.items()}
        _tell(protocol="http", path=self.path, body=body, headers=seen)
        allowed = self.headers.get(HEADER) == "allow"
        text = b"" if allowed else b"denied by the authorizer"
        self.send_response(200 if allowed else 403)
        self.send_header("x-user", "jane")
        self.send_header("x-reason", "because")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--allowed", required=True)
    options = parser.parse_args()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(_Authorization(options.allowed), server)
    server.add_insecure_port(f"0.0.0.0:{options.grpc}")
    server.start()
    web = ThreadingHTTPServer(("0.0.0.0", options.http), _Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
