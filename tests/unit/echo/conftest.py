"""An echo workload for all tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.echo import Echo, start, stop


@pytest.fixture(scope="session")
def echo() -> Iterator[Echo]:
    """One process with every kind of port, for tests that only ask."""
    running = start(
        *("--http", "0", "--h2c", "0", "--grpc", "0", "--ws", "0", "--tcp", "0"),
        *("--tcp-banner", "220 {pod}"),
        *("--name", "reviews-v1", "--namespace", "books", "--labels", "app=reviews,version=v1"),
    )
    yield running
    assert stop(running) == 0
