"""A folder for pins."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import require

from nodeagent.dataplane.bpffs import ensure_bpffs, make_folder, remove_pins

_numbers = itertools.count()


@pytest.fixture
def folder() -> Iterator[Path]:
    require("root", "engine")
    path = Path(f"/sys/fs/bpf/nodeagent-bpf-{os.getpid()}-{next(_numbers)}")
    ensure_bpffs(path)
    make_folder(path)
    try:
        yield path
    finally:
        remove_pins(path)
