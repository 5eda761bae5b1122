"""An HTTP/1.1 client that checks every byte: many methods, framings and body sizes, keep-alive connections.

Run as a program inside a pod (`nodeagent lab exec POD -- python tests/harness/load.py ...`), it talks to the
echo workload and verifies that request bodies arrived intact (the echo reports their SHA-256) and that
response bodies are intact (the echo sends their SHA-256 in `x-echo-sha256`). It prints one JSON object:
requests, failures (the first twenty in words), bytes each way, seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
WITH_BODY: Final = ("POST", "PUT", "PATCH", "DELETE")
# Mostly small, as real traffic is, with the sizes at which buffers end, and now and then the largest.
SIZES: Final = (0, 1, 17, 200, 1000, 4096, 16384, 65535, 65536, 65537, 262144, 1048576)
WEIGHTS: Final = (20, 10, 20, 20, 20, 10, 6, 2, 2, 2, 0.5, 0.25)
PATTERN: Final = random.Random(7).randbytes(SIZES[-1])
DIGESTS: Final = {size: hashlib.sha256(PATTERN[:size]).hexdigest() for size in SIZES}
RESPONSE_TIMEOUT: Final = 30.0


@dataclass
class Tally:
    """What a run did."""

    requests: int = 0
    failures: int = 0
    reasons: list[str] = field(default_factory=list)
    sent: int = 0
    received: int = 0

    def fail(self, reason: str) -> None:
        """Count a failure; the first twenty are kept in words."""
        self.failures += 1
        if len(self.reasons) < 20:
            self.reasons.append(reason)


@dataclass(frozen=True)
class Plan:
    """One request: what is sent and what must come back."""

    method: str
    target: str
    body: int  # bytes, -1: none
    chunked: bool
    wanted: int  # bytes of the response's body, -1: the echo's JSON

    def head(self, host: str) -> bytes:
        """The request head on the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {host}", "User-Agent: nodeagent-load"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.body >= 0:
            lines.append(f"Content-Length: {self.body}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def plan(rng: random.Random) -> Plan:
    """Draw a request."""
    method = rng.choice(METHODS)
    body, chunked = -1, False
    if method in WITH_BODY:
        body = rng.choices(SIZES, WEIGHTS)[0]
        chunked = rng.random() < 0.5
    wanted = -1 if body > 0 or rng.random() < 0.5 else rng.choices(SIZES, WEIGHTS)[0]
    target = "/load" if wanted < 0 else f"/load?size={wanted}{'&chunked=1' if rng.random() < 0.5 else ''}"
    return Plan(method, target, body, chunked, wanted)


class Connection:
    """One keep-alive connection, opened again when the peer closes it between requests."""

    def __init__(self, host: str, port: int, authority: str) -> None:
        self._host, self._port, self._authority = host, port, authority
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 17)
        return self._reader, self._writer

    async def exchange(self, wanted: Plan) -> tuple[int, dict[str, str], bytes]:
        """Send the request, return status, headers (lower case) and body of the final response."""
        reader, writer = await self._open()
        writer.write(wanted.head(self._authority))
        sending = asyncio.ensure_future(self._send_body(writer, wanted))
        try:
            status, headers = await _read_head(reader)
            while status // 100 == 1:
                status, headers = await _read_head(reader)
            body = await _read_body(reader, status, headers, wanted.method)
            await sending
        finally:
            sending.cancel()
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return status, headers, body

    async def _send_body(self, writer: asyncio.StreamWriter, wanted: Plan) -> None:
        data = memoryview(PATTERN)[: max(wanted.body, 0)]
        if not wanted.chunked:
            writer.write(data)
        else:
            step = 1 + len(data) // 3
            for start in range(0, len(data), step):
                piece = data[start : start + step]
                writer.write(b"%x\r\n" % len(piece) + bytes(piece) + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    raw = await reader.readuntil(b"\r\n\r\n")
    status_line, *lines = raw.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(status_line.split(" ", 2)[1]), headers


async def _read_body(
    reader: asyncio.StreamReader, status: int, headers: dict[str, str], method: str
) -> bytes:
    if method == "HEAD" or status in (204, 304):
        return b""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers["content-length"]))
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b"".join(parts)


def check(wanted: Plan, status: int, headers: dict[str, str], body: bytes) -> str:
    """What is wrong with a response; empty when nothing is."""
    if status != 200:
        return f"{wanted.method} {wanted.target}: status {status}: {body[:120]!r}"
    if wanted.method == "HEAD":
        return ""
    if wanted.wanted >= 0:
        if len(body) != wanted.wanted or hashlib.sha256(body).hexdigest() != headers.get("x-echo-sha256"):
            return f"{wanted.method} {wanted.target}: response body of {len(body)} bytes differs"
        return ""
    seen = json.loads(body)["body"]
    size = max(wanted.body, 0)
    if seen["bytes"] != size or seen["sha256"] != DIGESTS[size]:
        return f"{wanted.method} {wanted.target}: request body of {size} bytes arrived as {seen}"
    return ""


@dataclass
class Pace:
    """Hands out the requests to make, at most `rate` in a second (0: as fast as it goes)."""

    left: int
    rate: float
    started: float = field(default_factory=time.monotonic)
    taken: int = 0

    async def take(self) -> bool:
        """Wait for the next request's time; False when there are none left."""
        if self.taken >= self.left:
            return False
        due = self.started + self.taken / self.rate if self.rate else 0.0
        self.taken += 1
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        return True


async def _worker(connection: Connection, rng: random.Random, pace: Pace, tally: Tally) -> None:
    while await pace.take():
        wanted = plan(rng)
        try:
            status, headers, body = await asyncio.wait_for(connection.exchange(wanted), RESPONSE_TIMEOUT)
            problem = check(wanted, status, headers, body)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, KeyError) as error:
            status, headers, body = 0, {}, b""
            problem = f"{wanted.method} {wanted.target} body {wanted.body}: {type(error).__name__} {error}"
            await connection.close()
        tally.requests += 1
        tally.sent += max(wanted.body, 0)
        tally.received += len(body)
        if problem:
            tally.fail(problem)
    await connection.close()


async def run(url: str, requests: int, connections: int, seed: int, rate: float = 0.0) -> dict[str, object]:
    """Send `requests` over `connections`; the summary that is printed."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    port = parts.port or 80
    pace, tally = Pace(requests, rate), Tally()
    started = time.monotonic()
    await asyncio.gather(
        *(
            _worker(Connection(parts.hostname, port, parts.netloc), random.Random(seed + n), pace, tally)
            for n in range(connections)
        )
    )
    return {
        "requests": tally.requests,
        "failures": tally.failures,
        "reasons": tally.reasons,
        "bytes_sent": tally.sent,
        "bytes_received": tally.received,
        "seconds": round(time.monotonic() - started, 2),
    }


def main() -> int:
    """Exit status 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second at most; 0: no limit")
    arguments = parser.parse_args()
    summary = asyncio.run(
        run(arguments.url, arguments.requests, arguments.connections, arguments.seed, arguments.rate)
    )
    json.dump(summary, sys.stdout)
    print()
    return 1 if summary["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
