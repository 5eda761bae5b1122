"""Which names the agent puts in force, and for whom."""

from __future__ import annotations

from pathlib import Path

from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import REVIEWS, VIP, Node, running

from nodeagent.snapshot.address import parse_address
from nodeagent.xds.types import ADDRESS

KNOWN = (parse_address(VIP),)


async def test_workloads_are_answered_in_their_search_list(node: Node) -> None:
    await node.enroll()
    await node.until(lambda: node.engine.applied.names.get(REVIEWS) == KNOWN, "names")
    assert node.engine.search == {"uid-1": "default.svc.cluster.local svc.cluster.local cluster.local"}


async def test_names_follow_the_control_plane(node: Node) -> None:
    await node.enroll()
    await node.until(lambda: REVIEWS in node.engine.applied.names, "names")
    other = xds.fqdn("ratings")
    node.server.put(ADDRESS, f"default/{other}", xds.service("ratings", "10.96.0.99", (80, "http")))
    await node.until(lambda: other in node.engine.applied.names, "a new service")
    node.server.drop(ADDRESS, f"default/{other}")
    await node.until(lambda: other not in node.engine.applied.names, "a service that goes")
    assert node.engine.applied.names[REVIEWS] == KNOWN


async def test_names_survive_a_restart_without_control_plane(server: MeshServer, tmp_path: Path) -> None:
    async with running(server, tmp_path) as first:
        await first.until(lambda: REVIEWS in first.engine.applied.names, "names")
    await server.stop()
    async with running(server, tmp_path) as second:
        await second.until(lambda: second.engine.applied.names.get(REVIEWS) == KNOWN, "names")


async def test_nothing_is_answered_where_dns_is_left_alone(server: MeshServer, tmp_path: Path) -> None:
    async with running(server, tmp_path, dns_capture="off") as node:
        await node.enroll()
        await node.until(lambda: node.engine.applied.hints.addresses, "services")
        assert node.engine.applied.names == {}
        assert node.engine.search == {"uid-1": ""}
