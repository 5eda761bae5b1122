"""Who is accelerated by `direct`: by labels, by the agent's settings, and what is told of it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import Node, running

from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.share import NamespaceShare, Share
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.errors import ConfigError
from nodeagent.snapshot.address import parse_address
from nodeagent.xds.types import ADDRESS

LABEL = "nodeagent.io/acceleration"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[MeshServer]:
    async with MeshServer(f"unix:{tmp_path}/ads.sock") as server:
        yield server


def _told(server: MeshServer, name: str, value: str | None) -> None:
    """The control plane tells of a pod with the label, or without."""
    labels = {"app": name} | ({LABEL: value} if value is not None else {})
    server.put(ADDRESS, f"Kubernetes//Pod/default/{name}", xds.workload(name, "10.244.0.5", labels=labels))


async def _settled(node: Node) -> None:
    """What was changed so far has been acted upon: the reconciler is asked once more, and has answered."""
    rounds = len(node.dataplane.accelerator.kept)
    node.agent.acceleration.complete()
    await node.until(lambda: len(node.dataplane.accelerator.kept) > rounds, "reconciled")


def _states(node: Node) -> dict[str, str]:
    return {row.name: row.state for row in node.agent.acceleration.status().workloads}


async def test_a_label_asks_for_it(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direct")
    _told(server, "plain", None)
    async with running(server, tmp_path) as node:
        await node.enroll("swift", "uid-1")
        await node.enroll("plain", "uid-2")
        await _settled(node)
        assert node.dataplane.accelerator.admitted == {1: (parse_address("10.244.0.5"),)}
        assert _states(node) == {"swift": "accelerated"}
        assert node.dataplane.accelerator.kept[-1] == {1}
        _told(server, "swift", None)
        await node.until(lambda: not node.dataplane.accelerator.admitted, "the label is gone")
        _told(server, "swift", "direct")
        await node.until(lambda: node.dataplane.accelerator.admitted, "the label is back")
        await node.agent.enrolment.remove("uid-1")
        await node.until(lambda: not node.dataplane.accelerator.admitted, "the pod is gone")
        assert _states(node) == {}


async def test_the_agent_may_be_told_who_and_a_label_that_declines_wins(
    server: MeshServer, tmp_path: Path
) -> None:
    _told(server, "one", None)
    _told(server, "two", "none")
    async with running(server, tmp_path, direct_workloads=("default/fast",)) as node:
        await node.enroll("one", "uid-1", "fast")
        await node.enroll("two", "uid-2", "fast")
        await node.enroll("three", "uid-3", "slow")
        await _settled(node)
        assert _states(node) == {"one": "accelerated"}


async def test_off_is_off(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direct")
    async with running(server, tmp_path, direct="off", direct_workloads=("default/default",)) as node:
        await node.enroll("swift")
        await _settled(node)
        assert not node.dataplane.accelerator.admitted
        assert node.dataplane.accelerator.kept[-1] == set(), "nor does anybody stay so of an earlier agent's"


async def test_who_shares_a_namespace_is_never_accelerated(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direct")
    async with running(server, tmp_path) as node:
        share = NamespaceShare(os.dup(0), Share("uid-1", "system.slice/swift.service"))
        await node.agent.enrolment.add(EnrolledPod("uid-1", "swift", "default", "default"), share)
        await _settled(node)
        assert not node.dataplane.accelerator.admitted


async def test_a_refusal_is_told_and_tried_again(
    server: MeshServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _told(server, "swift", "direct")
    async with running(server, tmp_path) as node:
        node.dataplane.accelerator.refusal = "ordering: a message overtook"
        with caplog.at_level(logging.WARNING):
            await node.enroll("swift")
            await _settled(node)
            await _settled(node)
        assert caplog.text.count("default/swift is not accelerated: ordering: a message overtook") == 1
        assert _states(node) == {"swift": "refused"}
        warnings = node.agent.state.status().warnings
        assert "default/swift is not accelerated: ordering: a message overtook" in warnings
        node.dataplane.accelerator.refusal = ""
        await _settled(node)
        assert _states(node) == {"swift": "accelerated"}


async def test_a_pod_that_comes_again_in_another_namespace_is_another_one(
    server: MeshServer, tmp_path: Path
) -> None:
    """Even if both happen between two looks."""
    _told(server, "swift", "direct")
    async with running(server, tmp_path) as node:
        await node.enroll("swift")
        await _settled(node)
        accelerator = node.dataplane.accelerator
        assert list(accelerator.admitted) == [1]
        (workload,) = node.agent.enrolment
        with (tmp_path / "another").open("w") as another:
            workload.netns = SimpleNamespace(fd=another.fileno(), close=lambda: None)  # type: ignore[assignment]
            await _settled(node)
        assert accelerator.kept[-1] != {1}
        assert len(accelerator.admitted) == 1


async def test_a_machine_without_descriptors_goes_on(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direct")
    async with running(server, tmp_path) as node:
        await node.enroll("swift")
        (workload,) = node.agent.enrolment
        workload.netns = SimpleNamespace(fd=-1, close=lambda: None)  # type: ignore[assignment]
        await _settled(node)
        assert _states(node) == {}


async def test_what_makes_it_useless_is_told(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direct")
    async with running(server, tmp_path, bypass="off") as node:
        await node.enroll("swift")
        await _settled(node)
        assert any("no effect with --bypass off" in each for each in node.agent.acceleration.warnings())


async def test_a_label_that_says_nothing_is_told(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direkt")
    async with running(server, tmp_path) as node:
        await node.enroll("swift")
        await _settled(node)
        assert not node.dataplane.accelerator.admitted
        (warning,) = node.agent.acceleration.warnings()
        assert warning == f"default/swift: label {LABEL}: 'direkt' is not known; use direct or none"


async def test_it_looks_after_what_is_withdrawn_until_it_is_gone(
    server: MeshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.app.agent_acceleration.PERIOD", 0.01)
    async with running(server, tmp_path) as node:
        node.dataplane.accelerator.remaining = 5
        node.agent.acceleration.changed()
        await node.until(lambda: node.dataplane.accelerator.remaining == 0, "all is let go")


async def test_metrics_tell_of_it(server: MeshServer, tmp_path: Path) -> None:
    _told(server, "swift", "direct")
    async with running(server, tmp_path) as node:
        node.dataplane.accelerator.events = {"redirected": 7, "pass_full": 2}
        await node.enroll("swift")
        await _settled(node)
        text = b"".join(node.agent.state.metrics()).decode()
        for line in (
            'nodeagent_direct_events_total{event="redirected"} 7.0',
            'nodeagent_direct_events_total{event="pass_full"} 2.0',
            'nodeagent_direct_workloads{state="accelerated"} 1.0',
            'nodeagent_direct_workloads{state="refused"} 0.0',
            "nodeagent_direct_sockets 4.0",
            "nodeagent_direct_queued_bytes 100.0",
        ):
            assert line in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direct": "on"}, "--direct on: not one of labelled, off"),
        ({"direct_limit": 100}, "--direct-limit 100: must be at least 16384"),
        ({"direct_limit": 1 << 30}, "--direct-limit 1.07374e"),
        ({"direct_workloads": ("shop",)}, "--direct-workloads shop: must be NAMESPACE/SERVICE-ACCOUNT"),
        ({"direct_workloads": ("a/b/c",)}, "--direct-workloads a/b/c: must be"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AgentConfig(node="node-a", **settings)
    assert str(refused.value).startswith(message)
