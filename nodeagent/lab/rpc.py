"""How the verbs talk to a lab's supervisor: one JSON line there, one back, over a unix socket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from nodeagent.errors import LabError, NodeagentError

_MAXIMUM: Final = 64 << 20
log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


async def serve(path: Path, handlers: dict[str, Handler]) -> asyncio.Server:
    """Answer requests; root only. A handler's NodeagentError becomes the caller's LabError."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            answer = await _answer(handlers, request)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            log.warning("request failed: %s", error)
        finally:
            writer.close()

    old = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(connected, str(path), limit=_MAXIMUM)
    finally:
        os.umask(old)


async def _answer(handlers: dict[str, Handler], request: dict[str, Any]) -> dict[str, Any]:
    verb = request.pop("verb", "")
    handler = handlers.get(verb)
    if handler is None:
        return {"error": f"the supervisor knows no verb {verb!r}"}
    try:
        return {"result": await handler(request)}
    except NodeagentError as error:
        return {"error": str(error)}
    except Exception as error:  # a bug must not take the lab down, and must be seen
        log.exception("verb %s failed", verb)
        return {"error": f"{type(error).__name__} in the supervisor: {error}; see its log"}


def call(path: Path, verb: str, *, timeout: float = 60.0, **arguments: Any) -> Any:
    """Send one request and return its result. ConnectionError when no supervisor listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise ConnectionError(f"{path}: {error.strerror}") from None
        try:
            connection.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline(_MAXIMUM)
        except TimeoutError:
            raise LabError(f"the lab's supervisor did not answer {verb!r} within {timeout:g} s") from None
    if not line.endswith(b"\n"):
        raise ConnectionError(f"{path}: the supervisor closed the connection")
    answer = json.loads(line)
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["result"]
