"""A client that does not read: it is owed the newest state once, however much changes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from harness.xds_client import EDS, node, unpack

from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.xds.delta import DeltaStream
from nodeagent.controlplane.xds.hub import Hub

HOST = "a.default.svc.cluster.local"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80}]}
"""


def pod(address: str) -> str:
    return f"""\
apiVersion: v1
kind: Pod
metadata: {{name: p, labels: {{app: a}}}}
status: {{podIP: {address}, conditions: [{{type: Ready, status: "True"}}]}}
"""


class SlowTransport:
    """Takes a message only when the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.messages: list[Any] = []

    async def write(self, message: Any) -> None:
        await self.gate.wait()
        self.messages.append(message)


async def test_changes_coalesce_while_a_client_is_slow(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + pod("10.0.0.1"))
    hub = Hub(configured.world, Metrics())
    transport = SlowTransport()
    stream = DeltaStream(hub, "test", transport)
    hub.streams.add(stream)
    requests: asyncio.Queue[Any] = asyncio.Queue()

    async def read() -> AsyncIterator[Any]:
        while True:
            yield await requests.get()

    running = asyncio.create_task(stream.run(read()))
    cluster = f"outbound|80||{HOST}"
    await requests.put(
        discovery_pb2.DeltaDiscoveryRequest(node=node(), type_url=EDS, resource_names_subscribe=[cluster])
    )
    async with asyncio.timeout(5):
        while not transport.messages:
            await asyncio.sleep(0.01)
        transport.gate.clear()
        for number in range(2, 102):
            hub.publish(configured.put(pod(f"10.0.0.{number}")))
            await asyncio.sleep(0)
        transport.gate.set()
        await asyncio.sleep(0.1)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    # The first answer, the one that was being written when the client stopped, and the newest state.
    assert len(transport.messages) <= 3
    last = unpack(transport.messages[-1].resources[0], endpoint_pb2.ClusterLoadAssignment)
    assert last.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address == "10.0.0.101"


async def test_a_fault_in_one_resource_leaves_the_others_served(configured: Any, monkeypatch: Any) -> None:
    configured.put(
        SERVICE + "---\n" + SERVICE.replace("name: a}", "name: b}").replace("10.96.0.1", "10.96.0.2")
    )
    from nodeagent.controlplane.translate import clusters
    from nodeagent.controlplane.view import Perspective, View
    from nodeagent.controlplane.xds.subscription import Subscription

    real = clusters.outbound_clusters

    def faulty(view: Any, service: Any) -> Any:
        if service.name == "a":
            raise ValueError("boom")
        return real(view, service)

    monkeypatch.setattr(clusters, "outbound_clusters", faulty)
    hub = Hub(configured.world, Metrics())
    view = View(configured.world, Perspective("default"))
    kind = hub.kinds["type.googleapis.com/envoy.config.cluster.v3.Cluster"]
    subscription = Subscription(kind)
    subscription.subscribe(view, ["*"])
    found = await subscription.difference(view, hub.cache.acquire(view.perspective))
    assert "outbound|80||b.default.svc.cluster.local" in found.updates
    assert f"outbound|80||{HOST}" not in found.updates
    assert any("ValueError: boom" in str(issue) for issue in configured.report)
