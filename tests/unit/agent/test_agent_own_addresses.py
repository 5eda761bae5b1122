"""Connections to workloads' own addresses, in an agent with identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import running

from nodeagent.proto import workload_pb2
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import Tunnel
from nodeagent.xds.types import ADDRESS

POD = "10.244.0.8"
UID = "Kubernetes//Pod/default/reviews-1"


def pod(*, hbone: bool) -> Any:
    message = xds.workload("reviews-1", POD, node="node-b", account="reviews")
    message.workload.tunnel_protocol = workload_pb2.HBONE if hbone else workload_pb2.NONE
    return message


async def test_a_tunnel_is_made_on_demand_and_follows_the_workload(
    server: MeshServer, tmp_path: Path
) -> None:
    server.put(ADDRESS, UID, pod(hbone=True))
    async with running(server, tmp_path, ca="127.0.0.1:1", ca_root=str(tmp_path / "none")) as node:
        view = await node.enroll()
        address = parse_address(POD)
        await node.until(lambda: address in node.engine.applied.hints.addresses, "hint")
        assert node.view(view).destinations == {}, "nothing before it is used"
        node.connect(view, POD, 5432)
        found = await node.destination(view, POD, 5432)
        (endpoint,) = node.view(view).endpoints[found.clusters[0].cluster]
        assert endpoint.tunnel == Tunnel(("spiffe://cluster.local/ns/default/sa/reviews",))
        server.put(ADDRESS, UID, pod(hbone=False))
        await node.until(lambda: not node.view(view).destinations[address, 5432].clusters, "plaintext")
        assert address not in node.engine.applied.hints.addresses
