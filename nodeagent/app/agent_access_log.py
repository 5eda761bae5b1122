"""The agent's access log: records go from the engine to its writer, by their rate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from nodeagent.app.agent_ports import Engine
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.report import AccessRecord, LineFormat
from nodeagent.telemetry.accesslog import STDOUT, AccessLog
from nodeagent.telemetry.log_format import json_format, parse_json_template, text_format
from nodeagent.telemetry.pace import Pace

logger = logging.getLogger(__name__)


class AccessLogKeeper:
    """Takes records out of the engine. start(), run() and pull() while the engine is there, close()."""

    def __init__(self, config: AgentConfig, engine: Engine) -> None:
        """ConfigError if the file cannot be opened, or the format is none."""
        self._engine = engine
        self._lines = None if config.access_log_format else _line_format(config)
        self._log = AccessLog(config.access_log_file or STDOUT, _record_format(config))

    def start(self) -> None:
        """Begin to write what is pulled."""
        self._log.start()

    def reopen(self) -> None:
        """Open the file anew; for a signal handler."""
        self._log.reopen()

    async def run(self) -> None:
        """Pull until cancelled."""
        pace = Pace()
        last = time.monotonic()
        while True:
            await asyncio.sleep(pace.wait)
            try:
                count = self.pull()
            except Exception:
                logger.exception("reading access records failed")
                count = 0
            now = time.monotonic()
            pace.note(count, now - last)
            last = now

    def pull(self) -> int:
        """Have the records since the last call written; returns how many they were."""
        if self._lines is None:
            records = self._engine.drain_access()
            self._log.submit(records)
            return len(records)
        count = 0
        for lines in self._engine.drain_access_lines(self._lines):
            self._log.submit_lines(lines)
            count += lines.count
        return count

    async def close(self) -> None:
        """Write what waits."""
        await asyncio.to_thread(self._log.close)


def _line_format(config: AgentConfig) -> LineFormat:
    """With a CA, peers have identities to write down."""
    name = config.access_log.upper()
    return LineFormat[f"IDENTITY_{name}" if config.ca else name]


def _record_format(config: AgentConfig) -> Callable[[AccessRecord], str] | None:
    """A format of the user's own; None for Istio's, which the engine's library writes."""
    if not config.access_log_format:
        return None
    if config.access_log == "text":
        return text_format(config.access_log_format)
    return json_format(parse_json_template(config.access_log_format))
