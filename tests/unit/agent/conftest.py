"""A mesh with one service, and an agent of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import OUTBOUND, REVIEWS, VIP, Node, running

from nodeagent.xds.types import ADDRESS, CLUSTER, ENDPOINTS, LISTENER, ROUTE, VIRTUAL_HOST


@pytest.fixture
async def server() -> AsyncIterator[MeshServer]:
    """A mesh with one HTTP service, reviews, that has two endpoints."""
    async with MeshServer() as server:
        server.put(ADDRESS, f"default/{REVIEWS}", xds.service("reviews", VIP, (9080, "http")))
        server.put(
            ADDRESS,
            "Kubernetes//Pod/default/productpage-1",
            xds.workload("productpage-1", "10.244.0.5", services={"productpage": (9080, 9080)}),
        )
        server.put(LISTENER, "virtualInbound", xds.inbound_listener({9080: "http"}))
        server.put(LISTENER, "virtualOutbound", xds.outbound_catch_all())
        server.put(LISTENER, "0.0.0.0_9080", xds.http_listener(9080))
        server.put(ROUTE, "9080", xds.route_configuration("9080", on_demand=True))
        host = xds.virtual_host("reviews", 9080, [xds.forward(OUTBOUND)])
        server.put(VIRTUAL_HOST, f"9080/{REVIEWS}", host)
        server.put(VIRTUAL_HOST, "9080/reviews", host)
        server.put(CLUSTER, OUTBOUND, xds.cluster(OUTBOUND))
        server.put(CLUSTER, "PassthroughCluster", xds.passthrough())
        server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.8", "10.244.0.9"))
        yield server


@pytest.fixture
async def node(server: MeshServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(server, tmp_path) as node:
        yield node
