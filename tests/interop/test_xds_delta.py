"""The ADS server under a real gRPC client: the rules of the delta protocol."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from harness.control_plane import pod, service
from harness.xds_client import (
    ADDRESS,
    AUTHORIZATION,
    CDS,
    EDS,
    LDS,
    RDS,
    names,
    unpack,
)
from harness.xds_plane import BASE, CLUSTER, RATINGS, REVIEWS, ROUTE, Plane, until


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
