"""Which host names are answered: virtual addresses, workloads of headless services, hosts of several services."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from harness import xds_resources as xds

from nodeagent.compiler import dns
from nodeagent.compiler.dns import Names, search_list
from nodeagent.compiler.workloads import WorkloadIndex, apply_addresses
from nodeagent.proto import workload_pb2

REVIEWS = xds.fqdn("reviews")


class Mesh:
    """An index and the names made from it."""

    def __init__(self) -> None:
        self.index = WorkloadIndex("node-a")
        self.table = Names(self.index)

    def put(self, *addresses: Any, removed: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
        """Apply a change; the names, in one form for all."""
        received = [(_name(each), each) for each in addresses]
        change, rejected = apply_addresses(self.index, received, removed)
        assert rejected == {}
        return {name: tuple(map(_text, found)) for name, found in self.table.update(change).items()}


def _name(address: Any) -> str:
    if address.WhichOneof("type") == "workload":
        return str(address.workload.uid)
    return f"{address.service.namespace}/{address.service.hostname}"


def _text(address: bytes) -> str:
    return ".".join(map(str, address[12:]))


def headless(name: str) -> Any:
    made = xds.service(name, "0.0.0.0", (80, "http"))
    del made.service.addresses[:]
    return made


def external(host: str, address: str = "240.240.0.1", namespace: str = "default", **fields: Any) -> Any:
    """As istiod tells of a ServiceEntry."""
    addresses = [workload_pb2.NetworkAddress(address=xds.pack_address(address))] if address else []
    return workload_pb2.Address(
        service=workload_pb2.Service(
            name=host, namespace=namespace, hostname=host, addresses=addresses, **fields
        )
    )


def test_the_search_list_of_a_pod() -> None:
    assert search_list("shop", "cluster.local") == "shop.svc.cluster.local svc.cluster.local cluster.local"


def test_a_service_has_its_virtual_addresses() -> None:
    mesh = Mesh()
    assert mesh.put(xds.service("reviews", "10.96.0.7")) == {REVIEWS: ("10.96.0.7",)}
    assert mesh.put(xds.service("reviews", "10.96.0.8")) == {REVIEWS: ("10.96.0.8",)}
    assert mesh.put(removed=[f"default/{REVIEWS}"]) == {}


def test_what_changes_nothing_is_the_same_object() -> None:
    mesh = Mesh()
    mesh.put(xds.service("reviews", "10.96.0.7"))
    pod = xds.workload("reviews-1", "10.244.0.1", services={"reviews": (80, 80)})
    change, _ = apply_addresses(mesh.index, [(pod.workload.uid, pod)], ())
    before = mesh.table.update(change)
    assert mesh.table.update(change) is before


@pytest.mark.parametrize("pods_first", [False, True])
def test_a_headless_service_has_its_workloads(pods_first: bool) -> None:
    mesh = Mesh()
    pods = [
        xds.workload(f"db-{n}", f"10.244.0.{n}", services={"db": (80, 80), "other": (1, 1)}) for n in (2, 1)
    ]
    for batch in (pods, [headless("db")]) if pods_first else ([headless("db")], pods):
        found = mesh.put(*batch)
    assert found == {xds.fqdn("db"): ("10.244.0.1", "10.244.0.2")}
    pods[0].workload.status = workload_pb2.UNHEALTHY
    assert mesh.put(pods[0]) == {xds.fqdn("db"): ("10.244.0.1",)}
    moved = xds.workload("db-1", "10.244.0.9", services={"db": (80, 80)})
    assert mesh.put(moved) == {xds.fqdn("db"): ("10.244.0.9",)}
    assert mesh.put(removed=[moved.workload.uid]) == {}, "name servers are asked"


def test_unhealthy_workloads_are_found_where_the_service_wants_it() -> None:
    mesh = Mesh()
    service = headless("db")
    service.service.load_balancing.health_policy = workload_pb2.LoadBalancing.ALLOW_ALL
    pod = xds.workload("db-1", "10.244.0.1", services={"db": (80, 80)})
    pod.workload.status = workload_pb2.UNHEALTHY
    assert mesh.put(service, pod) == {xds.fqdn("db"): ("10.244.0.1",)}


def test_workloads_of_other_networks_are_not_found() -> None:
    mesh = Mesh()
    mine = xds.workload("db-1", "10.244.0.1", services={"db": (80, 80)})
    other = xds.workload("db-2", "10.244.0.2", services={"db": (80, 80)}, node="node-b")
    mine.workload.network = "here"
    other.workload.network = "there"
    assert mesh.put(headless("db"), mine, other) == {xds.fqdn("db"): ("10.244.0.1",)}


def test_a_service_that_gets_an_address_is_not_headless_any_more() -> None:
    mesh = Mesh()
    pod = xds.workload("db-1", "10.244.0.1", services={"db": (80, 80)})
    mesh.put(headless("db"), pod)
    assert mesh.put(xds.service("db", "10.96.0.9")) == {xds.fqdn("db"): ("10.96.0.9",)}
    assert mesh.put(headless("db")) == {xds.fqdn("db"): ("10.244.0.1",)}


def test_hosts_of_service_entries_are_names_wildcards_too() -> None:
    mesh = Mesh()
    found = mesh.put(external("API.Example.com"), external("*.example.org", "240.240.0.2"))
    assert found == {"api.example.com": ("240.240.0.1",), "*.example.org": ("240.240.0.2",)}


def test_a_network_is_no_answer() -> None:
    entry = external("net.example.com", "10.0.0.0")
    entry.service.addresses[0].length = 8
    assert Mesh().put(entry) == {}
    entry.service.addresses[0].length = 32
    assert Mesh().put(entry) == {"net.example.com": ("10.0.0.0",)}


@pytest.mark.parametrize(
    "host", ["*", "a..b", "-" * 64 + ".com", "a b", "x/y", ".com", "*.*.com", "a." * 130]
)
def test_what_nobody_can_ask_for_is_left_out(host: str) -> None:
    assert Mesh().put(external(host), external("good.example.com")) == {"good.example.com": ("240.240.0.1",)}


def test_of_several_services_of_a_host_clients_get_that_of_their_namespace() -> None:
    mesh = Mesh()
    first, second = external("api.example.com", "10.0.0.1", "a"), external("api.example.com", "10.0.0.2", "b")
    assert mesh.put(second, first) == {
        "api.example.com": ("10.0.0.1",),
        "api.example.com/a": ("10.0.0.1",),
        "api.example.com/b": ("10.0.0.2",),
    }
    second.service.canonical = True
    assert mesh.put(second)["api.example.com"] == ("10.0.0.2",)
    assert mesh.put(removed=["a/api.example.com"]) == {"api.example.com": ("10.0.0.2",)}


def test_a_private_service_is_for_its_namespace_alone() -> None:
    private = external("api.example.com", "10.0.0.1", "a", visibility=workload_pb2.Service.NAMESPACE)
    mesh = Mesh()
    assert mesh.put(private) == {"api.example.com/a": ("10.0.0.1",)}
    assert mesh.put(removed=["a/api.example.com"]) == {}


def test_names_and_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "NAMES_LIMIT", 2)
    monkeypatch.setattr(dns, "ADDRESSES_LIMIT", 1)
    mesh = Mesh()
    pods = [xds.workload(f"db-{n}", f"10.244.0.{n}", services={"db": (80, 80)}) for n in (1, 2)]
    assert mesh.put(headless("db"), *pods) == {xds.fqdn("db"): ("10.244.0.1",)}
    mesh.put(external("a.example.com"))
    assert "b.example.com" not in mesh.put(external("b.example.com"))
    assert mesh.table.left_out == 1
    assert "a.example.com" in mesh.put(external("a.example.com", "10.0.0.9"))
