"""The ADS server under real gRPC clients: every rule of the protocol, delta and state of the world."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from harness.control_plane import pod, service
from harness.xds_client import (
    ADDRESS,
    AUTHORIZATION,
    CDS,
    EDS,
    LDS,
    RDS,
    VHDS,
    DeltaClient,
    SotwClient,
    names,
    node,
    unpack,
)

from nodeagent.app.controlplane import ControlPlane
from nodeagent.config.controlplane import ControlPlaneConfig
from nodeagent.proto import workload_pb2

REVIEWS = "reviews.default.svc.cluster.local"
RATINGS = "ratings.default.svc.cluster.local"
CLUSTER = f"outbound|9080||{REVIEWS}"
BASE = (
    service("reviews", "10.96.0.1"),
    service("db", "10.96.0.2", "tcp", 5432),
    pod("web", "10.0.0.1", "web"),
    pod("reviews-1", "10.0.0.2", "reviews"),
)
ROUTE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - {route: [{destination: {host: reviews}}], timeout: %s}
"""
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


class Plane:
    """A control plane in this process, over a unix socket, with files that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config"
        self.config.mkdir()
        self.put("base.yaml", *BASE)
        self.socket = folder / "xds.sock"
        self.plane = ControlPlane(
            ControlPlaneConfig(
                config=(self.config,), listen=("127.0.0.1:0",), unix=self.socket, admin=folder / "admin.sock"
            )
        )

    def put(self, name: str, *documents: str) -> None:
        scratch = self.config.parent / "scratch"
        scratch.write_text("---\n".join(documents))
        scratch.replace(self.config / name)

    def remove(self, name: str) -> None:
        (self.config / name).unlink()

    @property
    def target(self) -> str:
        return f"unix:{self.socket}"

    def delta(self, **who: Any) -> DeltaClient:
        return DeltaClient(self.target, node(**who))

    def sotw(self, **who: Any) -> SotwClient:
        return SotwClient(self.target, node(**who))

    def client_state(self, type_url: str) -> dict[str, Any]:
        (client,) = self.plane.hub.clients()
        state: dict[str, Any] = client["types"][type_url]
        return state


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    found = Plane(tmp_path)
    await found.plane.start()
    yield found
    await found.plane.stop()


async def until(condition: Any, what: str, timeout: float = 5) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


# -- delta -----------------------------------------------------------------------------------------------------


async def test_empty_first_request_means_everything(plane: Plane) -> None:
    async with plane.delta() as client:
        found = names(await client.fetch(CDS))
        assert {CLUSTER, "PassthroughCluster", "BlackHoleCluster", "InboundPassthroughCluster"} <= found
        assert {"virtualInbound", "virtualOutbound", "0.0.0.0_9080", "10.96.0.2_5432"} == names(
            await client.fetch(LDS)
        )
        assert f"default/{REVIEWS}" in names(await client.fetch(ADDRESS))
        assert names(await client.fetch(AUTHORIZATION)) == set()


async def test_empty_later_request_does_not_mean_everything(plane: Plane) -> None:
    async with plane.delta() as client:
        response = await client.fetch(CDS, CLUSTER)
        assert names(response) == {CLUSTER}
        await client.ask(CDS, nonce=response.nonce)
        await client.silence()


async def test_versions_are_of_the_content(plane: Plane) -> None:
    async with plane.delta() as one, plane.delta() as other:
        first, second = await one.fetch(CDS), await other.fetch(CDS)
        assert {item.name: item.version for item in first.resources} == {
            item.name: item.version for item in second.resources
        }


async def test_acknowledgement_is_shown(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.ask(CDS)
        response = await client.receive(CDS)
        assert plane.client_state(CDS)["state"] == "STALE"
        await client.ack(response)
        await until(lambda: plane.client_state(CDS)["state"] == "SYNCED", "synced")
        assert plane.client_state(CDS)["acked_version"] == response.system_version_info


async def test_refused_version_is_shown_and_not_sent_again(plane: Plane) -> None:
    async with plane.delta() as client:
        response = await client.fetch(RDS, "9080")
        plane.put("route.yaml", ROUTE % "1s")
        response = await client.receive(RDS)
        await client.ask(RDS, nonce=response.nonce, error="no thanks")
        await until(lambda: plane.client_state(RDS)["nack"] == "no thanks", "nack shown")
        plane.put("other.yaml", service("other", "10.96.0.9", port=1234))
        await client.silence()
        plane.put("route.yaml", ROUTE % "2s")
        response = await client.receive(RDS)
        await client.ack(response)
        await until(lambda: plane.client_state(RDS)["nack"] is None, "nack cleared")
        assert plane.client_state(RDS)["nacks"] == 1


async def test_refusal_is_told_by_the_error_alone(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.ask(CDS)
        response = await client.receive(CDS)
        await client.ask(CDS, ["x"], nonce=response.nonce, error="bad")
        await client.receive(CDS)
        assert plane.client_state(CDS)["nacks"] == 1


async def test_stale_nonce_still_changes_subscriptions(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.fetch(EDS, CLUSTER)
        await client.ask(EDS, ["outbound|5432||db.default.svc.cluster.local"], nonce="no such nonce")
        assert names(await client.receive(EDS)) == {"outbound|5432||db.default.svc.cluster.local"}


async def test_subscribing_again_is_answered_again(plane: Plane) -> None:
    async with plane.delta() as client:
        first = await client.fetch(EDS, CLUSTER)
        again = await client.fetch(EDS, CLUSTER)
        assert names(first) == names(again) == {CLUSTER}


async def test_missing_resource_is_named_and_pushed_when_it_comes(plane: Plane) -> None:
    async with plane.delta() as client:
        response = await client.fetch(CDS, f"outbound|9080||{RATINGS}")
        assert list(response.removed_resources) == [f"outbound|9080||{RATINGS}"]
        plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
        assert names(await client.receive(CDS)) == {f"outbound|9080||{RATINGS}"}
        plane.remove("ratings.yaml")
        assert list((await client.receive(CDS)).removed_resources) == [f"outbound|9080||{RATINGS}"]


async def test_listener_of_an_address_that_comes_later(plane: Plane) -> None:
    async with plane.delta() as client:
        response = await client.fetch(LDS, "10.96.0.77_7000", "0.0.0.0_7001")
        assert set(response.removed_resources) == {"10.96.0.77_7000", "0.0.0.0_7001"}
        plane.put(
            "late.yaml", service("late", "10.96.0.77", "tcp", 7000), service("web2", "10.96.0.78", port=7001)
        )
        assert names(await client.receive(LDS)) == {"10.96.0.77_7000", "0.0.0.0_7001"}


async def test_dropping_a_name_that_the_wildcard_covers_is_answered(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.fetch(CDS, "*", CLUSTER)
        await client.ask(CDS, unsubscribe=[CLUSTER])
        assert names(await client.receive(CDS)) == {CLUSTER}


async def test_dropping_the_wildcard_keeps_the_names(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.fetch(CDS, "*", CLUSTER)
        await client.ask(CDS, unsubscribe=["*"])
        plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
        await client.silence()
        plane.put("base.yaml", service("reviews", "10.96.0.1", "grpc"), *BASE[1:])
        assert names(await client.receive(CDS)) == {CLUSTER}


async def test_unsubscribed_name_is_not_pushed(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.fetch(EDS, CLUSTER)
        await client.ask(EDS, unsubscribe=[CLUSTER])
        plane.put("more.yaml", pod("reviews-2", "10.0.0.3", "reviews"))
        await client.silence()


async def test_coming_back_with_versions_brings_only_what_changed(plane: Plane) -> None:
    async with plane.delta() as client:
        response = await client.fetch(CDS)
    versions = {item.name: item.version for item in response.resources}
    plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta() as client:
        await client.ask(CDS, versions={**versions, "outbound|1||gone": "7", "BlackHoleCluster": "old"})
        response = await client.receive(CDS)
        assert names(response) == {f"outbound|9080||{RATINGS}", "BlackHoleCluster"}
        assert list((await client.receive(CDS)).removed_resources) == ["outbound|1||gone"]


async def test_coming_back_with_names_and_versions(plane: Plane) -> None:
    async with plane.delta() as client:
        response = await client.fetch(EDS, CLUSTER)
    versions = {item.name: item.version for item in response.resources}
    async with plane.delta() as client:
        await client.ask(EDS, [CLUSTER], versions=versions)
        assert names(await client.receive(EDS)) == set()
        plane.put("more.yaml", pod("reviews-2", "10.0.0.3", "reviews"))
        assert names(await client.receive(EDS)) == {CLUSTER}


async def test_order_is_make_before_break(plane: Plane) -> None:
    plane.put("ratings.yaml", service("ratings", "10.96.0.3", port=1000))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.delta() as client:
        for type_url in (CDS, LDS):
            await client.fetch(type_url)
        for type_url, there, later in (
            (RDS, "1000", "2000"),
            (EDS, f"outbound|1000||{RATINGS}", f"outbound|2000||{RATINGS}"),
        ):
            assert names(await client.fetch(type_url, there)) == {there}
            assert list((await client.fetch(type_url, later)).removed_resources) == [later]
        plane.put("ratings.yaml", service("ratings", "10.96.0.3", port=2000))
        responses = [await client.receive() for _ in range(8)]
        assert [response.type_url for response in responses] == [CDS, EDS, LDS, RDS, RDS, LDS, EDS, CDS]
        assert all(not response.removed_resources for response in responses[:4])
        assert all(not response.resources for response in responses[4:])
        assert list(responses[-1].removed_resources) == [f"outbound|1000||{RATINGS}"]


async def test_changed_cluster_gets_its_endpoints_again(plane: Plane) -> None:
    """Envoy warms a changed cluster up until endpoints come, also if they are as before."""
    async with plane.delta() as client:
        await client.fetch(CDS)
        await client.fetch(EDS, CLUSTER)
        rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\n"
        rule += "spec:\n  host: reviews\n"
        plane.put("rule.yaml", rule + "  trafficPolicy: {loadBalancer: {simple: RANDOM}}\n")
        assert names(await client.receive(CDS)) == {CLUSTER}
        assert names(await client.receive(EDS)) == {CLUSTER}


async def test_endpoint_change_touches_endpoints_and_address_only(plane: Plane) -> None:
    async with plane.delta() as client:
        for type_url in (CDS, LDS, ADDRESS):
            await client.fetch(type_url)
        await client.fetch(RDS, "9080")
        await client.fetch(EDS, CLUSTER)
        plane.put("more.yaml", pod("reviews-2", "10.0.0.3", "reviews"))
        response = await client.receive(EDS)
        assignment = unpack(response.resources[0], endpoint_pb2.ClusterLoadAssignment)
        assert len(assignment.endpoints[0].lb_endpoints) == 2
        assert names(await client.receive(ADDRESS)) == {"Kubernetes//Pod/default/reviews-2"}
        await client.silence()


async def test_type_that_is_not_served_is_answered(plane: Plane) -> None:
    async with plane.delta() as client:
        await client.ask("type.googleapis.com/example.Unknown", ["a"])
        response = await client.receive("type.googleapis.com/example.Unknown")
        assert list(response.removed_resources) == ["a"]
        assert CLUSTER in names(await client.fetch(CDS))


async def test_too_many_names_end_the_stream(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.controlplane.xds.stream.MAX_NAMES", 3)
    async with plane.delta() as client:
        await client.ask(EDS, ["a", "b", "c", "d"])
        assert await client.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 3 names" in await client.call.details()


async def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    await plane.plane.start()
    async with plane.delta() as client:
        await client.fetch(CDS)
        await plane.plane.stop()
        assert await client.call.code() is grpc.StatusCode.OK
    assert not plane.socket.exists()


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


# -- state of the world ----------------------------------------------------------------------------------------


def held(response: Any, message: Any = cluster_pb2.Cluster) -> set[str]:
    return {unpack(item, message).name for item in response.resources}


async def test_sotw_clusters_are_complete(plane: Plane) -> None:
    plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    async with plane.sotw() as client:
        before = held(await client.fetch(CDS))
        plane.remove("ratings.yaml")
        after = held(await client.receive(CDS))
        assert before - after == {f"outbound|9080||{RATINGS}"}


async def test_sotw_empty_means_everything_until_a_name_is_given(plane: Plane) -> None:
    async with plane.sotw() as client:
        response = await client.fetch(CDS)
        assert len(held(response)) > 3
        await client.ack(response, [CLUSTER])
        response = await client.receive(CDS)
        assert held(response) == {CLUSTER}
        await client.ack(response, [])
        assert held(await client.receive(CDS)) == set()


async def test_sotw_stale_nonce_is_ignored(plane: Plane) -> None:
    async with plane.sotw() as client:
        response = await client.fetch(EDS, CLUSTER)
        await client.ask(EDS, [CLUSTER, "outbound|5432||db.default.svc.cluster.local"], nonce="stale")
        await client.silence()
        await client.ack(response, [CLUSTER, "outbound|5432||db.default.svc.cluster.local"])
        response = await client.receive(EDS)
        found = {unpack(item, endpoint_pb2.ClusterLoadAssignment).cluster_name for item in response.resources}
        assert found == {"outbound|5432||db.default.svc.cluster.local"}


async def test_sotw_acknowledgement_is_not_answered(plane: Plane) -> None:
    async with plane.sotw() as client:
        await client.fetch(CDS)
        await client.fetch(EDS, CLUSTER)
        await client.silence()
        assert plane.client_state(CDS)["state"] == plane.client_state(EDS)["state"] == "SYNCED"


async def test_sotw_refused_version_is_not_sent_again(plane: Plane) -> None:
    async with plane.sotw() as client:
        await client.ask(CDS)
        response = await client.receive(CDS)
        await client.ask(CDS, nonce=response.nonce, error="not this")
        await client.silence()
        assert plane.client_state(CDS)["nack"] == "not this"
        plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
        assert f"outbound|9080||{RATINGS}" in held(await client.receive(CDS))


async def test_sotw_dropped_name_that_is_asked_for_again_is_answered(plane: Plane) -> None:
    async with plane.sotw() as client:
        response = await client.fetch(EDS, CLUSTER)
        await client.ack(response, ["outbound|5432||db.default.svc.cluster.local"])
        response = await client.receive(EDS)
        await client.ack(response, ["outbound|5432||db.default.svc.cluster.local", CLUSTER])
        response = await client.receive(EDS)
        (item,) = response.resources
        assert unpack(item, endpoint_pb2.ClusterLoadAssignment).cluster_name == CLUSTER


async def test_sotw_coming_back_with_the_version_in_force(plane: Plane) -> None:
    async with plane.sotw() as client:
        response = await client.fetch(CDS)
    async with plane.sotw() as client:
        await client.ask(CDS, version=response.version_info)
        await client.silence()
        assert plane.client_state(CDS)["state"] == "SYNCED"
        plane.put("ratings.yaml", service("ratings", "10.96.0.3"))
        assert f"outbound|9080||{RATINGS}" in held(await client.receive(CDS))


async def test_sotw_cluster_goes_after_the_listener_that_uses_it(plane: Plane) -> None:
    plane.put("old.yaml", service("old", "10.96.0.3", "tcp", 1000))
    await until(lambda: plane.plane.world.generation == 2, "change in force")
    old, new = (f"outbound|1000||{name}.default.svc.cluster.local" for name in ("old", "new"))
    async with plane.sotw() as client:
        await client.fetch(CDS)
        await client.fetch(LDS)
        plane.remove("old.yaml")
        plane.put("new.yaml", service("new", "10.96.0.3", "tcp", 1000))
        seen = [await client.receive() for _ in range(3)]
        while seen[-1].type_url != CDS or old in held(seen[-1]):
            seen.append(await client.receive())
        last_listeners = max(index for index, found in enumerate(seen) if found.type_url == LDS)
        assert old not in held(seen[-1])
        assert last_listeners < len(seen) - 1
        first_new = next(found for found in seen if found.type_url == CDS and new in held(found))
        assert seen.index(first_new) < last_listeners


async def test_sotw_missing_names_do_not_block(plane: Plane) -> None:
    async with plane.sotw() as client:
        await client.ask(EDS, ["outbound|1||nowhere"])
        assert len((await client.receive(EDS)).resources) == 0
        await client.ask("type.googleapis.com/example.Unknown")
        assert len((await client.receive("type.googleapis.com/example.Unknown")).resources) == 0


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

            found = json.loads(await get("/status"))
            assert found["clients"][0]["types"][CDS]["state"] == "SYNCED"
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
