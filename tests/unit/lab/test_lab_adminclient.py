"""Asking admin sockets that do not answer, or answer nonsense."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodeagent.errors import AdminError
from nodeagent.lab import adminclient


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no answer within 0.2 s"),
        (b"", "0 bytes read on a total of undefined expected bytes"),
        (b"HTTP/1.0 nonsense\r\n\r\n", "invalid literal for int"),
    ],
)
async def test_the_socket_and_the_reason_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, message: str
) -> None:
    monkeypatch.setattr(adminclient, "_SECONDS", 0.2)
    path = tmp_path / "admin.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until the client gives up
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(AdminError) as error:
            await adminclient.get(path, "/status")
    assert str(error.value).startswith(f"{path}: {message}")
