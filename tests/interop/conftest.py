"""What tests of the control plane's protocols share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.xds_plane import Plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    found = Plane(tmp_path)
    await found.plane.start()
    yield found
    await found.plane.stop()
