"""What holds for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST_FIRST = ("lab", "interop", "netns")
"""Folders that processes which share the tests begin with, so that none is left with a long one at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless it is asked for by its mark; order the rest for several processes."""
    if hasattr(config, "workerinput"):  # set by pytest-xdist
        items.sort(key=_length)
    if "slow" in config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def _length(item: pytest.Item) -> int:
    """Rank of the item's folder by how long its tests take; sorting by it keeps the order within a folder."""
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)
