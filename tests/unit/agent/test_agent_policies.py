"""L4 policies from the workload stream to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import Node, running
from harness.guard_filters import HTTP_EXT_AUTHZ, HTTP_RBAC, guard, http_chain, listener
from harness.strict_policy import STRICT, strict_authorization

from nodeagent.proto import authorization_pb2
from nodeagent.snapshot.address import format_address
from nodeagent.snapshot.policies import Always, Callout, RuleAction, Rules
from nodeagent.snapshot.values import Inbound, Protocol
from nodeagent.xds.types import ADDRESS, AUTHORIZATION, CLUSTER, ENDPOINTS, LISTENER

UID = "Kubernetes//Pod/default/productpage-1"


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
    node.server.put(AUTHORIZATION, STRICT, strict_authorization())
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
        server.put(AUTHORIZATION, STRICT, strict_authorization())
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
    bad = strict_authorization()
    bad.scope = 9
    node.server.put(AUTHORIZATION, "default/bad", bad)
    await node.until(lambda: every(node), "denial")
    assert every(node)[0].policies[0].check == Always()
    await node.until(lambda: node.server.nacks, "NACK")
    assert node.server.nacks == [(AUTHORIZATION, "default/bad: scope 9 is not known")]
    good = strict_authorization()
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
    server.put(AUTHORIZATION, STRICT, strict_authorization())
    select(server, STRICT)
    async with running(server, tmp_path) as node:
        await node.enroll()
        await node.until(lambda: every(node), "policy")
    await server.stop()
    async with running(server, tmp_path) as node:
        await node.enroll()
        await node.until(lambda: "uid-1" in node.engine.applied.inbound, "inbound from disk")
        assert names(node) == ["ns[istio-system]-policy[istio_converted_static_strict]-rule[0]"]


def inbound(node: Node) -> Inbound | None:
    return node.engine.applied.inbound.get("uid-1")


def lock() -> Any:
    """An AuthorizationPolicy that lets nobody in."""
    return authorization_pb2.Authorization(
        name="lock", namespace="default", scope=authorization_pb2.NAMESPACE
    )


class TestWithoutListener:
    """A control plane that knows L4 only says that there is no inbound listener."""

    async def test_ports_are_tcp_and_all_policies_are_asked(self, node: Node) -> None:
        node.server.drop(LISTENER, "virtualInbound")
        node.server.put(AUTHORIZATION, "default/lock", lock())
        await node.enroll()
        found = await node.until(lambda: inbound(node), "inbound")
        assert (found.ports, found.fallback) == ((), Protocol.TCP)
        await node.until(lambda: every(node), "policy")
        assert every(node) == (Rules(RuleAction.ALLOW, ()),)

    async def test_a_listener_that_comes_takes_over_and_stays(self, node: Node) -> None:
        node.server.drop(LISTENER, "virtualInbound")
        node.server.put(AUTHORIZATION, "default/lock", lock())
        await node.enroll()
        await node.until(lambda: inbound(node) and every(node), "policy")
        node.server.put(LISTENER, "virtualInbound", listener(http_chain(guard(HTTP_RBAC, rules={}))))
        await node.until(lambda: not every(node), "the listener's own guards only")
        guarded = inbound(node)
        assert guarded is not None
        assert guarded.fallback_guards.request == (Rules(RuleAction.ALLOW, ()),)
        node.server.drop(LISTENER, "virtualInbound")
        await asyncio.sleep(0.2)
        assert inbound(node) == guarded, "its guards must not go with it"

    async def test_silence_is_no_such_answer(self, server: MeshServer, tmp_path: Path) -> None:
        server.mute = {LISTENER}
        async with running(server, tmp_path) as node:
            view = await node.enroll()
            controller = node.agent.views.get(view)
            assert controller is not None
            controller.stream.protocol.give_up(0)
            assert controller.lacks_inbound
            await asyncio.sleep(0.1)
            assert inbound(node) is None
            warning = f"view {view}: there is no usable virtualInbound listener; nothing is let in"
            assert warning in node.agent.state.status().warnings

    async def test_it_is_remembered_over_a_restart(self, server: MeshServer, tmp_path: Path) -> None:
        server.drop(LISTENER, "virtualInbound")
        server.put(AUTHORIZATION, "default/lock", lock())
        async with running(server, tmp_path) as node:
            await node.enroll()
            await node.until(lambda: inbound(node) and every(node), "policy")
        await server.stop()
        async with running(server, tmp_path) as node:
            await node.enroll()
            await node.until(lambda: inbound(node), "inbound from disk")
            assert every(node) == (Rules(RuleAction.ALLOW, ()),)


AUTHORIZER = f"outbound|9000||{xds.fqdn('authz')}"


def asking(**fields: Any) -> Mapping[str, Any]:
    service = {"envoyGrpc": {"clusterName": AUTHORIZER}}
    return http_chain(guard(HTTP_EXT_AUTHZ, grpcService=service, **fields), destinationPort=9080)


class TestCallouts:
    async def test_the_port_opens_once_the_authorizer_is_known(self, node: Node) -> None:
        node.server.mute = {ENDPOINTS}
        node.server.put(CLUSTER, AUTHORIZER, xds.cluster(AUTHORIZER))
        node.server.put(LISTENER, "virtualInbound", listener(asking()))
        view = await node.enroll()
        await node.until(lambda: AUTHORIZER in node.server.wanted(ENDPOINTS), "subscription")
        assert inbound(node) is None
        node.server.mute = set()
        node.server.put(ENDPOINTS, AUTHORIZER, xds.assignment(AUTHORIZER, "10.244.0.77", port=9000))
        found = await node.until(lambda: inbound(node), "inbound")
        (stage,) = found.ports[0].guards.request
        assert isinstance(stage, Callout)
        first = next(snapshot for snapshot in node.engine.history if "uid-1" in snapshot.inbound)
        assert stage.cluster in first.views[view].clusters
        (endpoint,) = first.views[view].endpoints[stage.cluster]
        assert format_address(endpoint.address) == "10.244.0.77"

    async def test_what_is_in_force_stays_meanwhile(self, node: Node) -> None:
        await node.enroll()
        before = inbound(node)
        assert before is not None
        node.server.mute = {CLUSTER}
        node.server.put(LISTENER, "virtualInbound", listener(asking()))
        await node.until(lambda: AUTHORIZER in node.server.wanted(CLUSTER), "subscription")
        assert inbound(node) == before

    async def test_an_authorizer_that_does_not_exist_refuses(self, node: Node) -> None:
        view = await node.enroll()
        node.server.put(LISTENER, "virtualInbound", listener(asking()))
        await node.until(lambda: inbound(node) and inbound(node).ports[0].guards.request, "guards")  # type: ignore[union-attr]
        assert node.view(view).clusters[f"{view}/{AUTHORIZER}"].kind.name == "BLACKHOLE"

    async def test_its_cluster_goes_with_the_guard(self, node: Node) -> None:
        node.server.put(CLUSTER, AUTHORIZER, xds.cluster(AUTHORIZER))
        node.server.put(ENDPOINTS, AUTHORIZER, xds.assignment(AUTHORIZER, "10.244.0.77", port=9000))
        node.server.put(LISTENER, "virtualInbound", listener(asking()))
        view = await node.enroll()
        await node.until(lambda: f"{view}/{AUTHORIZER}" in node.view(view).clusters, "cluster")
        node.server.put(LISTENER, "virtualInbound", xds.inbound_listener({9080: "http"}))
        await node.until(lambda: f"{view}/{AUTHORIZER}" not in node.view(view).clusters, "the cluster's end")
        await node.until(lambda: AUTHORIZER not in node.server.wanted(CLUSTER), "the subscription's end")


class TestWhatPeopleSee:
    async def test_an_l4_policy_and_whom_it_is_for(self, node: Node) -> None:
        node.server.put(AUTHORIZATION, STRICT, strict_authorization())
        node.server.put(AUTHORIZATION, "default/lock", lock())
        select(node.server, STRICT)
        await node.enroll()
        await node.until(lambda: len(node.agent.workloads.policies) == 2 and every(node), "policies")
        rows = {row.name: row for row in node.agent.state.policies()}
        row = rows["istio_converted_static_strict"]
        assert (row.kind, row.action, row.scope) == ("PeerAuthentication", "DENY", "WorkloadSelector")
        assert (row.workloads, row.state) == (("default/productpage-1",), "in force")
        # The listener's filters stand for it.
        assert (rows["lock"].workloads, rows["lock"].state) == (("default/productpage-1",), "in its listener")

    async def test_the_policies_of_a_listener(self, node: Node) -> None:
        rule = {"permissions": [{"any": True}], "principals": [{"any": True}]}
        names = {f"ns[shop]-policy[p]-rule[{index}]": rule for index in (0, 1)}
        custom = {"istio-ext-authz-own-ns[shop]-policy[ask]-rule[0]": rule}
        chain = http_chain(
            guard(HTTP_RBAC, shadowRules={"policies": custom}, shadowRulesStatPrefix="istio_ext_authz_"),
            guard(HTTP_RBAC, rules={"action": "LOG", "policies": names}),
            guard(HTTP_EXT_AUTHZ),
        )
        node.server.put(LISTENER, "virtualInbound", listener(chain))
        view = await node.enroll()
        rows = {(row.namespace, row.name): row for row in node.agent.state.policies()}
        assert (rows["shop", "p"].action, rows["shop", "p"].rules) == ("AUDIT", 2)
        assert (rows["shop", "ask"].action, rows["shop", "ask"].dry_run) == ("CUSTOM", False)
        assert rows["shop", "p"].source == f"virtualInbound of {view}"
        assert "ext_authz without a service" in rows["", ""].error
        assert rows["", ""].state == "closed"

    async def test_one_that_cannot_be_read(self, node: Node) -> None:
        await node.enroll()
        bad = strict_authorization()
        bad.scope = 9
        node.server.put(AUTHORIZATION, "default/bad", bad)
        await node.until(lambda: every(node), "denial")
        (row,) = node.agent.state.policies()
        assert (row.name, row.state, row.error) == ("bad", "closed", "scope 9 is not known")
        warning = (
            "policy default/bad cannot be read: scope 9 is not known; whom it may be for lets nothing in"
        )
        assert warning in node.agent.state.status().warnings

    async def test_the_dump_is_ztunnels(self, node: Node) -> None:
        message = strict_authorization()
        match = message.rules[0].clauses[0].matches.add()
        match.principals.add(exact="cluster.local/ns/a/sa/b")
        match.source_ips.add(address=b"\x0a\x00\x00\x00", length=8)
        match.destination_ports.append(80)
        match.service_accounts.add(namespace="a", serviceAccount="b")
        node.server.put(AUTHORIZATION, STRICT, message)
        await node.until(lambda: len(node.agent.workloads.policies), "policy")
        (dumped,) = node.agent.state.authorizations()
        assert dumped == {
            "name": "istio_converted_static_strict",
            "namespace": "istio-system",
            "scope": "WorkloadSelector",
            "action": "Deny",
            "rules": [
                [
                    [
                        {"notPrincipals": [{"Presence": []}]},
                        {
                            "principals": [{"Exact": "cluster.local/ns/a/sa/b"}],
                            "sourceIps": ["10.0.0.0/8"],
                            "destinationPorts": [80],
                            "serviceAccounts": [{"namespace": "a", "serviceAccount": "b"}],
                        },
                    ]
                ]
            ],
            "dryRun": False,
        }
