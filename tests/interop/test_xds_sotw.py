"""The ADS server under a real gRPC client: the rules of the state of the world protocol."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from harness.control_plane import service
from harness.xds_client import (
    CDS,
    EDS,
    LDS,
    unpack,
)
from harness.xds_plane import CLUSTER, RATINGS, Plane, until


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
