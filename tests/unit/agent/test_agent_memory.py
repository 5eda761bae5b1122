"""What the agent does for small memory and short pauses while it takes a mesh in."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import running

from nodeagent.app import agent
from nodeagent.xds.types import ADDRESS


async def test_the_collector_is_spared_what_a_growing_mesh_has_brought(
    server: MeshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "FREEZE_STEP", 100)
    monkeypatch.setattr(agent, "SETTLE_DELAY", 3600)
    gc.unfreeze()
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.agent.workloads.synced, "workloads")
        assert gc.get_freeze_count() == 0
        for number in range(150):
            pod = xds.workload(f"pod-{number}", f"10.244.1.{number}")
            server.put(ADDRESS, pod.workload.uid, pod)
        await node.until(lambda: gc.get_freeze_count() > 150, "frozen")
    gc.unfreeze()
