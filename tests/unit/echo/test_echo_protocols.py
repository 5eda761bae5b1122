"""HTTP/2, gRPC and TCP of the echo workload, asked by real clients."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness.echo import Echo


def curl(*arguments: str, data: bytes | None = None) -> bytes:
    return subprocess.run(["curl", "-sS", *arguments], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("way", ["--http2-prior-knowledge", "--http2"])
def test_h2c(echo: Echo, way: str) -> None:
    answer = json.loads(curl(way, "-H", "X-Foo: 1", echo.url("/p?q=1", "h2c")))
    assert answer["protocol"] == "HTTP/2"
    assert (answer["method"], answer["path"]) == ("GET", "/p?q=1")
    assert answer["host"] == f"127.0.0.1:{echo.ports['h2c']}"
    assert "1" in [value for name, value in answer["headers"] if name.lower() == "x-foo"]


def test_h2c_port_speaks_http1_too(echo: Echo) -> None:
    assert json.loads(curl(echo.url("/", "h2c")))["protocol"] == "HTTP/1.1"


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_h2c_bodies(echo: Echo, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    answer = json.loads(
        curl("--http2-prior-knowledge", "--data-binary", "@-", echo.url("/", "h2c"), data=data)
    )
    assert answer["body"] == {"bytes": size, "sha256": hashlib.sha256(data).hexdigest()}
    body = curl("--http2-prior-knowledge", echo.url(f"/?size={size}", "h2c"))
    assert len(body) == size


def test_h2c_controls(echo: Echo) -> None:
    head = curl("-i", "--http2-prior-knowledge", echo.url("/?status=503&header=X-A:1&delay=10ms", "h2c"))
    assert head.startswith(b"HTTP/2 503")
    assert b"x-a: 1" in head
    bad = curl("-i", "--http2-prior-knowledge", echo.url("/?size=x", "h2c"))
    assert bad.startswith(b"HTTP/2 400")
    head_only = curl("-I", "--http2-prior-knowledge", echo.url("/?size=77", "h2c"))
    assert b"content-length: 77" in head_only


def test_h2c_many_streams(echo: Echo) -> None:
    command = ["h2load", "-n", "600", "-c", "2", "-m", "50", echo.url("/?size=40000", "h2c")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "600 succeeded, 0 failed" in report


@pytest.fixture
def channel(echo: Echo) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{echo.ports['grpc']}") as channel:
        yield channel


def method(channel: grpc.Channel, kind: str, name: str) -> grpc.UnaryUnaryMultiCallable:
    return getattr(channel, kind)(f"/nodeagent.echo.Echo/{name}", response_deserializer=Struct.FromString)


def test_grpc_unary(channel: grpc.Channel) -> None:
    reply, call = method(channel, "unary_unary", "Unary").with_call(
        b"message", metadata=(("x-a", "1"), ("x-echo-header", "x-b:2"), ("x-echo-trailer", "x-c:3"))
    )
    answer = MessageToDict(reply)
    assert answer["pod"] == "reviews-v1"
    assert answer["protocol"] == "gRPC"
    assert answer["path"] == "/nodeagent.echo.Echo/Unary"
    assert ["x-a", "1"] in answer["headers"]
    assert answer["remote"]["ip"] == "127.0.0.1"
    assert answer["body"] == {"bytes": 7, "sha256": hashlib.sha256(b"message").hexdigest()}
    assert ("x-b", "2") in [tuple(pair) for pair in call.initial_metadata()]
    assert ("x-c", "3") in [tuple(pair) for pair in call.trailing_metadata()]


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        (("x-echo-status", "7"), grpc.StatusCode.PERMISSION_DENIED),
        (("x-echo-status", "not_found"), grpc.StatusCode.NOT_FOUND),
        (("x-echo-status", "99"), grpc.StatusCode.INVALID_ARGUMENT),
        (("x-echo-delay", "soon"), grpc.StatusCode.INVALID_ARGUMENT),
        (("x-echo-count", "-1"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_grpc_status(channel: grpc.Channel, metadata: tuple[str, str], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as error:
        method(channel, "unary_unary", "Unary")(b"", metadata=(metadata,))
    assert error.value.code() is code


def test_grpc_fail(channel: grpc.Channel) -> None:
    call = method(channel, "unary_unary", "Unary")
    metadata = (("x-echo-fail", "1"), ("x-echo-key", "grpc"))
    with pytest.raises(grpc.RpcError) as error:
        call(b"", metadata=metadata)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert call(b"", metadata=metadata)["pod"] == "reviews-v1"


def test_grpc_streams(channel: grpc.Channel) -> None:
    replies = method(channel, "unary_stream", "ServerStream")(b"x", metadata=(("x-echo-count", "5"),))
    assert len(list(replies)) == 5
    reply = method(channel, "stream_unary", "ClientStream")(iter([b"ab", b"c"]))
    assert reply["body"]["sha256"] == hashlib.sha256(b"abc").hexdigest()
    replies = method(channel, "stream_stream", "BidiStream")(iter([b"ab", b"c"]))
    assert [reply["body"]["bytes"] for reply in replies] == [2, 3]


def test_grpc_health_and_unknown_methods(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "nodeagent.echo.Echo"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        method(channel, "unary_unary", "Nothing")(b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_tcp_speaks_first_and_echoes(echo: Echo) -> None:
    data = bytes(number % 253 for number in range(3_000_000))
    with socket.create_connection(("127.0.0.1", echo.ports["tcp"]), 10) as connection:
        stream = connection.makefile("rwb")
        assert stream.readline() == b"220 reviews-v1\n"
        stream.write(b"line\n")
        stream.flush()
        assert stream.readline() == b"line\n"
        received = bytearray()
        for start in range(0, len(data), 50_000):
            connection.sendall(data[start : start + 50_000])
            received += stream.read(50_000)
        assert bytes(received) == data
        connection.shutdown(socket.SHUT_WR)
        assert stream.read() == b""
        stream.close()
