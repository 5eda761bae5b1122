"""HTTP/1.1 with a new connection for each request; upstream connections are kept, as every proxy here does."""

from __future__ import annotations

from collections.abc import Sequence

from nodeagent.bench.case import LoadCase, Scenario
from nodeagent.bench.load import Load
from nodeagent.bench.services import HTTP
from nodeagent.config.bench import BenchConfig


def _cases(config: BenchConfig) -> Sequence[LoadCase]:
    del config
    return [LoadCase("40 B, 16 connections", HTTP, Load("http-close", 16, 40))]


SCENARIO = Scenario("http1-close", "HTTP/1.1, a new connection per request", _cases)
