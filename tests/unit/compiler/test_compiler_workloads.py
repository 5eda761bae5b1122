"""The workload index: who is where, kept small, changed piece by piece."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
from harness import xds_resources as xds
from harness.ads import resource

from nodeagent.compiler.workloads import IndexChange, WorkloadIndex, apply_addresses
from nodeagent.proto import workload_pb2
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import ApplicationTunnel, InboundName
from nodeagent.xds.protocol import DeltaProtocol
from nodeagent.xds.store import WILDCARD
from nodeagent.xds.types import ADDRESS

REVIEWS = f"default/{xds.fqdn('reviews')}"
VIP = parse_address("10.96.0.7")


def index_of(*addresses: Any, node: str = "node-a") -> WorkloadIndex:
    index = WorkloadIndex(node)
    received = [(name_of(address), address) for address in addresses]
    _, rejected = apply_addresses(index, received, ())
    assert rejected == {}
    return index


def name_of(address: Any) -> str:
    if address.WhichOneof("type") == "workload":
        return str(address.workload.uid)
    return f"{address.service.namespace}/{address.service.hostname}"


def change(index: WorkloadIndex, *addresses: Any, removed: tuple[str, ...] = ()) -> IndexChange:
    result, rejected = apply_addresses(index, [(name_of(each), each) for each in addresses], removed)
    assert rejected == {}
    return result


class TestWorkloads:
    def test_one_is_found_by_uid_name_and_address(self) -> None:
        index = index_of(xds.workload("reviews-1", "10.244.0.8", account="reviews"))
        entry = index.workload("Kubernetes//Pod/default/reviews-1")
        assert entry is not None
        assert index.workload_named("default", "reviews-1") is entry
        ref = index.workload_at(parse_address("10.244.0.8"))
        assert ref is entry.ref
        assert (ref.name, ref.workload_name, ref.canonical_name) == ("reviews-1", "reviews", "reviews")
        assert ref.principal == "spiffe://cluster.local/ns/default/sa/reviews"
        assert (ref.app, ref.version) == ("reviews", "latest")

    def test_those_that_serve_the_same_share_one_value(self) -> None:
        pods = [xds.workload(f"a-{n}", f"10.244.0.{n}", services={"a": (80, 8080)}) for n in (1, 2)]
        index = index_of(*pods)
        first, second = (index.workload_named("default", name) for name in ("a-1", "a-2"))
        assert first is not None
        assert second is not None
        assert first.services
        assert first.services is second.services

    def test_labels_are_kept_of_this_node_only(self) -> None:
        labels = {"app": "rev", "version": "v3"}
        index = index_of(
            xds.workload("mine-1", "10.244.0.1", labels=labels),
            xds.workload("other-1", "10.244.0.2", labels=labels, node="node-b"),
        )
        mine, other = (index.workload_named("default", name) for name in ("mine-1", "other-1"))
        assert mine is not None
        assert other is not None
        assert mine.labels == (("app", "rev"), ("version", "v3"))
        assert (mine.ref.app, mine.ref.version) == ("rev", "v3")
        assert other.labels is None
        assert other.ref.app == "other"

    def test_pods_on_the_host_s_network_share_an_address_that_is_nobody_s(self) -> None:
        pod = xds.workload("kube-proxy-1", "192.0.2.1")
        pod.workload.network_mode = workload_pb2.HOST_NETWORK
        index = index_of(pod)
        assert index.workload_at(parse_address("192.0.2.1")) is None
        assert index.workload_named("default", "kube-proxy-1") is not None

    def test_an_address_goes_from_one_to_another_in_either_order(self) -> None:
        address = parse_address("10.244.0.8")
        old, new = xds.workload("old-1", "10.244.0.8"), xds.workload("new-1", "10.244.0.8")
        index = index_of(old)
        change(index, new)
        change(index, removed=(name_of(old),))
        assert index.workload_at(address).name == "new-1"  # type: ignore[union-attr]
        change(index, removed=(name_of(new),))
        assert index.workload_at(address) is None

    def test_what_changed_is_told(self) -> None:
        pod = xds.workload("reviews-1", "10.244.0.8")
        index = index_of(pod)
        assert change(index, pod) == IndexChange()
        pod.workload.status = workload_pb2.UNHEALTHY
        assert change(index, pod) == IndexChange({name_of(pod)})
        del pod.workload.addresses[:]
        pod.workload.addresses.append(xds.pack_address("10.244.0.9"))
        moved = change(index, pod)
        assert moved.addresses == {parse_address("10.244.0.8"), parse_address("10.244.0.9")}
        assert not moved.hints

    def test_a_bad_one_is_named_and_changes_nothing(self) -> None:
        good = xds.workload("reviews-1", "10.244.0.8")
        index = index_of(good)
        bad = workload_pb2.Address(workload=good.workload)
        bad.workload.addresses.append(b"12345")
        _, rejected = apply_addresses(index, [(name_of(bad), bad), ("x", workload_pb2.Address())], ())
        assert rejected == {
            name_of(bad): "an address has 4 or 16 bytes, not 5",
            "x": "is neither a workload nor a service",
        }
        assert index.workload_at(parse_address("10.244.0.8")) is not None


class TestServices:
    def test_one_is_found_by_address_and_port(self) -> None:
        index = index_of(xds.service("reviews", "10.96.0.7", (9080, "http"), (9443, "")))
        service = index.service_at(VIP, 9080)
        assert service is not None
        assert service.ref.host == xds.fqdn("reviews")
        assert [port.http for port in service.ports] == [True, None]
        assert index.service_at(VIP, 80) is None

    def test_several_at_one_address_are_told_apart_by_port(self) -> None:
        index = index_of(
            xds.service("a", "10.96.0.7", (80, "http")), xds.service("b", "10.96.0.7", (81, "tcp"))
        )
        assert index.service_at(VIP, 81).ref.name == "b"  # type: ignore[union-attr]
        change(index, removed=(f"default/{xds.fqdn('a')}",))
        assert index.service_at(VIP, 80) is None
        assert index.service_at(VIP, 81) is not None

    def test_hints_are_of_addresses_and_http_ports(self) -> None:
        index = index_of(
            xds.service("a", "10.96.0.7", (80, "http")),
            xds.service("b", "10.96.0.8", (80, "http"), (3306, "tcp"), (9000, "")),
        )
        assert index.hints().ports == {80}
        assert index.hints().addresses == {VIP, parse_address("10.96.0.8")}
        assert change(index, removed=(f"default/{xds.fqdn('a')}",)).hints
        assert index.hints().ports == {80}
        change(index, removed=(f"default/{xds.fqdn('b')}",))
        assert index.hints().ports == frozenset()

    def test_a_headless_one_has_no_address(self) -> None:
        index = index_of(xds.service("db", "0.0.0.0", (3306, "tcp")))
        assert index.hints().addresses == frozenset()

    def test_the_same_again_changes_nothing(self) -> None:
        service = xds.service("a", "10.96.0.7", (80, "http"))
        assert not change(index_of(service), service).hints

    def test_members_and_health_are_counted(self) -> None:
        pods = [xds.workload(f"r-{n}", f"10.0.0.{n}", services={"reviews": (80, 8080)}) for n in range(1, 4)]
        pods[0].workload.status = workload_pb2.UNHEALTHY
        index = index_of(xds.service("reviews", "10.96.0.7", (80, "http")), *pods)
        assert [(members, healthy) for _, members, healthy in index.services()] == [(3, 2)]
        change(index, removed=(name_of(pods[1]),))
        assert [(members, healthy) for _, members, healthy in index.services()] == [(2, 1)]
        entry = index.workload(name_of(pods[0]))
        assert entry is not None
        assert [(port, ref.name) for port, ref in index.services_of(entry)] == [(8080, "reviews")]

    def test_a_workload_is_known_by_its_services_names(self) -> None:
        pod = xds.workload("r-1", "10.0.0.1", services={"reviews": (80, 8080), "gone": (81, 8081)})
        index = index_of(xds.service("reviews", "10.96.0.7", (80, "http")), pod)
        entry = index.workload(name_of(pod))
        assert entry is not None
        assert index.names_of(entry) == (InboundName(xds.fqdn("reviews"), 80, 8080),)
        assert entry.application_tunnel is None

    @pytest.mark.parametrize(
        ("port", "expected"), [(0, ApplicationTunnel()), (15088, ApplicationTunnel(15088))]
    )
    def test_an_application_tunnel_is_kept(self, port: int, expected: ApplicationTunnel) -> None:
        pod = xds.workload("r-1", "10.0.0.1")
        pod.workload.application_tunnel.protocol = workload_pb2.ApplicationTunnel.PROXY
        pod.workload.application_tunnel.port = port
        entry = index_of(pod).workload(name_of(pod))
        assert entry is not None
        assert entry.application_tunnel == expected

    @pytest.mark.parametrize("port", [0, 70000])
    def test_a_port_out_of_range_is_refused(self, port: int) -> None:
        service = xds.service("a", "10.96.0.7", (port, "http"))
        _, rejected = apply_addresses(WorkloadIndex("n"), [("a", service)], ())
        assert rejected == {"a": f"service port {port} is out of range"}


class _IntoIndex:
    def __init__(self, index: WorkloadIndex) -> None:
        self.index = index

    def apply(self, update: Any) -> Any:
        received = ((each.name, each.message) for each in update.resources)
        return apply_addresses(self.index, received, update.removed)[1]


def test_a_service_with_ten_endpoints_takes_less_than_twenty_kilobytes() -> None:
    """Index and resource store together, as an agent holds them."""
    from envoy.config.core.v3 import base_pb2
    from envoy.service.discovery.v3 import discovery_pb2

    count = 200
    responses = []
    for number in range(count):
        name = f"service-{number}"
        items = [xds.service(name, f"10.96.{number // 250}.{number % 250}", (80, "http"), (443, "tcp"))]
        for replica in range(10):
            pod = f"{name}-{replica}"
            labels = {"app": name, "version": "v1", "pod-template-hash": f"{number:010}"}
            address = f"10.{number // 250}.{number % 250}.{replica}"
            items.append(
                xds.workload(pod, address, labels=labels, services={name: (80, 8080)}, node="node-b")
            )
        packed = [resource(name_of(item), item) for item in items]
        responses.append(
            discovery_pb2.DeltaDiscoveryResponse(type_url=ADDRESS, resources=packed).SerializeToString()
        )
    index = WorkloadIndex("node-a")
    protocol = DeltaProtocol(base_pb2.Node(), (ADDRESS,), _IntoIndex(index))
    protocol.subscribe(ADDRESS, [WILDCARD])
    gc.collect()
    tracemalloc.start()
    for response in responses:
        protocol.receive(discovery_pb2.DeltaDiscoveryResponse.FromString(response))
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == 11 * count
    assert size / count < 20_000
