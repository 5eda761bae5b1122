"""Large answers in parts, for clients that know parts."""

from __future__ import annotations

from typing import Any

from harness.control_plane import pod, service
from harness.xds_client import ADDRESS, AUTHORIZATION, CDS, names
from harness.xds_plane import Plane, until

from nodeagent.controlplane.xds.delta import PART
from nodeagent.model.extensions import MORE, PARTS_FEATURE
from nodeagent.xds.types import WORKLOAD_TYPES

SERVICES = 2 * PART + 300
WHO: dict[str, Any] = {"kind": "ztunnel", "pod": "agent", "namespace": "system", "on": "node"}


async def _large(plane: Plane) -> None:
    plane.put("many.yaml", *(service(f"s{i}", f"10.97.{i >> 8}.{i & 255}") for i in range(SERVICES)))
    elsewhere = pod("far", "10.0.0.77", "far").replace("nodeName: node", "nodeName: other")
    plane.put("far.yaml", elsewhere)
    registry = plane.plane.world.registry
    await until(
        lambda: len(registry.services) > SERVICES and len(registry.workloads) > 2, "mesh in force", 20
    )


async def test_a_large_answer_comes_in_parts_and_the_last_says_so(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        await client.ask(ADDRESS)
        parts = [await client.receive(ADDRESS) for _ in range(3)]
        assert [part.control_plane.identifier for part in parts] == [MORE, MORE, ""]
        assert [len(part.resources) >= PART for part in parts] == [True, True, False]
        found = [item.name for part in parts for item in part.resources]
        assert len(found) == len(set(found)) == SERVICES + 2 + 3
        await client.silence()


async def test_what_is_on_the_clients_node_comes_first(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        await client.ask(ADDRESS)
        first = [item.name for item in (await client.receive(ADDRESS)).resources]
    assert first[:2] == ["Kubernetes//Pod/default/reviews-1", "Kubernetes//Pod/default/web"]
    assert not any("/Pod/" in name for name in first[2:])


async def test_others_get_it_whole(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO) as client:
        response = await client.fetch(ADDRESS)
        assert len(response.resources) == SERVICES + 2 + 3
        assert not response.control_plane.identifier
    async with plane.delta() as client:
        assert len(names(await client.fetch(CDS))) > SERVICES


async def test_a_refused_part_is_not_forgotten_with_the_next(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        await client.ask(ADDRESS)
        parts = [await client.receive(ADDRESS) for _ in range(3)]
        await client.ack(parts[0])
        await client.ask(ADDRESS, nonce=parts[1].nonce, error="no thanks")
        await client.ack(parts[2])
        await client.fetch(AUTHORIZATION)
        state = plane.client_state(ADDRESS)
        assert (state["nack"], state["nacks"], state["state"]) == ("no thanks", 1, "STALE")
        plane.put("late.yaml", pod("late", "10.0.0.99", "late"))
        await client.ack(await client.receive(ADDRESS))
        await until(lambda: plane.client_state(ADDRESS)["state"] == "SYNCED", "synced")
        assert plane.client_state(ADDRESS)["nack"] is None


async def test_parts_that_are_all_taken_are_in_sync(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        await client.ask(ADDRESS)
        for number in range(3):
            part = await client.receive(ADDRESS)
            assert plane.client_state(ADDRESS)["state"] == "STALE", number
            await client.ack(part)
        await until(lambda: plane.client_state(ADDRESS)["state"] == "SYNCED", "synced")


async def test_coming_back_with_everything_is_told_at_once(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        await client.ask(ADDRESS)
        parts = [await client.receive(ADDRESS) for _ in range(3)]
    held = {item.name: item.version for part in parts for item in part.resources}
    held["default/gone"] = "1"
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        await client.ask(ADDRESS, versions=held)
        response = await client.receive(ADDRESS)
        assert list(response.removed_resources) == ["default/gone"]
        assert not response.resources
        assert not response.control_plane.identifier


async def test_policies_do_not_wait_for_the_addresses(plane: Plane) -> None:
    await _large(plane)
    async with plane.delta(**WHO, features=[PARTS_FEATURE]) as client:
        for type_url in WORKLOAD_TYPES:
            await client.ask(type_url)
        types = [(await client.receive()).type_url for _ in range(4)]
        assert types == [AUTHORIZATION, ADDRESS, ADDRESS, ADDRESS]
