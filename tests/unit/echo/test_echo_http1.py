"""HTTP/1.1 of the echo workload, asked by curl, by raw sockets and by WebSocket clients."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import time
from typing import Any

import pytest
import websockets.exceptions
import websockets.sync.client
from harness.echo import Echo, start, stop

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]


def curl(*arguments: str, data: bytes | None = None) -> str:
    done = subprocess.run(
        ["curl", "-sS", "-m", "20", *arguments], input=data, capture_output=True, check=True
    )
    return done.stdout.decode()


def ask(echo: Echo, raw: bytes, option: str = "http") -> bytes:
    """Send raw bytes, end our side, read all that comes back."""
    with socket.create_connection(("127.0.0.1", echo.ports[option]), 10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_answer_tells_all(echo: Echo) -> None:
    answer = json.loads(curl("-H", "X-CaSe: One", "-H", "x-case: two", echo.url("/a/b?c=d&c=e")))
    assert answer["pod"] == "reviews-v1"
    assert answer["namespace"] == "books"
    assert answer["labels"] == {"app": "reviews", "version": "v1"}
    assert answer["protocol"] == "HTTP/1.1"
    assert (answer["method"], answer["path"]) == ("GET", "/a/b?c=d&c=e")
    assert answer["host"] == f"127.0.0.1:{echo.ports['http']}"
    assert ["X-CaSe", "One"] in answer["headers"]
    assert answer["headers"][-1] == ["x-case", "two"]
    assert answer["remote"]["ip"] == "127.0.0.1"
    assert answer["remote"]["port"] > 0
    assert answer["body"] == {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [0, 1, 70_000, 1 << 20])
@pytest.mark.parametrize("framing", ["fixed", "chunked"])
def test_bodies_are_hashed(echo: Echo, method: str, size: int, framing: str) -> None:
    data = bytes(number % 251 for number in range(size))
    chunked = ["-H", "Transfer-Encoding: chunked"] if framing == "chunked" else []
    answer = json.loads(curl("-X", method, *chunked, "--data-binary", "@-", echo.url(), data=data))
    assert answer["method"] == method
    assert answer["body"] == {"bytes": size, "sha256": hashlib.sha256(data).hexdigest()}


def test_ipv6(echo: Echo) -> None:
    answer = json.loads(curl(f"http://[::1]:{echo.ports['http']}/"))
    assert answer["remote"]["ip"] == "::1"


def test_status_headers_and_bodiless_answers(echo: Echo) -> None:
    head = curl("-i", echo.url("/?status=418&header=x-a:1&header=x-a:2"))
    assert head.startswith("HTTP/1.1 418 ")
    assert "x-a: 1\r\nx-a: 2\r\n" in head
    empty = curl("-i", echo.url("/?status=204"))
    assert empty.startswith("HTTP/1.1 204 No Content")
    assert "content-length" not in empty
    assert empty.endswith("\r\n\r\n")


def test_head_has_the_length_and_no_body(echo: Echo) -> None:
    answer = ask(echo, b"HEAD /?size=1000 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"content-length: 1000\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("chunked", ["", "&chunked=1"])
@pytest.mark.parametrize("size", [0, 1024, 3_000_000])
def test_size(echo: Echo, size: int, chunked: str) -> None:
    command = ["curl", "-sS", "-D", "-", echo.url(f"/?size={size}{chunked}")]
    head, _, body = subprocess.run(command, capture_output=True, check=True).stdout.partition(b"\r\n\r\n")
    assert len(body) == size
    assert f"x-echo-sha256: {hashlib.sha256(body).hexdigest()}".encode() in head
    assert (b"transfer-encoding: chunked" in head) == bool(chunked)


def test_a_slow_reader_gets_all(echo: Echo) -> None:
    size = 20_000_000
    with socket.create_connection(("127.0.0.1", echo.ports["http"]), 10) as connection:
        connection.sendall(f"GET /?size={size}&close=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.3)
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert len(data.partition(b"\r\n\r\n")[2]) == size


def test_delay(echo: Echo) -> None:
    began = time.monotonic()
    curl("-H", "x-echo-delay: 300ms", echo.url())
    assert 0.3 <= time.monotonic() - began < 5


def test_fails_first_requests_of_each_key(echo: Echo) -> None:
    def status(path: str, *arguments: str) -> str:
        return curl("-o", "/dev/null", "-w", "%{http_code}", *arguments, echo.url(path))

    assert [status("/fail-a?fail=2") for _ in range(3)] == ["503", "503", "200"]
    assert status("/fail-b?fail=2") == "503"
    keyed = ["-H", "x-echo-fail: 1", "-H", "x-echo-key: shared"]
    assert [status("/fail-c", *keyed), status("/fail-d", *keyed)] == ["503", "200"]


def test_trailers_both_ways(echo: Echo) -> None:
    request = (
        b"POST /?trailer=X-Out:2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nX-In: 1\r\n\r\n"
    )
    answer = ask(echo, request)
    assert b'"trailers": [["X-In", "1"]]' in answer
    assert answer.endswith(b"0\r\nX-Out: 2\r\n\r\n")


def test_pipelined_answers_come_in_order(echo: Echo) -> None:
    paths = ["/1?delay=100ms", "/2", "/3?size=70000", "/4", *(f"/n{number}" for number in range(200))]
    raw = b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths)
    answer = ask(echo, raw)
    assert answer.count(b"HTTP/1.1 200 OK") == len(paths)
    places = [answer.index(f'"path": "{path}"'.encode()) for path in paths if "size" not in path]
    assert places == sorted(places)


def test_expect_100_continue(echo: Echo) -> None:
    with socket.create_connection(("127.0.0.1", echo.ports["http"]), 10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hi")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n", b"431"),
        (b"GET /?status=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", b"405"),
    ],
)
def test_bad_requests_are_answered_with_a_reason(echo: Echo, raw: bytes, status: bytes) -> None:
    answer = ask(echo, raw)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'"error": "' in answer


def test_connection_handling(echo: Echo) -> None:
    assert b"connection: close" in ask(echo, b"GET / HTTP/1.0\r\n\r\n")
    kept = ask(echo, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
    assert kept.count(b"connection: keep-alive") == 2
    closed = ask(echo, b"GET /?close=1 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert closed.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize("option", ["http", "ws"])
def test_websocket(echo: Echo, option: str) -> None:
    url = f"ws://127.0.0.1:{echo.ports[option]}/chat"
    with websockets.sync.client.connect(url, max_size=None) as client:
        assert client.response is not None
        assert client.response.headers["x-echo-pod"] == "reviews-v1"
        for message in ("hello", b"\x00\xff", "é" * 70_000, bytes(2_000_000), ""):
            client.send(message)
            assert client.recv(timeout=10) == message
        client.send(iter(["in ", "three ", "fragments"]))
        assert client.recv(timeout=10) == "in three fragments"
        assert client.ping().wait(5)


def test_websocket_port_wants_an_upgrade(echo: Echo) -> None:
    answer = curl("-i", echo.url("/", "ws"))
    assert answer.startswith("HTTP/1.1 426 ")
    assert "upgrade: websocket" in answer


def test_unknown_upgrade_is_answered_as_http(echo: Echo) -> None:
    answer: dict[str, Any] = json.loads(
        curl("-H", "Upgrade: something", "-H", "Connection: upgrade", echo.url("/up"))
    )
    assert answer["path"] == "/up"


def test_sigterm_ends_what_is_due_and_closes_the_rest() -> None:
    own = start("--http", "0", "--ws", "0")
    with (
        websockets.sync.client.connect(f"ws://127.0.0.1:{own.ports['ws']}/") as client,
        socket.create_connection(("127.0.0.1", own.ports["http"]), 10) as idle,
        socket.create_connection(("127.0.0.1", own.ports["http"]), 10) as busy,
    ):
        busy.sendall(b"GET /?delay=500ms HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        began = time.monotonic()
        assert stop(own) == 0
        assert time.monotonic() - began < 3
        assert idle.recv(10) == b""
        answer = b"".join(iter(lambda: busy.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answer
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.recv(timeout=5)


def test_port_in_use_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("http", "grpc"):
            with pytest.raises(
                AssertionError, match=f"--{option} {port}: cannot listen on 127.0.0.1"
            ) as error:
                start(f"--{option}", str(port), "--host", "127.0.0.1")
            assert "in use" in str(error.value)
