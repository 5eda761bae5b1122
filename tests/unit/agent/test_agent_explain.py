"""What an agent answers to `nodeagent explain`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import xds_resources as xds
from harness.agent_node import OUTBOUND, REVIEWS, VIP, Node

from nodeagent.admin.explain import Asked, RouteExplanation
from nodeagent.dataplane.route_choice import RouteChoice
from nodeagent.errors import QueryError
from nodeagent.snapshot.address import parse_address
from nodeagent.xds.types import ADDRESS, LISTENER

POD = "default/productpage-1"


async def route(
    node: Node, host: str, port: int = 9080, method: str | None = "GET", **more: Any
) -> RouteExplanation:
    return await node.agent.state.explain_route(Asked(POD, host, port, method, **more))


def said(found: RouteExplanation) -> dict[str, str]:
    return {line.step: line.text for line in found.lines}


async def known(node: Node, vip: str = VIP) -> None:
    await node.until(lambda: node.agent.index.is_service_address(parse_address(vip)), "service")


@pytest.mark.parametrize("host", ["reviews", "reviews.default", "reviews.default.svc", REVIEWS])
async def test_a_request_is_followed_to_its_endpoints(node: Node, host: str) -> None:
    view = await node.enroll()
    await known(node)
    node.engine.choice = RouteChoice("default", f"{view}/{OUTBOUND}")
    found = await route(node, host, path="/x", headers=(("a", "b"),))
    assert found.error == ""
    assert said(found)["service"] == f"default/reviews ({REVIEWS}) at {VIP}:9080"
    assert said(found)["listener"] == "0.0.0.0_9080: HTTP, route configuration 9080"
    assert said(found)["route"] == f"default of virtual host {REVIEWS}:9080: {OUTBOUND}"
    assert [target.address for target in found.targets] == ["10.244.0.8", "10.244.0.9"]
    assert (found.source, found.http, found.authority) == ("10.244.0.5", True, f"{host}:9080")
    ((table, question),) = node.engine.routed
    assert table == f"{view}/9080"
    assert (question.authority, question.path, question.headers) == (f"{host}:9080", "/x", (("a", "b"),))


async def test_what_comes_on_demand_is_asked_for_first(node: Node) -> None:
    view = await node.enroll()
    await known(node)
    assert node.view(view).destinations == {}
    await route(node, "reviews")
    assert (parse_address(VIP), 9080) in node.view(view).destinations


async def test_a_host_that_nobody_knows_leads_to_the_service_all_the_same(node: Node) -> None:
    view = await node.enroll()
    await known(node)
    node.engine.choice = RouteChoice("allow_any", f"{view}/PassthroughCluster")
    found = await route(node, "reviews", headers=(("host", "nobody.example"),))
    assert said(found)["cluster"] == OUTBOUND
    assert [target.address for target in found.targets] == ["10.244.0.8", "10.244.0.9"]


async def test_no_route_takes_it(node: Node) -> None:
    await node.enroll()
    await known(node)
    found = await route(node, "reviews", path="/none")
    assert found.error == "no route for reviews:9080/none: it is answered 404"
    assert found.targets == ()


async def test_a_connection_goes_by_the_cluster(node: Node) -> None:
    await node.enroll()
    await known(node)
    found = await route(node, "reviews", method=None)
    assert (found.http, said(found)["cluster"]) == (False, OUTBOUND)
    assert node.engine.routed == []


async def test_what_is_not_of_the_mesh_passes_through(node: Node) -> None:
    await node.enroll()
    found = await route(node, "192.0.2.1", 8443)
    assert said(found)["listener"] == "none: the connection passes through as it is"
    assert [(target.address, target.port) for target in found.targets] == [("192.0.2.1", 8443)]


async def test_or_is_refused(node: Node) -> None:
    node.server.put(LISTENER, "virtualOutbound", xds.outbound_catch_all("BlackHoleCluster"))
    view = await node.enroll()
    await node.until(lambda: node.view(view).refuse_unknown, "REGISTRY_ONLY")
    assert "REGISTRY_ONLY" in (await route(node, "192.0.2.1", 8443)).error


async def test_a_name_that_the_mesh_does_not_know(node: Node) -> None:
    await node.enroll()
    assert "up to DNS" in (await route(node, "example.com")).error


async def test_a_headless_service_is_its_pods(node: Node) -> None:
    db = xds.service("db", VIP, (5432, "tcp"))
    db.service.ClearField("addresses")
    node.server.put(ADDRESS, f"default/{xds.fqdn('db')}", db)
    pod = xds.workload("db-0", "10.244.0.30", node="node-b", services={"db": (5432, 5432)})
    node.server.put(ADDRESS, pod.workload.uid, pod)
    await node.enroll()
    await node.until(lambda: node.agent.index.workload_at(parse_address("10.244.0.30")), "pod")
    found = await route(node, "db", 5432, None)
    assert [(target.address, target.workload) for target in found.targets] == [
        ("10.244.0.30", "default/db-0")
    ]


async def test_policy_is_asked_of_the_engine(node: Node) -> None:
    await node.enroll()
    asked = Asked(
        POD, "web", 9080, "GET", "/x", (("a", "b"),), "10.0.0.1", "10.244.0.5", "spiffe://a/ns/b/sa/c"
    )
    found = node.agent.state.explain_access(asked)
    assert (found.allowed, found.status, found.detail) == (False, 403, "why")
    assert [(line.step, line.text) for line in found.lines] == [("policy", "p matched")]
    (question,) = node.engine.judged
    assert (question.port, question.principal, question.authority) == (9080, "spiffe://a/ns/b/sa/c", "web")


async def test_errors_say_what_is_wrong(node: Node) -> None:
    with pytest.raises(QueryError, match="workload default/nobody is not served by the agent of node node-a"):
        await node.agent.state.explain_route(Asked("default/nobody", "x", 80))
    await node.enroll()
    with pytest.raises(QueryError, match="'x' is not an IP address"):
        node.agent.state.explain_access(Asked(POD, port=80, source="x", destination="10.0.0.1"))


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"port": "80"}, "workload is missing"),
        ({"workload": "a/b", "port": "0"}, "port '0': not a number from 1 to 65535"),
        ({"workload": "a/b", "port": "80", "header": "x"}, "header 'x': not NAME:VALUE"),
        ({"workload": "a/b", "port": "80", "colour": "x"}, "no parameter 'colour' here"),
    ],
)
def test_a_bad_question(query: dict[str, str], error: str) -> None:
    with pytest.raises(QueryError, match=error):
        Asked.parse(query.items())


async def test_a_name_that_dns_is_answered_with_is_followed(node: Node) -> None:
    """Not a Kubernetes service's, such as a ServiceEntry's host."""
    await node.enroll()
    await known(node)
    name = "api.example.com"
    node.engine.applied = replace(node.engine.applied, names={name: (parse_address(VIP),)})
    found = await route(node, f"{name}.")
    assert said(found)["service"] == f"default/reviews ({REVIEWS}) at {VIP}:9080"
