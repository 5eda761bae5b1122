"""Writes access records to a file or to standard output, from a thread of its own: a slow disk delays nothing
else.

What waits is bounded; records beyond that are dropped and counted. The file is opened anew when it was
renamed or removed (logrotate), or on reopen() (SIGHUP).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nodeagent.dataplane.report import AccessRecord, Lines
from nodeagent.errors import ConfigError
from nodeagent.telemetry.log_format import text_format

log = logging.getLogger(__name__)

STDOUT: Final = "stdout"
QUEUE_LIMIT: Final = 65_536
"""Records that wait at most."""
BATCH: Final = 512
"""Records formatted and written at once, at most."""
_ROTATION_CHECK_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0


class AccessLog:
    """The writer. start(), submit() or submit_lines() from one thread, close()."""

    def __init__(
        self,
        path: str,
        format_record: Callable[[AccessRecord], str] | None = None,
        *,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        """`path` is a file or `stdout`; `format_record` is for records that are no lines yet, Istio's text format if
        None. ConfigError if it cannot be opened."""
        self._path = path
        self._format = format_record or text_format()
        self._queue_limit = queue_limit
        self._queue: deque[Lines | Sequence[AccessRecord]] = deque()
        self._waiting = 0
        self._wake = threading.Condition()
        self._closing = False
        self._reopen = False
        self._checked = 0.0
        self._failing = False
        self._fd = self._open()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self.written = 0
        self.dropped = 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def submit(self, records: Sequence[AccessRecord]) -> None:
        """Have records formatted and written; never blocks."""
        with self._wake:
            room = max(self._queue_limit - self._waiting, 0)
            taken = records[:room]
            self.dropped += len(records) - len(taken)
            for start in range(0, len(taken), BATCH):
                self._enqueue(taken[start : start + BATCH], len(taken[start : start + BATCH]))

    def submit_lines(self, lines: Lines) -> None:
        """Have lines written, all or none of them; never blocks."""
        with self._wake:
            if self._waiting + lines.count > self._queue_limit:
                self.dropped += lines.count
            else:
                self._enqueue(lines, lines.count)

    def _enqueue(self, batch: Lines | Sequence[AccessRecord], count: int) -> None:
        self._queue.append(batch)
        self._waiting += count
        self._wake.notify()

    def reopen(self) -> None:
        """Open the file anew before the next record; safe in a signal handler of the event loop."""
        self._reopen = True

    def close(self) -> None:
        """Write what waits and end; gives up on a disk that does not take it within 5 s."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("access log %s: %d records not written", self._path, self._waiting)
            return
        os.close(self._fd)

    # -- the thread --

    def _open(self) -> int:
        if self._path == STDOUT:
            return os.dup(sys.stdout.fileno())
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigError(
                f"access log {self._path}: {error.strerror}; choose --access-log-file"
            ) from error

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                batch = self._queue.popleft()
                count = batch.count if isinstance(batch, Lines) else len(batch)
                self._waiting -= count
            self._write(self._formatted(batch), count)

    def _formatted(self, batch: Lines | Sequence[AccessRecord]) -> bytes:
        if isinstance(batch, Lines):
            return batch.data
        return "".join(map(self._format, batch)).encode(errors="replace")

    def _write(self, data: bytes, count: int) -> None:
        try:
            self._follow_rotation()
            while data:
                data = data[os.write(self._fd, data) :]
            self.written += count
            self._failing = False
        except (OSError, ConfigError) as error:
            self.dropped += count
            if not self._failing:
                log.error("access log %s: %s; records are dropped until it works again", self._path, error)
            self._failing = True

    def _follow_rotation(self) -> None:
        if self._path == STDOUT or not (self._reopen or self._moved()):
            return
        self._reopen = False
        fresh = self._open()
        os.close(self._fd)
        self._fd = fresh

    def _moved(self) -> bool:
        """Whether the path leads elsewhere than what is open; looked at once a second."""
        now = time.monotonic()
        if now - self._checked < _ROTATION_CHECK_SECONDS:
            return False
        self._checked = now
        try:
            there = Path(self._path).stat()
        except FileNotFoundError:
            return True
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
