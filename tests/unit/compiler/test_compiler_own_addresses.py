"""Workloads' own addresses: who goes there goes through a tunnel, where there is one."""

from __future__ import annotations

from typing import Any

import pytest
from harness import xds_resources as xds

from nodeagent.app.agent_demand import Waypoints, want_for
from nodeagent.compiler.gateways import Gateways
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.view import Pieces, Wants, assemble
from nodeagent.compiler.workloads import IndexChange, WorkloadIndex, apply_addresses
from nodeagent.proto import workload_pb2
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.diff import check_consistent
from nodeagent.snapshot.values import Destination, Protocol, Snapshot, Tunnel, View

CLIENT = "spiffe://cluster.local/ns/default/sa/client"
POD = parse_address("10.244.0.8")
UID = "Kubernetes//Pod/default/web-1"


def pod(*, hbone: bool = True, account: str = "web", **fields: Any) -> Any:
    message = xds.workload("web-1", "10.244.0.8", account=account, **fields)
    message.workload.tunnel_protocol = workload_pb2.HBONE if hbone else workload_pb2.NONE
    return message


def change(index: WorkloadIndex, message: Any) -> IndexChange:
    done, rejected = apply_addresses(index, [(UID, message)], ())
    assert not rejected
    return done


@pytest.fixture
def index() -> WorkloadIndex:
    index = WorkloadIndex("node-a")
    assert change(index, pod()).tunnels
    return index


def destination(index: WorkloadIndex, port: int) -> tuple[View, Destination]:
    waypoints = Waypoints(Gateways(index), CLIENT)
    want = want_for(index, POD, port, waypoints)
    assembly = assemble(Scope("v"), Pieces(lambda kind, name: False), Wants({want.key: want}), View("v"))
    check_consistent(Snapshot(views={"v": assembly.view}))
    return assembly.view, assembly.view.destinations[POD, port]


@pytest.mark.parametrize("port", [80, 31337])
def test_any_port_is_reached_through_the_tunnel(index: WorkloadIndex, port: int) -> None:
    view, found = destination(index, port)
    assert found.protocol is Protocol.TCP
    (endpoint,) = view.endpoints[found.clusters[0].cluster]
    assert (endpoint.address, endpoint.port) == (POD, port)
    assert endpoint.tunnel == Tunnel(("spiffe://cluster.local/ns/default/sa/web",))
    assert endpoint.workload is not None
    assert endpoint.workload.name == "web-1"


def test_nothing_is_asked_for(index: WorkloadIndex) -> None:
    assert want_for(index, POD, 80, Waypoints(Gateways(index), CLIENT)).listeners == ()


def test_an_agent_without_identities_leaves_it_to_the_listeners(index: WorkloadIndex) -> None:
    assert want_for(index, POD, 80).own is None


def test_the_way_follows_the_workload(index: WorkloadIndex) -> None:
    waypoints = Waypoints(Gateways(index), CLIENT)
    before = want_for(index, POD, 80, waypoints)
    assert change(index, pod(account="other")).addresses == {POD}
    after = want_for(index, POD, 80, waypoints)
    assert before != after
    assert change(index, pod(hbone=False)).tunnels
    assert want_for(index, POD, 80, waypoints).own is None


def test_what_does_not_move_it_is_no_news(index: WorkloadIndex) -> None:
    message = pod()
    message.workload.authorization_policies.append("default/p")
    done = change(index, message)
    assert (done.tunnels, done.addresses) == (False, set())
    assert done.workloads == {UID}


def test_the_addresses_are_worth_asking_about(index: WorkloadIndex) -> None:
    host = pod()
    host.workload.network_mode = workload_pb2.HOST_NETWORK
    assert index.hints(tunnels=True).addresses == {POD}
    assert index.hints().addresses == frozenset()
    change(index, host)
    assert index.hints(tunnels=True).addresses == frozenset(), "an address of a node is of many"
