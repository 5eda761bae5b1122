"""Which endpoints are reached by HBONE, and who must answer there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import xds_resources as xds

from nodeagent.compiler.cluster import compile_endpoints
from nodeagent.compiler.gateways import Gateways
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.workloads import WorkloadIndex, apply_addresses
from nodeagent.proto import workload_pb2
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import Tunnel, TunnelKind

UID = "Kubernetes//Pod/default/web-1"
ADDRESS = parse_address("10.244.0.8")
WEB = Tunnel(("spiffe://cluster.local/ns/default/sa/web",))


def workload(*, hbone: bool, account: str = "web") -> Any:
    address = xds.workload("web-1", "10.244.0.8", account=account)
    address.workload.tunnel_protocol = workload_pb2.HBONE if hbone else workload_pb2.NONE
    return address


@pytest.fixture
def index() -> WorkloadIndex:
    index = WorkloadIndex("node-a")
    assert apply_addresses(index, [(UID, workload(hbone=True))], ())[1] == {}
    return index


@pytest.fixture
def scope(index: WorkloadIndex) -> Scope:
    return Scope("v", index.workload_at, tunnel_to=Gateways(index).tunnel_to)


def assignment() -> Any:
    return xds.assignment("c", "10.244.0.8", "10.244.0.9")


def test_an_endpoint_of_a_tunnelled_workload_must_prove_to_be_it(scope: Scope) -> None:
    assert [endpoint.tunnel for endpoint in compile_endpoints(assignment(), scope).endpoints] == [WEB, None]


def test_an_agent_without_identities_uses_no_tunnel(scope: Scope) -> None:
    plain = Scope("v", scope.workload_at)
    assert [endpoint.tunnel for endpoint in compile_endpoints(assignment(), plain).endpoints] == [None, None]


def test_a_tunnel_comes_and_goes_with_what_is_told_of_the_workload(
    index: WorkloadIndex, scope: Scope
) -> None:
    piece = compile_endpoints(assignment(), scope)
    change, _ = apply_addresses(index, [(UID, workload(hbone=False))], ())
    assert change.addresses == {ADDRESS}, "endpoints there are to be looked at again"
    piece = piece.resolved(scope)
    assert piece.endpoints[0].tunnel is None
    apply_addresses(index, [(UID, workload(hbone=True))], ())
    assert piece.resolved(scope).endpoints[0].tunnel == WEB


def test_a_sidecar_is_reached_by_mtls_and_must_prove_to_be_it(index: WorkloadIndex, scope: Scope) -> None:
    piece = compile_endpoints(assignment(), scope)
    sidecar = workload(hbone=False)
    sidecar.workload.tunnel_protocol = workload_pb2.LEGACY_ISTIO_MTLS
    change, _ = apply_addresses(index, [(UID, sidecar)], ())
    assert change.addresses == {ADDRESS}, "endpoints there are to be looked at again"
    assert piece.resolved(scope).endpoints[0].tunnel == replace(WEB, kind=TunnelKind.MTLS)


def test_a_tunnel_stays_when_its_workload_goes_before_the_endpoint(
    index: WorkloadIndex, scope: Scope
) -> None:
    piece = compile_endpoints(assignment(), scope)
    apply_addresses(index, (), [UID])
    assert piece.resolved(scope) == replace(piece)
    assert piece.resolved(scope).endpoints[0].tunnel == WEB


@pytest.mark.parametrize("account", ["", "a b", ".."])
def test_a_tunnelled_workload_that_nobody_could_prove_to_be_is_rejected_by_name(
    index: WorkloadIndex, account: str
) -> None:
    _, rejected = apply_addresses(index, [(UID, workload(hbone=True, account=account))], ())
    assert list(rejected) == [UID]
    assert "service account" in rejected[UID]
    assert Gateways(index).tunnel_to(ADDRESS) == WEB, "the last good one stays"
