"""Writes the last good configuration to disk, some time after it changed, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from nodeagent.xds.lastgood import LastGood, capture
from nodeagent.xds.stream import DeltaStream

logger = logging.getLogger(__name__)

DEBOUNCE: Final = 1.0
"""Seconds from a change to its writing; changes in between are written with it."""
SHARE: Final = 20
"""Writing takes at most one in so many seconds, however often things change."""


class Saver:
    """Keeps the files of streams in step with what they hold."""

    def __init__(self, store: LastGood, debounce: float = DEBOUNCE) -> None:
        self._store = store
        self._debounce = debounce
        self._dirty: dict[str, DeltaStream] = {}
        self._wake = asyncio.Event()
        self.failures = 0
        self.last_error = ""

    def mark(self, stream: DeltaStream) -> None:
        """What a stream holds has changed."""
        self._dirty[stream.name] = stream
        self._wake.set()

    def forget(self, stream: DeltaStream) -> None:
        """The stream is gone for good."""
        self._dirty.pop(stream.name, None)
        self._store.forget(stream.name)

    async def run(self) -> None:
        """Save until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._debounce)
            started = time.monotonic()
            await self.flush()
            await asyncio.sleep(SHARE * (time.monotonic() - started))

    async def flush(self) -> None:
        """Save now whatever has changed."""
        self._wake.clear()
        dirty, self._dirty = self._dirty, {}
        for name, stream in dirty.items():
            held = capture(stream.protocol.types)
            try:
                await asyncio.to_thread(self._store.save, name, held)
                self.last_error = ""
            except (OSError, ValueError) as error:
                self.failures += 1
                self.last_error = f"the last good configuration of {name} cannot be kept: {error}"
                logger.warning("%s", self.last_error)
