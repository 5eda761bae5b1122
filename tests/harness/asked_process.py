"""A module of the harness as a process in a cgroup of its own, told what to do: a line of JSON each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class AskedProcess:
    """Starts `python -m MODULE ARGUMENTS...` in the cgroup that `join` moves it into; it ends with its input."""

    def __init__(self, module: str, *arguments: str, join: Callable[[], None]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=join,
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Have something done; its result, or AssertionError with what went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"verb": verb, **arguments}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process is gone"}')
        assert "error" not in answer, f"{verb}: {answer['error']}"
        return answer["result"]

    def kill(self) -> None:
        """SIGKILL: what a crash leaves."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
