"""`direct` as the agent has it: a process with real capture, told whom to accelerate, killed and started again."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Network, Process, require, scratch_cgroup
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.cgroups import ScratchCgroup

from nodeagent.dataplane.direct import unload_all
from nodeagent.dataplane.direct_programs import ABI
from nodeagent.lab.zds import Enrolment, ZdsServer
from nodeagent.xds.types import ADDRESS, LISTENER

pytestmark = pytest.mark.netns

_numbers = itertools.count()
LABEL = "nodeagent.io/acceleration"


class DirectNode:
    """An agent and two pods: `labelled` and `named` have opted in, each in its way."""

    def __init__(
        self, network: Network, group: ScratchCgroup, directory: Path, mesh: MeshServer, pins: Path
    ) -> None:
        self.pins = pins
        self.mesh = mesh
        self._network = network
        self._group = group
        self._directory = directory
        self.zds = ZdsServer(directory / "zds.sock", lambda: None)
        self.agent: Process | None = None
        mesh.put(LISTENER, "virtualInbound", xds.inbound_listener({8080: "http"}))
        mesh.put(LISTENER, "virtualOutbound", xds.outbound_catch_all())
        for name, account in (("labelled", "default"), ("named", "fast")):
            pod = network.add(name, default_route=True)
            labels = {LABEL: "direct"} if name == "labelled" else {"app": name}
            workload = xds.workload(name, pod.v4, labels=labels)
            mesh.put(ADDRESS, f"Kubernetes//Pod/default/{name}", workload)
            self.zds.add(Enrolment(f"uid-{name}", name, "default", account, pod.path))

    def start(self, *options: str) -> None:
        """Start the agent in its cgroup and in a namespace of the node's."""
        directory = self._directory
        arguments = {
            "node": "node-a",
            "xds": self.mesh.address,
            "zds": str(directory / "zds.sock"),
            "admin": str(directory / "admin.sock"),
            "state": str(directory / "state"),
            "metrics": "",
            "ready": "",
            "drain": "0",
            "bpf-pins": str(self.pins),
            "direct-workloads": "default/fast",
        }
        given = [part for key, value in arguments.items() for part in (f"--{key}", value)]
        command = [sys.executable, "-m", "nodeagent.cli.main", "run", *given, *options]
        self.agent = self._network.fabric.start(command, prepare=self._group.join)

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.agent is not None:
            await asyncio.to_thread(self.agent.stop, number)

    async def acceleration(self) -> dict[str, Any]:
        """What the agent's status says of it; nothing while there is no agent."""
        admin = self._directory / "admin.sock"
        command = ["curl", "-s", "-m", "5", "--unix-socket", str(admin), "http://agent/status"]
        text = (await asyncio.to_thread(self._network.fabric.exec, command)).stdout
        found: dict[str, Any] = json.loads(text)["acceleration"] if text else {}
        return found

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Until what the status says is as expected."""
        try:
            async with asyncio.timeout(15):
                while not condition(found := await self.acceleration()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(
                f"not in time: {found}; the agent says: {self.agent and self.agent.output}"
            ) from None
        return found


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[DirectNode]:
    require("root", "nft", "engine", "curl", "nsenter")
    pins = Path(f"/sys/fs/bpf/nodeagent-agent-{os.getpid()}-{next(_numbers)}")
    async with MeshServer(f"unix:{tmp_path}/ads.sock") as mesh:
        with scratch_cgroup("agent") as group, Network("agent") as network:
            node = DirectNode(network, group, tmp_path, mesh, pins)
            node.zds.start()
            try:
                yield node
            finally:
                await node.kill()
                await node.zds.close()
                unload_all(pins)


def _names(found: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in found.get("workloads", ())}


async def test_who_asked_is_accelerated_also_by_the_next_agent_and_off_ends_it(node: DirectNode) -> None:
    node.start()
    both = {"labelled": "accelerated", "named": "accelerated"}
    found = await node.until(lambda found: _names(found) == both)
    assert {probe["verdict"] for probe in found["probes"]} <= {"as TCP", "differs"}
    await node.kill()
    links = node.pins / "direct" / f"v{ABI}" / "links"
    assert {link.name for link in links.iterdir()} == {"direct_send", "direct_sockops"}
    node.start()
    await node.until(lambda found: _names(found) == both)
    await node.kill(signal.SIGTERM)
    assert links.exists(), "the pods are still there"
    node.start("--direct", "off")
    await node.until(lambda found: "workloads" in found and not (node.pins / "direct").exists())


async def test_with_nft_it_is_refused_and_said_why(node: DirectNode) -> None:
    node.start("--capture", "nft")
    found = await node.until(lambda found: len(_names(found)) == 2)
    assert {row["reason"] for row in found["workloads"]} == {
        "acceleration needs capture by eBPF (--capture ebpf)"
    }
    assert not (node.pins / "direct").exists()


async def test_a_pod_that_goes_takes_its_acceleration_along(node: DirectNode) -> None:
    node.start()
    await node.until(lambda found: len(_names(found)) == 2)
    node.zds.remove("uid-labelled")
    await node.until(lambda found: _names(found) == {"named": "accelerated"})
    node.zds.remove("uid-named")
    await node.until(lambda found: not _names(found) and not (node.pins / "direct").exists())
