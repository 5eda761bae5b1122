"""nodeagent itself, as a plain proxy: the agent as it ships, with a static file instead of a control plane."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import ClassVar

from nodeagent import __version__
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.results import SUBJECT
from nodeagent.bench.services import Service, static_resources
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig

NODEAGENT = (sys.executable, "-m", "nodeagent.cli.main")


class Subject(Peer):
    """Routing, timers, statistics and access records are on, and drained, as in a mesh."""

    name: ClassVar[str] = SUBJECT
    index: ClassVar[int] = 1

    def find(self) -> str:
        """Its version."""
        return __version__

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Start `nodeagent run --static`."""
        path = stage.folder / "nodeagent.json"
        path.write_text(json.dumps(static_resources(self.base)))
        argv = [*NODEAGENT, "run", "--node", "bench", "--static", str(path)]
        argv += ["--admin", str(stage.folder / "admin.sock"), "--state", str(stage.folder / "state")]
        argv += ["--metrics", "", "--ready", "", "--drain", "0", "--workers", str(config.workers)]
        argv += ["--log-level", "warning"]
        if config.access_log:
            argv += ["--access-log", "text", "--access-log-file", "/dev/null"]
        process = stage.spawn(self.name, argv, stage.cores.proxy)
        return self.running(process, services)
