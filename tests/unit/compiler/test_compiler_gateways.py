"""What is reached through waypoints and through the gateways of other networks."""

from __future__ import annotations

from typing import Any

import pytest
from harness import xds_resources as xds
from harness.xds_resources import pack_address

from nodeagent.app.agent_demand import Waypoints, want_for
from nodeagent.compiler.cluster import compile_cluster, compile_endpoints
from nodeagent.compiler.gateways import Gateways
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.view import Pieces, Want, Wants, assemble, replace_endpoints
from nodeagent.compiler.workloads import IndexChange, WorkloadIndex, apply_addresses
from nodeagent.proto import workload_pb2
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.diff import check_consistent
from nodeagent.snapshot.values import Endpoint, Protocol, Snapshot, Tunnel, View

CLIENT, GATE = (f"spiffe://cluster.local/ns/default/sa/{name}" for name in ("client", "gate"))
VIP = parse_address("10.96.0.7")
POD = parse_address("10.244.0.8")
GATES = ("10.244.0.31", "10.244.0.32")
HOST = xds.fqdn("reviews")
SHARED = "spiffe://cluster.local/ns/default/sa/gate-service"


def by_host(name: str = "gate", port: int = 0) -> Any:
    hostname = workload_pb2.NamespacedHostname(namespace="default", hostname=xds.fqdn(name))
    return workload_pb2.GatewayAddress(hostname=hostname, hbone_mtls_port=port)


def by_address(address: str, port: int = 0) -> Any:
    where = workload_pb2.NetworkAddress(address=pack_address(address))
    return workload_pb2.GatewayAddress(address=where, hbone_mtls_port=port)


def behind(ref: Any, *, workload: bool = False) -> Any:
    """The service, or its pod, with a waypoint."""
    message = pod() if workload else xds.service("reviews", "10.96.0.7", (80, "http"), (9000, "tcp"))
    part = message.workload if workload else message.service
    part.waypoint.CopyFrom(ref)
    return message


def pod(**fields: Any) -> Any:
    message = xds.workload("reviews-1", "10.244.0.8", account="reviews", services={"reviews": (80, 8080)})
    message.workload.tunnel_protocol = workload_pb2.HBONE
    for name, value in fields.items():
        setattr(message.workload, name, value)
    return message


def gate(number: int, **services: tuple[int, int]) -> Any:
    message = xds.workload(f"gate-{number}", GATES[number], account="gate", services=services)
    message.workload.tunnel_protocol = workload_pb2.HBONE
    return message


def put(index: WorkloadIndex, *messages: Any) -> IndexChange:
    named = []
    for message in messages:
        part = getattr(message, message.WhichOneof("type"))
        resource = part.uid if message.HasField("workload") else f"{part.namespace}/{part.hostname}"
        named.append((resource, message))
    change, rejected = apply_addresses(index, named, ())
    assert not rejected
    return change


def gate_service() -> Any:
    message = xds.service("gate", "10.96.0.99", (15008, ""))
    message.service.subject_alt_names.append(SHARED)
    return message


@pytest.fixture
def index() -> WorkloadIndex:
    index = WorkloadIndex("node-a", "near")
    put(index, gate_service(), gate(0, gate=(15008, 15009)), gate(1, gate=(15008, 15008)), pod())
    return index


def want(index: WorkloadIndex, address: bytes, port: int, own: str = CLIENT) -> Want:
    return want_for(index, address, port, Waypoints(Gateways(index), own))


def endpoint(address: bytes, port: int, number: int, tunnel_port: int, *identities: str) -> tuple[Any, ...]:
    return address, port, Tunnel(identities or (GATE,), tunnel_port, parse_address(GATES[number]))


def ends(found: Want) -> list[tuple[Any, ...]]:
    assert found.own is not None
    return [(each.address, each.port, each.tunnel) for each in found.own.endpoints]


def test_a_service_is_reached_through_each_workload_of_its_waypoint(index: WorkloadIndex) -> None:
    put(index, behind(by_host()))
    assert ends(want(index, VIP, 9000)) == [
        endpoint(VIP, 9000, 0, 15009, GATE, SHARED),
        endpoint(VIP, 9000, 1, 15008, GATE, SHARED),
    ]


def test_a_waypoint_may_be_told_by_its_address(index: WorkloadIndex) -> None:
    put(index, behind(by_address(GATES[1], 15010)))
    assert ends(want(index, VIP, 80)) == [endpoint(VIP, 80, 1, 15010)]
    put(index, behind(by_address("10.96.0.99")))
    assert len(ends(want(index, VIP, 80))) == 2, "the address of its service"


def test_a_workload_is_reached_through_its_own_waypoint_by_its_own_address_only(index: WorkloadIndex) -> None:
    change = put(index, behind(by_host(), workload=True), xds.service("reviews", "10.96.0.7", (80, "http")))
    assert change.hints
    assert POD in index.hints().addresses, "asked for on demand"
    assert ends(want(index, POD, 8080))[0] == endpoint(POD, 8080, 0, 15009, GATE, SHARED)
    assert want(index, VIP, 80).own is None


def test_the_waypoint_itself_goes_on_to_the_service(index: WorkloadIndex) -> None:
    put(index, behind(by_host()))
    assert want(index, VIP, 80, GATE).own is None


def test_an_agent_without_identities_knows_no_waypoints(index: WorkloadIndex) -> None:
    put(index, behind(by_host()))
    assert want_for(index, VIP, 80).own is None


def test_a_waypoint_that_is_not_there_refuses(index: WorkloadIndex) -> None:
    put(index, behind(by_host("nobody")))
    found = want(index, VIP, 80)
    assert ends(found) == []
    view = assemble(Scope("v"), Pieces(lambda *_: False), Wants({found.key: found}), View("v")).view
    check_consistent(Snapshot(views={"v": view}))
    (name,) = (share.cluster for share in view.destinations[found.key].clusters)
    assert view.endpoints[name] == ()


def test_it_asks_the_control_plane_for_nothing(index: WorkloadIndex) -> None:
    put(index, behind(by_host()))
    found = want(index, VIP, 80)
    assembly = assemble(Scope("v"), Pieces(lambda *_: False), Wants({found.key: found}), View("v"))
    check_consistent(Snapshot(views={"v": assembly.view}))
    destination = assembly.view.destinations[found.key]
    assert (destination.protocol, destination.table) == (Protocol.TCP, None), "the waypoint routes"
    assert not assembly.incomplete
    (cluster,) = assembly.view.clusters.values()
    assert cluster.service is not None
    assert (cluster.service.host, cluster.port) == (HOST, 80)
    assert HOST not in str(assembly.needs)


def test_routes_of_others_lead_to_the_waypoint_too(index: WorkloadIndex) -> None:
    """A route of a service without waypoint may name a cluster of one that has one."""
    put(index, behind(by_host()))
    waypoints = Waypoints(Gateways(index), CLIENT)
    scope = Scope("v", index.workload_at, waypoint_of=waypoints.endpoints_of)
    pieces = Pieces(lambda *_: True)
    name = f"outbound|80|v1|{HOST}"
    pieces.clusters[name] = compile_cluster(xds.cluster(name), scope)
    pieces.endpoints[name] = compile_endpoints(xds.assignment(name, "10.244.0.8"), scope)
    wants = Wants({(POD, 1): Want((POD, 1), (), cluster=name)})
    view = assemble(scope, pieces, wants, View("v")).view

    def is_by_waypoint(view: View | None) -> bool:
        assert view is not None
        found: tuple[Endpoint, ...] = view.endpoints[scope.name(name)]
        return [(each.address, each.port) for each in found] == [(VIP, 80)] * 2

    assert is_by_waypoint(view)
    assert is_by_waypoint(replace_endpoints(view, scope, pieces, [name]))


def test_who_is_behind_a_waypoint_is_looked_up_again_when_it_changes(index: WorkloadIndex) -> None:
    put(index, behind(by_host()))
    gateways = Gateways(index)
    service = index.service_at(VIP, 80)
    assert service is not None
    assert len(gateways.of_service(service, VIP, 80, CLIENT) or ()) == 2
    assert not gateways.forget(put(index, xds.workload("other-1", "10.244.0.77"))), "nothing to do with it"
    unhealthy = gate(0, gate=(15008, 15008))
    unhealthy.workload.status = workload_pb2.UNHEALTHY
    assert gateways.forget(put(index, unhealthy))
    assert len(gateways.of_service(service, VIP, 80, CLIENT) or ()) == 1


@pytest.mark.parametrize("ref", [workload_pb2.GatewayAddress(), by_host(port=70000)])
def test_a_waypoint_that_is_no_place_is_rejected_by_name(index: WorkloadIndex, ref: Any) -> None:
    _, rejected = apply_addresses(index, [("default/x", behind(ref))], ())
    assert list(rejected) == ["default/x"]
    assert "waypoint" in rejected["default/x"]


class TestOtherNetworks:
    TARGET = f"{HOST}:80"

    def remote(self, index: WorkloadIndex, ref: Any) -> None:
        message = pod(network="far", node="node-z")
        message.workload.network_gateway.CopyFrom(ref)
        put(index, message)

    def test_a_workload_there_is_reached_by_a_tunnel_within_the_gateways(self, index: WorkloadIndex) -> None:
        self.remote(index, by_address(GATES[1], 15010))
        service = xds.service("reviews", "10.96.0.7", (80, "http"))
        service.service.subject_alt_names.append("spiffe://cluster.local/ns/default/sa/any-reviews")
        put(index, service)
        scope = Scope("v", index.workload_at, tunnel_to=Gateways(index).tunnel_to)
        piece = compile_endpoints(xds.assignment(f"outbound|80||{HOST}", "10.244.0.8"), scope)
        assert [each.tunnel for each in piece.resolved(scope).endpoints] == [
            Tunnel(
                (GATE,),
                15010,
                parse_address(GATES[1]),
                authority=self.TARGET,
                network="near",
                inner=(
                    "spiffe://cluster.local/ns/default/sa/reviews",
                    "spiffe://cluster.local/ns/default/sa/any-reviews",
                ),
            )
        ]

    def test_one_of_the_own_network_needs_no_gateway(self, index: WorkloadIndex) -> None:
        """Also when the network's name is known by this node's workloads only."""
        own = Gateways(WorkloadIndex("node-a"))
        put(own._index, pod(network="far"))
        self.remote(own._index, by_address(GATES[1]))
        assert own.tunnel_to(POD, self.TARGET) == Tunnel(("spiffe://cluster.local/ns/default/sa/reviews",))

    def test_an_unknown_gateway_is_not_gone_around(self, index: WorkloadIndex) -> None:
        self.remote(index, by_address("192.0.2.1"))
        tunnel = Gateways(index).tunnel_to(POD, self.TARGET)
        assert tunnel is not None
        assert tunnel.inner, "whoever answers at the address is no gateway: the tunnel fails"

    def beyond(self, index: WorkloadIndex, ref: Any, capacity: int = 0, name: str = "all-reviews") -> None:
        """All of a service's workloads in another network, as istiod tells of them: one, without an address."""
        message = xds.workload(name, "10.0.0.1", node="node-z", account="", services={"reviews": (80, 8080)})
        part = message.workload
        del part.addresses[:]
        part.network, part.tunnel_protocol = "far", workload_pb2.HBONE
        part.network_gateway.CopyFrom(ref)
        if capacity:
            part.capacity.value = capacity
        put(index, message)

    def test_workloads_without_address_are_behind_their_gateway(self, index: WorkloadIndex) -> None:
        service = xds.service("reviews", "10.96.0.7", (80, "http"))
        service.service.subject_alt_names.append("spiffe://cluster.local/ns/default/sa/reviews")
        put(index, service)
        gateways = Gateways(index)
        scope = Scope("v", index.workload_at, tunnel_to=gateways.tunnel_to, beyond=gateways.beyond)
        name = f"outbound|80||{HOST}"
        pieces = Pieces(lambda *_: True)
        pieces.clusters[name] = compile_cluster(xds.cluster(name), scope)
        pieces.endpoints[name] = compile_endpoints(xds.assignment(name, "10.244.0.8"), scope)
        wants = Wants({(VIP, 80): Want((VIP, 80), (), cluster=name)})
        before = assemble(scope, pieces, wants, View("v")).view
        assert [each.address for each in before.endpoints[scope.name(name)]] == [POD]
        self.beyond(index, by_host(), capacity=3)
        self.beyond(index, by_host(), name="more-reviews")
        after = assemble(scope, pieces, wants, before).view
        check_consistent(Snapshot(views={"v": after}))
        near, *far = after.endpoints[scope.name(name)]
        assert near.address == POD
        inner = ("spiffe://cluster.local/ns/default/sa/reviews",)
        assert [(each.port, each.weight, each.tunnel) for each in far] == [
            (
                80,
                4,
                Tunnel((GATE, SHARED), port, parse_address(address), self.TARGET, inner, "near"),
            )
            for port, address in zip((15009, 15008), GATES, strict=True)
        ]
        quick = replace_endpoints(after, scope, pieces, [name])
        assert quick is not None
        assert len(quick.endpoints[scope.name(name)]) == 3

    def test_nobody_can_prove_to_be_a_service_without_identities(self, index: WorkloadIndex) -> None:
        put(index, xds.service("reviews", "10.96.0.7", (80, "http")))
        self.beyond(index, by_host())
        scope = Scope("v")
        cluster = compile_cluster(xds.cluster(f"outbound|80||{HOST}"), scope).value
        assert Gateways(index).beyond(cluster) == ()

    def test_they_go_and_come(self, index: WorkloadIndex) -> None:
        name = f"default/{HOST}"
        self.beyond(index, by_host())
        assert len(index.members_beyond(name)) == 1
        change, _ = apply_addresses(index, (), ["Kubernetes//Pod/default/all-reviews"])
        assert change.gateways
        assert index.members_beyond(name) == ()
