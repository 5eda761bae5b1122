"""HTTP/1.1 with keep-alive, as fast as it goes."""

from __future__ import annotations

from collections.abc import Sequence

from nodeagent.bench.case import LoadCase, Scenario
from nodeagent.bench.load import Load
from nodeagent.bench.services import HTTP
from nodeagent.config.bench import BenchConfig


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    return [
        LoadCase(f"{title}, {connections} connections", HTTP, Load("http", connections, body))
        for title, body in (("40 B", 40), ("16 KiB", 16 * 1024))
        for connections in (16, 256)
    ]


SCENARIO = Scenario("http1", "HTTP/1.1 keep-alive, closed loop", _cases, captured=True)
