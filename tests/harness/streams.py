"""One side of many connections, as a process: checked streams both ways at once, read in different manners.

`Side` starts this file with its ends of the connections. Every stream is made of its number, so that the reader knows
what must come; a byte that is lost, doubled or out of place is found where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

BLOCK = random.Random(7).randbytes(1 << 20)
MANNERS = ("fast", "slow", "stalled")
ROUNDS = 10
"""Questions and answers before the streams begin."""


class Side:
    """The process. `first` is the number of the first stream it sends; those it reads are numbered from `expected`."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        first: int,
        expected: int,
        size: int,
        stall: float,
        asks: bool,
    ) -> None:
        """Takes over `sockets`."""
        fds = [sock.detach() for sock in sockets]
        plan = {"fds": fds, "first": first, "expected": expected, "size": size, "stall": stall, "asks": asks}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.streams", json.dumps(plan)],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        for fd in fds:
            os.close(fd)

    def outcome(self) -> dict[str, Any]:
        """How many streams were right, how many ended early, and what was wrong; waits for the end."""
        out, _ = self._process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(out)
        return found

    def runs(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _piece(number: int, position: int, size: int) -> bytes:
    """Part of a stream, which is the block from a place of its own."""
    start = number * 7919 % (len(BLOCK) // 2) + position
    return BLOCK[start : start + size]


async def _send(sock: socket.socket, number: int, size: int) -> None:
    loop, choose, position = asyncio.get_running_loop(), random.Random(number), 0
    while position < size:
        length = min(choose.choice((1, 40, 700, 5_000, 40_000)), size - position)
        await loop.sock_sendall(sock, _piece(number, position, length))
        position += length
    sock.shutdown(socket.SHUT_WR)


async def _read(sock: socket.socket, number: int, manner: str, stall: float) -> int:
    """The stream's length; ValueError where it is wrong."""
    loop, choose, position = asyncio.get_running_loop(), random.Random(number), 0
    if manner == "stalled":
        await asyncio.sleep(stall)
    while True:
        wanted = choose.choice((1, 90, 3_000, 30_000)) if manner == "slow" else 1 << 16
        try:
            data = await loop.sock_recv(sock, wanted)
        except ConnectionResetError:
            return position
        if not data:
            return position
        if data != _piece(number, position, len(data)):
            raise ValueError(f"stream {number} ({manner}) is wrong within {len(data)} bytes from {position}")
        position += len(data)
        if manner == "slow":
            await asyncio.sleep(0)


async def _converse(sock: socket.socket, asks: bool) -> None:
    """Small messages there and back, as of kept HTTP connections."""
    loop = asyncio.get_running_loop()
    for number in range(ROUNDS):
        message = b"%08d" % number
        if asks:
            await loop.sock_sendall(sock, message)
        got = b""
        while len(got) < len(message):
            part = await loop.sock_recv(sock, len(message) - len(got))
            if not part:
                raise ConnectionError("ended early")
            got += part
        if got != message:
            raise ValueError(f"{got!r} came for {message!r}")
        if not asks:
            await loop.sock_sendall(sock, message)


async def _one(fd: int, index: int, plan: dict[str, Any]) -> int:
    with socket.socket(fileno=fd) as sock:
        sock.setblocking(False)
        await _converse(sock, plan["asks"])
        sending = asyncio.create_task(_send(sock, plan["first"] + index, plan["size"]))
        try:
            return await _read(sock, plan["expected"] + index, MANNERS[index % len(MANNERS)], plan["stall"])
        finally:
            with contextlib.suppress(ConnectionError):
                await sending


async def _main(plan: dict[str, Any]) -> None:
    ends = [_one(fd, index, plan) for index, fd in enumerate(plan["fds"])]
    results = await asyncio.gather(*ends, return_exceptions=True)
    wrong = [str(each) for each in results if isinstance(each, ValueError)]
    print(
        json.dumps(
            {
                "whole": sum(each == plan["size"] for each in results),
                "cut": sum(isinstance(each, int) and each < plan["size"] for each in results)
                + sum(isinstance(each, OSError) for each in results),
                "wrong": wrong,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
