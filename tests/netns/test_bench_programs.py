"""The benchmark's C programs: the load generator believes nothing, back end and floor deliver every byte."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from harness.requirements import require

from nodeagent.bench.load import Load, held, measure
from nodeagent.bench.peers.floor import Floor
from nodeagent.bench.services import ECHO, HTTP, STREAM, start_backend
from nodeagent.bench.stage import Process, Stage
from nodeagent.config.bench import BenchConfig, choose_cores
from nodeagent.errors import BenchError
from nodeagent.lab import netns

pytestmark = pytest.mark.netns

PORT = 7000
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


@pytest.fixture
def stage() -> Iterator[Stage]:
    require("root", "taskset")
    with Stage(choose_cores(1)) as made:
        yield made


def load(stage: Stage, *options: str, target: int = PORT) -> dict[str, Any]:
    """Run the load generator to its end; its result."""
    argv = Load("http", 1, 5).argv(f"127.0.0.1:{target}", 0, 0.2)
    with stage.spawn("load", [*argv, *options], stage.cores.load, talk=True) as process:
        lines = process.stdout.read().splitlines()
        assert process.wait(10) == 0
    result: dict[str, Any] = json.loads(lines[-1])
    return result


@contextmanager
def server(stage: Stage, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server on PORT that handles each request with `answer`; the head of the request has been read."""
    listener = netns.run_in(stage.name, lambda: socket.create_server(("127.0.0.1", PORT)))
    stopping = False

    def serve(connection: socket.socket) -> None:
        with connection:
            while not stopping:
                data = b""
                while not data.endswith(b"\r\n\r\n"):
                    received = connection.recv(4096)
                    if not received:
                        return
                    data += received
                answer(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_quietly, args=(serve, connection), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping = True
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _quietly(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with suppress(OSError):
        serve(connection)


def body(stage: Stage, count: int) -> bytes:
    """What the back end sends as a body of that length."""
    with (
        start_backend(stage),
        netns.run_in(stage.name, lambda: socket.create_connection(("127.0.0.1", 9000))) as connection,
    ):
        connection.sendall(f"GET /{count} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        data = b""
        while received := connection.recv(65536):
            data += received
    head, _, rest = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert len(rest) == count
    return rest


def test_right_answers_are_taken_in_any_pieces(stage: Stage) -> None:
    right = HEAD + body(stage, 5)

    def in_pieces(connection: socket.socket) -> None:
        for byte in right:
            connection.sendall(bytes([byte]))
            time.sleep(0.0002)

    with server(stage, in_pieces):
        result = load(stage)
    assert result["requests"] >= 2
    assert result["errors"] == dict.fromkeys(result["errors"], 0)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "status", "503"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef", "framing", "content-length is 6, not 5"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "framing", "content-length is missing"),
        (HEAD + b"wrong", "content", "differs"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 3000, "framing", "no end of the response head"),
    ],
)
def test_wrong_answers_are_counted_and_told(stage: Stage, answer: bytes, kind: str, said: str) -> None:
    with server(stage, lambda connection: connection.sendall(answer)):
        result = load(stage)
    assert result["requests"] == 0
    assert result["errors"][kind] > 0
    assert said in result["first_error"]


def test_bytes_after_the_answer_are_an_error(stage: Stage) -> None:
    right = HEAD + body(stage, 5)
    with server(stage, lambda connection: connection.sendall(right + b"more")):
        result = load(stage)
    assert result["errors"]["framing"] > 0


def test_a_connection_that_ends_early_is_an_error(stage: Stage) -> None:
    right = HEAD + body(stage, 5)

    def cut(connection: socket.socket) -> None:
        connection.sendall(right[:-2])
        connection.shutdown(socket.SHUT_RDWR)

    with server(stage, cut):
        result = load(stage)
    assert result["errors"]["closed"] > 0
    assert "ended before the answer" in result["first_error"]


def test_an_open_loop_counts_from_when_a_request_was_due(stage: Stage) -> None:
    """One stall of 300 ms delays what is due meanwhile: a closed loop would count it once."""
    right = HEAD + body(stage, 5)
    stalled = threading.Event()

    def answer(connection: socket.socket) -> None:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.3)
        connection.sendall(right)

    with server(stage, answer):
        result = load(stage, "--rate", "100", "--seconds", "0.6")
    slow = sum(count for value, count in result["latency"]["buckets"] if value > 100_000)
    assert 15 <= slow <= 25, "of 30 requests due in the stall, 20 wait for more than 100 ms"
    assert result["requests"] == pytest.approx(60, abs=3)


def test_latencies_are_exact_to_a_percent(stage: Stage) -> None:
    right = HEAD + body(stage, 5)

    def answer(connection: socket.socket) -> None:
        time.sleep(0.02)
        connection.sendall(right)

    with server(stage, answer):
        latency = load(stage, "--seconds", "0.5")["latency"]
    assert 20_000 <= latency["min"] < 25_000
    assert latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]
    nearest = min(value for value, _ in latency["buckets"])
    assert nearest == pytest.approx(latency["min"], rel=0.01)
    assert sum(count for _, count in latency["buckets"]) == latency["count"]


def spawner(stage: Stage) -> Callable[[list[str]], Process]:
    return lambda argv: stage.spawn("load", argv, stage.cores.load, talk=True)


@pytest.mark.parametrize(
    "work",
    [
        Load("http", 8, 40),
        Load("http", 8, 1_000_000),
        Load("http-close", 8, 16_384),
        Load("http", 4, 40, rate=200),
    ],
    ids=str,
)
def test_the_floor_relays_http(stage: Stage, work: Load) -> None:
    with start_backend(stage), Floor().start(stage, BenchConfig(), [HTTP]) as floor:
        outcome = measure(spawner(stage), work.argv(floor.target(HTTP), 0.1, 0.4), floor.cpu_time)
    assert outcome.requests > 20
    assert 0 < outcome.cpu.total < 0.6e9
    in_progress = work.connections  # when the measurement began
    assert outcome.bytes >= (outcome.requests - in_progress) * work.body


@pytest.mark.parametrize("service", [ECHO, STREAM], ids=lambda service: service.name)
def test_the_floor_relays_tcp(stage: Stage, service: Any) -> None:
    work = Load("echo", 8, 64) if service is ECHO else Load("stream", 3)
    with start_backend(stage), Floor().start(stage, BenchConfig(), [service]) as floor:
        outcome = measure(spawner(stage), work.argv(floor.target(service), 0.1, 0.4), floor.cpu_time)
    assert outcome.bytes > 10_000
    assert outcome.cpu.total > 0


def test_held_connections_are_all_there_at_the_end(stage: Stage) -> None:
    with start_backend(stage):
        target = f"127.0.0.1:{HTTP.backend_port}"
        with held(spawner(stage), Load("http", 300, 40), target, 10):
            pass


def test_a_held_connection_that_is_closed_is_missed(stage: Stage) -> None:
    right = HEAD + body(stage, 5)
    connections: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        connections.append(connection)
        connection.sendall(right)

    def lose_one() -> None:
        with held(spawner(stage), Load("http", 3, 5), f"127.0.0.1:{PORT}", 10):
            connections[0].shutdown(socket.SHUT_RDWR)
            time.sleep(0.1)

    with server(stage, answer), pytest.raises(BenchError, match=r"connections 2 are left|ended before"):
        lose_one()


def test_nobody_listening_is_told(stage: Stage) -> None:
    result = load(stage)
    assert result["errors"]["connect"] > 0
    assert "refused" in result["first_error"]
