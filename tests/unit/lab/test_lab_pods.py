"""Pods of a lab, as they are told of while their programs come and go."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.config.lab import LabFile, NodeSpec, PodSpec
from nodeagent.errors import LabError
from nodeagent.lab import process
from nodeagent.lab.names import LabNames
from nodeagent.lab.plan import plan_lab
from nodeagent.lab.pods import Pod
from nodeagent.lab.process import Keeper, Launch


def test_why_a_program_has_ended_is_told_from_the_moment_of_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def start(launch: Launch, log: Path) -> asyncio.subprocess.Process:
        raise LabError("nosuch: command not found")

    monkeypatch.setattr(process, "start", start)
    monkeypatch.setattr(Pod, "log", property(lambda self: tmp_path / "log"))
    job = replace(PodSpec("job", "default", "a"), command=("nosuch",), restart=False)
    plan = plan_lab(LabNames("t"), LabFile((NodeSpec("a"),), (job,), ()))
    told: list[tuple[str, str]] = []
    pod = Pod(
        plan.names,
        plan.pods[0],
        plan.nodes[0],
        "cluster.local",
        lambda: told.append((pod.keeper.state, pod.waiting_for)),
    )

    async def run(keeper: Keeper) -> None:
        keeper.start()
        while not told:
            await asyncio.sleep(0)

    asyncio.run(run(pod.keeper))
    assert told == [("exited", "its process (nosuch: command not found)")]
    assert not pod.ready
