"""MeshConfig's trust domains on their way from the control plane to node agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from harness.xds_client import unpack
from harness.xds_plane import Plane, until

from nodeagent.app.agent_access import xds_transport
from nodeagent.app.agent_node import workload_node
from nodeagent.app.agent_workloads import WorkloadStream
from nodeagent.compiler.workloads import WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.model.identity import check_trust_domain
from nodeagent.xds.types import MESH, message_class

MESH_CONFIG = """\
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data: {{mesh: "trustDomainAliases: [{aliases}]"}}
"""


class Agent:
    """What an agent takes of them."""

    def __init__(self, plane: Plane) -> None:
        config = AgentConfig(node="node", xds=plane.target)
        self.domains: list[str] = []
        self.workloads = WorkloadStream(
            xds_transport(config),
            workload_node(config),
            WorkloadIndex("node", ""),
            lambda change: None,
            lambda: None,
            trust=self._trust,
        )

    def _trust(self, domains: Sequence[str]) -> str:
        try:
            self.domains = [check_trust_domain(domain) for domain in domains]
        except ValueError as error:
            return str(error)
        return ""


@contextlib.asynccontextmanager
async def agent(plane: Plane) -> AsyncIterator[Agent]:
    found = Agent(plane)
    running = asyncio.create_task(found.workloads.stream.run())
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_agents_learn_of_aliases_and_forget_them(plane: Plane) -> None:
    async with agent(plane) as found:
        await until(lambda: found.domains == ["cluster.local"], "the mesh's own")
        plane.put("mesh.yaml", MESH_CONFIG.format(aliases="old.example, older.example"))
        await until(lambda: found.domains == ["cluster.local", "old.example", "older.example"], "aliases")
        plane.remove("mesh.yaml")
        await until(lambda: found.domains == ["cluster.local"], "no aliases any more")
        assert found.workloads.stream.protocol.types[MESH].in_sync


async def test_it_is_served_as_istiod_serves_it(plane: Plane) -> None:
    plane.put("mesh.yaml", MESH_CONFIG.format(aliases="old.example"))
    await until(lambda: len(plane.plane.world.trust.domains) == 2, "in force")
    async with plane.delta() as client:
        (resource,) = (await client.fetch(MESH)).resources
        assert resource.resource.type_url == "type.googleapis.com/istio.mesh.v1alpha1.MeshConfig"
    async with plane.sotw() as client:
        (body,) = (await client.fetch(MESH)).resources
        assert body.value == resource.resource.value
    assert unpack(body, message_class(MESH)).trust_domain_aliases == ["old.example"]
