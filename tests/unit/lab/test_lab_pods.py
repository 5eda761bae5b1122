"""Pods of a lab, as they are told of while their programs come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.config.lab import LabFile, NodeSpec, PodSpec
from nodeagent.errors import LabError
from nodeagent.lab import pods, process
from nodeagent.lab.names import LabNames
from nodeagent.lab.plan import plan_lab
from nodeagent.lab.pods import Pod
from nodeagent.lab.process import Launch


def make_pod(
    monkeypatch: pytest.MonkeyPatch, folder: Path, changed: Callable[[], None], *, restart: bool
) -> Pod:
    """A pod whose log is in the folder."""
    monkeypatch.setattr(Pod, "log", property(lambda self: folder / "log"))
    spec = PodSpec("job", "default", "a", command=("job",), restart=restart)
    plan = plan_lab(LabNames("t"), LabFile((NodeSpec("a"),), (spec,), ()))
    return Pod(plan.names, plan.pods[0], plan.nodes[0], "cluster.local", changed)


def test_why_a_program_has_ended_is_told_from_the_moment_of_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def start(launch: Launch, log: Path) -> asyncio.subprocess.Process:
        raise LabError("nosuch: command not found")

    async def run() -> None:
        pod.keeper.start()
        while not told:
            await asyncio.sleep(0)

    monkeypatch.setattr(process, "start", start)
    told: list[tuple[str, str]] = []
    pod = make_pod(
        monkeypatch, tmp_path, lambda: told.append((pod.keeper.state, pod.waiting_for)), restart=False
    )
    asyncio.run(run())
    assert told == [("exited", "its process (nosuch: command not found)")]
    assert not pod.ready


class Program:
    """A process that ends the first time, and then stays."""

    pid = 1
    starts = 0

    async def wait(self) -> int:
        Program.starts += 1
        if Program.starts > 1:
            await asyncio.Event().wait()
        return 3


def test_a_program_that_ends_each_time_is_not_said_to_lack_a_listener_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def start(launch: Launch, log: Path) -> Program:
        return Program()

    async def run() -> None:
        for keeper in (pod.keeper, pod._sandbox):
            keeper.start()
        async with asyncio.timeout(10):
            while not (pod.keeper.restarts and pod.keeper.pid and pod._sandbox.pid):
                await asyncio.sleep(0)
        pod.check(lambda backend: [("TCP", 8080)])
        assert pod.waiting_for == "its process (exited with status 3)"
        monkeypatch.setattr(process, "CRASH_SECONDS", 0.0)
        pod.check(lambda backend: [("TCP", 8080)])
        assert pod.waiting_for == "a listener on TCP port 8080"

    monkeypatch.setattr(process, "start", start)
    monkeypatch.setattr(process, "BACKOFF_FIRST", 0.0)
    monkeypatch.setattr(process.cgroups, "kill", lambda group: None)
    monkeypatch.setattr(pods, "listening", lambda pid, addresses: set())
    pod = make_pod(monkeypatch, tmp_path, lambda: None, restart=True)
    asyncio.run(run())
