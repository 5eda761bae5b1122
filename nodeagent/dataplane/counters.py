"""Counters and gauges that the library keeps: what they are is asked once, their values each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from nodeagent.dataplane._native._engine import ffi
from nodeagent.dataplane.report import Counter


class CounterTable:
    """The counters of one kind of object; `describe` returns an na_counter_info by index, NULL beyond the last."""

    def __init__(self, describe: Callable[[int], Any]) -> None:
        self._known = list(_described(describe))

    def read(self, value: Callable[[int], int]) -> list[Counter]:
        """The counters with their values, which are asked for by index."""
        return [
            Counter(name, text, gauge, int(value(index)))
            for index, (name, text, gauge) in enumerate(self._known)
        ]


def _described(describe: Callable[[int], Any]) -> Iterator[tuple[str, str, bool]]:
    for index in count():
        info = describe(index)
        if not info:
            return
        yield ffi.string(info.name).decode(), ffi.string(info.help).decode(), bool(info.gauge)
