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


MACHINE = "192.0.2.7"


def on_machine(name: str, protocol: int, *ports: int) -> tuple[str, Any]:
    services = {f"{name}-{port}": (80, port) for port in ports}
    address = xds.workload(f"{name}-1", MACHINE, account=name, services=services)
    address.workload.tunnel_protocol = protocol
    address.workload.extensions.add(name="nodeagent.machine")
    return address.workload.uid, address


def test_the_services_of_a_machine_are_told_apart_by_their_ports(index: WorkloadIndex) -> None:
    web = on_machine("web", workload_pb2.LEGACY_ISTIO_MTLS, 80, 443)
    api = on_machine("api", workload_pb2.LEGACY_ISTIO_MTLS, 9090)
    apply_addresses(index, (web, api), ())
    gateways, address = Gateways(index), parse_address(MACHINE)

    def who(port: int) -> str | None:
        tunnel = gateways.tunnel_to(address, port=port)
        assert tunnel is None or tunnel.kind is TunnelKind.MTLS
        return tunnel.identities[0].rpartition("/")[2] if tunnel is not None else None

    assert [who(port) for port in (80, 443, 9090, 22)] == ["web", "web", "api", None]
    assert gateways.of_address(address, 22) is None, "what is nobody's is reached as it is"
    apply_addresses(index, (), (api[0],))
    assert [who(port) for port in (80, 9090)] == ["web", None]
    assert index.workload_at(address).name == "web-1"  # type: ignore[union-attr]


def test_an_endpoint_on_a_machine_waits_for_no_other_word_than_its_service(index: WorkloadIndex) -> None:
    """Endpoints may come before the workload is known to serve the port."""
    scope = Scope("v", index.workload_at, tunnel_to=Gateways(index).tunnel_to)
    apply_addresses(index, [on_machine("web", workload_pb2.HBONE)], ())
    piece = compile_endpoints(xds.assignment("c", MACHINE, port=8080), scope)
    assert piece.endpoints[0].tunnel is None
    change, _ = apply_addresses(index, [on_machine("web", workload_pb2.HBONE, 8080)], ())
    assert change.addresses == {parse_address(MACHINE)}, "endpoints there are to be looked at again"
    assert piece.resolved(scope).endpoints[0].tunnel == WEB
