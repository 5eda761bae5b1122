"""Asks the admin sockets of agents and control plane, from the supervisor's event loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from nodeagent.errors import AdminError

_SECONDS: Final = 5.0
_MAXIMUM: Final = 64 << 20


async def get(path: Path, target: str, seconds: float = 0) -> tuple[int, bytes]:
    """GET `target` over a unix socket; returns status and body. AdminError when nobody answers in time (0: 5 s)."""
    seconds = seconds or _SECONDS
    try:
        return await asyncio.wait_for(_exchange(path, target), seconds)
    except TimeoutError:
        raise AdminError(f"{path}: no answer within {seconds:g} s") from None
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise AdminError(f"{path}: {error}") from None


async def get_json(path: Path, target: str) -> Any:
    """GET a JSON document; AdminError for anything but 200."""
    status, body = await get(path, target)
    if status != 200:
        raise AdminError(f"{path}: {target} answers {status}")
    return json.loads(body)


async def _exchange(path: Path, target: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(
            f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
        )  # 1.0: the body ends with the stream
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        while not reader.at_eof():
            body += await reader.read(1 << 16)
            if len(body) > _MAXIMUM:
                raise ValueError(f"more than {_MAXIMUM} bytes")
        return int(head.split(b" ", 2)[1]), body
    finally:
        writer.close()
