"""HTTP/1.1 of the admin API, spoken by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from nodeagent.admin import http
from nodeagent.admin.http import MAX_BODY_BYTES, MAX_HEAD_BYTES, Request, Response, text
from nodeagent.admin.listen import HttpServer, bind_unix

asked: list[Request] = []


async def pieces(count: int, size: int) -> AsyncGenerator[bytes, None]:
    for _ in range(count):
        yield b"x" * size


async def answer(request: Request) -> Response:
    asked.append(request)
    if request.path == "/long":
        return Response(b"first,", rest=pieces(3, 4))
    return text(200, f"{request.method} {request.path}")


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    asked.clear()
    where = tmp_path / "http.sock"
    server = HttpServer(answer, bind_unix("--x", where), where)
    await server.start()
    yield where
    await server.stop()


async def say(path: Path, data: bytes, eof: bool = True) -> str:
    """Send bytes; what comes back until the server closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    if eof:
        writer.write_eof()
    async with asyncio.timeout(10):
        found = await reader.read(-1)
    writer.close()
    return found.decode()


HOST = b"Host: a\r\n"


async def test_a_connection_serves_several_requests(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    for name in (b"/one", b"/two"):
        writer.write(b"GET " + name + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.readline() == b"GET " + name + b"\n"
    writer.close()


async def test_requests_in_one_packet_are_answered_in_order(path: Path) -> None:
    one = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
    found = await say(path, one + one.replace(b"/a", b"/b"))
    assert found.index("GET /a\n") < found.index("GET /b\n")


async def test_the_query_is_decoded(path: Path) -> None:
    await say(path, b"GET /a%20b?x=1&y=%C3%A4&z= HTTP/1.1\r\n" + HOST + b"\r\n")
    assert asked == [Request("GET", "/a b", (("x", "1"), ("y", "ä"), ("z", "")))]


async def test_a_target_may_be_absolute(path: Path) -> None:
    await say(path, b"GET http://agent/status?x=1 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert asked == [Request("GET", "/status", (("x", "1"),))]


async def test_long_answers_are_chunked_and_old_clients_get_them_plain(path: Path) -> None:
    found = await say(path, b"GET /long HTTP/1.1\r\n" + HOST + b"\r\n")
    assert "chunked" in found.lower()
    assert found.endswith("0\r\n\r\n")
    found = await say(path, b"GET /long HTTP/1.0\r\n\r\n", eof=False)
    assert "chunked" not in found.lower()
    assert found.endswith("\r\n\r\nfirst,xxxxxxxxxxxx")


@pytest.mark.parametrize("target", ["/short", "/long"])
async def test_head_is_answered_without_a_body(path: Path, target: str) -> None:
    found = await say(path, f"HEAD {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert found.startswith("HTTP/1.1 200 OK\r\n")
    assert found.endswith("\r\n\r\n")
    assert target == "/long" or "content-length: 12\r\n" in found.lower()


async def test_a_body_is_read_and_dropped(path: Path) -> None:
    post = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"
    found = await say(path, post + b"GET /b HTTP/1.1\r\n" + HOST + b"\r\n")
    assert "POST /a\n" in found
    assert "GET /b\n" in found


async def test_who_waits_to_be_told_to_go_ahead_is_told(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(b"hi")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 3 * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999\r\n\r\n" + b"z" * (MAX_BODY_BYTES + 1),
            413,
        ),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(
    path: Path, data: bytes, status: int
) -> None:
    found = await say(path, data, eof=False)
    assert found.startswith(f"HTTP/1.1 {status} ")
    assert "\r\n\r\nerror: " in found
    assert asked == []


@pytest.mark.parametrize(
    "beginning", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_who_says_nothing_more_is_let_go(
    path: Path, beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.2)
    assert await say(path, beginning, eof=False) == ""
    assert asked == []


async def test_who_does_not_read_is_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.2)
    closed = asyncio.Event()

    async def watched(request: Request) -> Response:
        async def endless() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"x" * 100_000
            finally:
                closed.set()

        return Response(rest=endless())

    where = path.with_name("other.sock")
    server = HttpServer(watched, bind_unix("--x", where), where)
    await server.start()
    _, writer = await asyncio.open_unix_connection(str(where))
    writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await asyncio.wait_for(closed.wait(), 5)
    writer.close()
    await server.stop()


@pytest.mark.parametrize("made", [True, False])
async def test_stopping_lets_a_request_end(tmp_path: Path, made: bool) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        begun.set()
        await go.wait()
        return text(200, "done")

    where = tmp_path / "slow.sock"
    server = HttpServer(slow, bind_unix("--x", where), where)
    await server.start()
    asking = asyncio.create_task(say(where, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"))
    await begun.wait()
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0.05)
    if made:
        go.set()
    assert ("done" in await asking) is made
    await stopping
    assert not where.exists()
