"""Background processes of a test: output collected in a file, stopped by pid at the end."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO

POLL_SECONDS = 0.01


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Poll until `condition` holds; AssertionError naming `what` when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(POLL_SECONDS)


class Process:
    """A command that runs until stop(), or until the `with` block ends. `listens(port)` tells whether a
    socket in its namespace listens on that port."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        listens: Callable[[int], bool],
        prepare: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._listens = listens
        self.argv = list(argv)
        self.popen = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            preexec_fn=prepare,
            env=None if env is None else dict(env),
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        """What it has written so far, both streams."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def wait_for_output(self, text: str, timeout: float = 10.0) -> None:
        def seen() -> bool:
            if text in self.output:
                return True
            assert self.popen.poll() is None, f"{self.argv} ended: {self.output}"
            return False

        wait_until(seen, f"{text!r} in the output of {self.argv}: {self.output}", timeout)

    def wait_for_port(self, port: int, timeout: float = 10.0) -> None:
        """Until something listens on the port in its namespace."""

        def up() -> bool:
            assert self.popen.poll() is None, f"{self.argv} ended: {self.output}"
            return self._listens(port)

        wait_until(up, f"{self.argv} listening on {port}: {self.output}", timeout)

    def stop(self, how: int = signal.SIGTERM, timeout: float = 5.0) -> int:
        """Signal it and wait; SIGKILL when it does not end in time. Returns its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
            try:
                self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        return self.popen.returncode

    def close(self) -> None:
        self.stop()
        self._output.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
