"""An agent's admin socket in a thread, and labs' folders in a temporary place."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.agent_state import FakeState
from typer.testing import CliRunner, Result

from nodeagent.admin.server import AdminOptions, AdminServer
from nodeagent.lab import names


class ServedState:
    """Serves a made-up state on a unix socket while used as a context."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = FakeState()
        self._loop = asyncio.new_event_loop()
        self._server = AdminServer(self.state, AdminOptions(path, "", ""))
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ServedState:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(5)
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def labs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of labs with two: `books` (node-a, node-b, control plane) and `other` (node-b). Its path is short, as
    those of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="labs-") as created:
        root = Path(created)
        monkeypatch.setattr(names, "LABS", root)
        monkeypatch.delenv("NODEAGENT_ADMIN", raising=False)
        for folder in ("books/node/node-a", "books/node/node-b", "books/controlplane", "other/node/node-b"):
            (root / folder).mkdir(parents=True)
        yield root


@pytest.fixture
def agent(labs: Path) -> Iterator[ServedState]:
    """The agent of books/node-a."""
    with ServedState(labs / "books/node/node-a/admin.sock") as served:
        yield served


@dataclass
class Ran:
    """What a command printed and how it ended; `error` is a NodeagentError's message."""

    code: int
    out: str
    err: str
    error: str


@pytest.fixture
def run() -> Callable[..., Ran]:
    """Run a command in this process as main() does."""

    def run(command: str, *arguments: str) -> Ran:
        import importlib

        from nodeagent.cli.main import COMMANDS
        from nodeagent.errors import NodeagentError

        application = importlib.import_module(COMMANDS[command][0]).app
        result: Result = CliRunner().invoke(application, arguments)
        error = result.exception
        if error is not None and not isinstance(error, SystemExit | NodeagentError):
            raise error
        message = str(error) if isinstance(error, NodeagentError) else ""
        return Ran(result.exit_code, result.stdout, result.stderr, message)

    return run
