"""L4 policies from the workload stream to the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import Node, running

from nodeagent.proto import authorization_pb2
from nodeagent.snapshot.policies import Always, RuleAction, Rules
from nodeagent.xds.types import ADDRESS, AUTHORIZATION

UID = "Kubernetes//Pod/default/productpage-1"
STRICT = "istio-system/istio_converted_static_strict"


def strict() -> Any:
    """Mesh-wide STRICT, as istiod tells node proxies of it."""
    return json_format.ParseDict(
        {
            "name": "istio_converted_static_strict",
            "namespace": "istio-system",
            "scope": "WORKLOAD_SELECTOR",
            "action": "DENY",
            "rules": [{"clauses": [{"matches": [{"notPrincipals": [{"presence": {}}]}]}]}],
        },
        authorization_pb2.Authorization(),
    )


def select(server: MeshServer, *policies: str) -> None:
    """Have the workload list policies."""
    message = xds.workload("productpage-1", "10.244.0.5", services={"productpage": (9080, 9080)})
    message.workload.authorization_policies.extend(policies)
    server.put(ADDRESS, UID, message)


def every(node: Node) -> tuple[Rules, ...]:
    return node.engine.applied.inbound["uid-1"].every


def names(node: Node) -> list[str]:
    return [policy.name for rules in every(node) for policy in rules.policies]


async def test_a_listed_policy_is_in_force_until_it_goes(node: Node) -> None:
    await node.enroll()
    assert every(node) == ()
    node.server.put(AUTHORIZATION, STRICT, strict())
    select(node.server, STRICT)
    await node.until(lambda: every(node), "policy")
    assert names(node) == ["ns[istio-system]-policy[istio_converted_static_strict]-rule[0]"]
    assert every(node)[0].action is RuleAction.DENY
    node.server.drop(AUTHORIZATION, STRICT)
    await node.until(lambda: not every(node), "the policy's end")


async def test_nothing_is_let_in_before_the_policies_are_known(server: MeshServer, tmp_path: Path) -> None:
    server.mute = {AUTHORIZATION}
    async with running(server, tmp_path) as node:
        await node.enroll()
        await asyncio.sleep(0.1)
        assert node.engine.applied.inbound == {}
        server.mute = set()
        select(server, STRICT)
        server.put(AUTHORIZATION, STRICT, strict())
        await node.until(
            lambda: "uid-1" in node.engine.applied.inbound and every(node), "inbound with policy"
        )
        first = next(snapshot for snapshot in node.engine.history if "uid-1" in snapshot.inbound)
        assert first.inbound["uid-1"].every, "there was no moment without"


async def test_no_policies_at_all_is_an_answer(server: MeshServer, tmp_path: Path) -> None:
    server.delay = 0.3
    async with running(server, tmp_path) as node:
        await node.enroll()
        await node.until(lambda: "uid-1" in node.engine.applied.inbound, "inbound")


async def test_a_bad_policy_is_rejected_by_name_and_closes_its_namespace(node: Node) -> None:
    await node.enroll()
    bad = strict()
    bad.scope = 9
    node.server.put(AUTHORIZATION, "default/bad", bad)
    await node.until(lambda: every(node), "denial")
    assert every(node)[0].policies[0].check == Always()
    await node.until(lambda: node.server.nacks, "NACK")
    assert node.server.nacks == [(AUTHORIZATION, "default/bad: scope 9 is not known")]
    good = strict()
    good.namespace = "elsewhere"
    node.server.put(AUTHORIZATION, "default/bad", good)
    await node.until(lambda: not every(node), "the denial's end")


async def test_what_cannot_be_decoded_closes_too(node: Node) -> None:
    await node.enroll()
    broken = discovery_pb2.Resource(name="default/broken", version="1")
    broken.resource.type_url = AUTHORIZATION
    broken.resource.value = b"\xff\xff\xff"
    client = next(client for client in node.server.clients if AUTHORIZATION in client.wanted)
    client.session.respond(AUTHORIZATION, [broken])
    await node.until(lambda: every(node), "denial")
    assert names(node) == ["ns[default]-policy[broken]-unreadable"]


async def test_policies_survive_a_restart_without_control_plane(server: MeshServer, tmp_path: Path) -> None:
    server.put(AUTHORIZATION, STRICT, strict())
    select(server, STRICT)
    async with running(server, tmp_path) as node:
        await node.enroll()
        await node.until(lambda: every(node), "policy")
    await server.stop()
    async with running(server, tmp_path) as node:
        await node.enroll()
        await node.until(lambda: "uid-1" in node.engine.applied.inbound, "inbound from disk")
        assert names(node) == ["ns[istio-system]-policy[istio_converted_static_strict]-rule[0]"]
