"""The ADS server under a real gRPC client: what depends on who asks, what is asked for on demand, and how."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from envoy.config.route.v3 import route_components_pb2, route_pb2
from harness.control_plane import pod, service
from harness.xds_client import (
    ADDRESS,
    CDS,
    LDS,
    RDS,
    VHDS,
    DeltaClient,
    names,
    node,
    unpack,
)
from harness.xds_plane import BASE, CLUSTER, REVIEWS, ROUTE, Plane, until

from nodeagent.proto import workload_pb2

BY_LABEL = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceLabels: {app: web}}]
    directResponse: {status: 201}
  - directResponse: {status: 202}
"""


# -- who asks --------------------------------------------------------------------------------------------------


async def test_short_names_are_of_the_clients_namespace(plane: Plane) -> None:
    async with plane.delta() as own, plane.delta(namespace="other", pod="x", address="10.0.0.9") as other:
        for client, short in ((own, True), (other, False)):
            response = await client.fetch(RDS, "9080")
            table = unpack(response.resources[0], route_pb2.RouteConfiguration)
            (host,) = [host for host in table.virtual_hosts if host.name.startswith(REVIEWS)]
            assert ("reviews" in host.domains) is short
            assert {"reviews.default", "reviews.default.svc", REVIEWS, "10.96.0.1"} <= set(host.domains)


async def test_service_that_is_not_exported_is_not_seen(plane: Plane) -> None:
    private = service("private", "10.96.0.8").replace(
        "{name: private}", "{name: private, annotations: {networking.istio.io/exportTo: .}}"
    )
    plane.put("private.yaml", private)
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    cluster = "outbound|9080||private.default.svc.cluster.local"
    async with plane.delta() as own, plane.delta(namespace="other", pod="x", address="10.0.0.9") as other:
        assert cluster in names(await own.fetch(CDS))
        assert cluster not in names(await other.fetch(CDS))


def _status(response: Any) -> int:
    table = unpack(response.resources[0], route_pb2.RouteConfiguration)
    (host,) = [host for host in table.virtual_hosts if host.name.startswith(REVIEWS)]
    return int(host.routes[0].direct_response.status)


async def test_labels_come_from_metadata_or_the_pod(plane: Plane) -> None:
    plane.put("route.yaml", BY_LABEL)
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta() as by_pod, plane.delta(labels={"app": "other"}) as by_metadata:
        assert _status(await by_pod.fetch(RDS, "9080")) == 201
        assert _status(await by_metadata.fetch(RDS, "9080")) == 202


async def test_pod_is_found_by_address(plane: Plane) -> None:
    plane.put("route.yaml", BY_LABEL)
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta(pod="unheard-of") as client:
        assert _status(await client.fetch(RDS, "9080")) == 201


async def test_changed_labels_of_the_own_pod_take_effect(plane: Plane) -> None:
    plane.put("route.yaml", BY_LABEL)
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta() as client:
        assert _status(await client.fetch(RDS, "9080")) == 201
        plane.put("base.yaml", *BASE[:2], pod("web", "10.0.0.1", "else"), BASE[3])
        assert _status(await client.receive(RDS)) == 202


async def test_own_pod_that_comes_later_brings_inbound(plane: Plane) -> None:
    plane.put("late.yaml", service("late", "10.96.0.5", port=80, target=8080))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta(pod="late-1", address="10.0.0.5") as client:
        assert "inbound|8080||" not in names(await client.fetch(CDS))
        plane.put("pod.yaml", pod("late-1", "10.0.0.5", "late"))
        assert names(await client.receive(CDS)) == {"inbound|8080||"}


# -- on demand -------------------------------------------------------------------------------------------------


async def test_on_demand_tables_hold_only_the_catch_all(plane: Plane) -> None:
    async with plane.delta(on_demand=True) as client:
        response = await client.fetch(RDS, "9080")
        table = unpack(response.resources[0], route_pb2.RouteConfiguration)
        assert [host.name for host in table.virtual_hosts] == ["allow_any"]
        assert table.vhds.config_source.HasField("ads")


@pytest.mark.parametrize(
    "host", ["reviews", "reviews.default", "Reviews.default.svc", REVIEWS, f"{REVIEWS}.", "10.96.0.1"]
)
async def test_virtual_host_by_any_of_its_names(plane: Plane, host: str) -> None:
    async with plane.delta(on_demand=True) as client:
        response = await client.fetch(VHDS, f"9080/{host}")
        (resource,) = response.resources
        assert resource.name == f"9080/{host}"
        everything = {
            "reviews",
            "reviews.default",
            "reviews.default.svc",
            REVIEWS,
            f"{REVIEWS}.",
            "10.96.0.1",
        }
        assert {f"9080/{name}" for name in everything} - {resource.name} <= set(resource.aliases)
        body = unpack(resource, route_components_pb2.VirtualHost)
        assert body.name == f"{REVIEWS}:9080"


async def test_virtual_host_of_a_detected_port(plane: Plane) -> None:
    plane.put("auto.yaml", service("auto", "10.96.0.7", "", 7000))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    host = "auto.default.svc.cluster.local"
    async with plane.delta(on_demand=True) as client:
        assert names(await client.fetch(RDS, f"{host}:7000")) == {f"{host}:7000"}
        assert names(await client.fetch(VHDS, f"{host}:7000/auto")) == {f"{host}:7000/auto"}
        assert names(await client.fetch(LDS, "10.96.0.7_7000")) == {"10.96.0.7_7000"}


async def test_unknown_host_is_named_and_pushed_when_it_comes(plane: Plane) -> None:
    async with plane.delta(on_demand=True) as client:
        response = await client.fetch(VHDS, "9080/ratings", "9080/reviews.nowhere")
        assert set(response.removed_resources) == {"9080/ratings", "9080/reviews.nowhere"}
        plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
        assert names(await client.receive(VHDS)) == {"9080/ratings"}
        plane.remove("ratings.yaml")
        assert list((await client.receive(VHDS)).removed_resources) == ["9080/ratings"]


async def test_changed_route_is_pushed_under_the_names_asked_for(plane: Plane) -> None:
    async with plane.delta(on_demand=True) as client:
        await client.fetch(RDS, "9080")
        await client.fetch(VHDS, "9080/reviews", f"9080/{REVIEWS}")
        plane.put("route.yaml", ROUTE % "3s")
        response = await client.receive(VHDS)
        assert names(response) == {"9080/reviews", f"9080/{REVIEWS}"}
        body = unpack(response.resources[0], route_components_pb2.VirtualHost)
        assert body.routes[0].route.timeout.seconds == 3
        await client.silence()


async def test_host_that_only_a_virtual_service_knows(plane: Plane) -> None:
    rule = ROUTE.replace("hosts: [reviews]", 'hosts: ["*.example.com"]')
    plane.put("route.yaml", rule % "1s", service("http80", "10.96.0.30", port=80))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta(on_demand=True) as client:
        response = await client.fetch(VHDS, "80/a.example.com", "9080/a.example.com")
        assert names(response) == {"80/a.example.com"}
        assert list((await client.receive(VHDS)).removed_resources) == ["9080/a.example.com"]


async def test_addresses_on_demand(plane: Plane) -> None:
    """As ztunnel does: wildcard taken and dropped in the first request, then single names."""
    async with plane.delta(kind="ztunnel") as client:
        await client.ask(ADDRESS, ["*"], ["*"])
        assert names(await client.receive(ADDRESS)) == set()
        response = await client.fetch(ADDRESS, "/10.0.0.2")
        (resource,) = response.resources
        assert resource.name == "Kubernetes//Pod/default/reviews-1"
        assert "/10.0.0.2" in resource.aliases
        assert "Kubernetes//v1/Pod/default/reviews-1" in resource.aliases
        response = await client.fetch(ADDRESS, "Kubernetes//v1/Pod/default/web")
        assert names(response) == {"Kubernetes//Pod/default/web"}
        response = await client.fetch(ADDRESS, f"default/{REVIEWS}")
        found = [unpack(item, workload_pb2.Address) for item in response.resources]
        assert [item.service.hostname for item in found if item.HasField("service")] == [REVIEWS]
        assert [item.workload.name for item in found if item.HasField("workload")] == ["reviews-1"]
        plane.put("more.yaml", pod("reviews-2", "10.0.0.3", "reviews"))
        assert names(await client.receive(ADDRESS)) == {"Kubernetes//Pod/default/reviews-2"}
        response = await client.fetch(ADDRESS, "/10.0.0.99")
        assert list(response.removed_resources) == ["/10.0.0.99"]
        plane.put("late.yaml", pod("late", "10.0.0.99", "late"))
        assert names(await client.receive(ADDRESS)) == {"Kubernetes//Pod/default/late"}


# -- transports and admin --------------------------------------------------------------------------------------


async def test_tcp_serves_the_same(plane: Plane) -> None:
    async with DeltaClient(f"127.0.0.1:{plane.plane.xds.ports[0]}", node()) as client:
        assert CLUSTER in names(await client.fetch(CDS))


async def test_admin_tells_of_clients_and_configuration(plane: Plane, tmp_path: Path) -> None:
    import aiohttp

    plane.put("bad.yaml", ROUTE.replace("hosts", "host") % "1s")
    async with plane.delta() as client:
        await client.fetch(CDS)
        await until(lambda: plane.plane.report.counts()["error"] > 0, "error reported")
        connector = aiohttp.UnixConnector(path=str(tmp_path / "admin.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:

            async def get(path: str, status: int = 200) -> str:
                async with session.get(f"http://localhost{path}") as response:
                    assert response.status == status
                    return await response.text()

            async with asyncio.timeout(5):
                found = json.loads(await get("/status"))
                while found["clients"][0]["types"][CDS]["state"] != "SYNCED":
                    await asyncio.sleep(0.01)  # the client's acknowledgement is on its way
                    found = json.loads(await get("/status"))
            assert found["resources"] == {"Pod": 2, "Service": 2}
            texts = [issue["text"] for issue in json.loads(await get("/config_errors"))["issues"]]
            assert any("spec.host: unknown field; did you mean hosts?" in text for text in texts), texts
            files = json.loads(await get("/config_files"))["files"]
            assert files[str(plane.config / "base.yaml")]["objects"] == 4
            assert (await get("/healthz/ready")).strip() == "ready"
            metrics = await get("/stats/prometheus")
            assert f'nodeagent_controlplane_xds_pushes_total{{type="{CDS}"}} 1.0' in metrics
            assert 'nodeagent_controlplane_config_issues{severity="error"} 2.0' in metrics
            assert "/config_errors" in await get("/nothing", 404)
