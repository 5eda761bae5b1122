"""ServiceEntries: strict decoding, whose a host is, endpoints, addresses that are given."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from nodeagent.controlplane import auto_addresses
from nodeagent.controlplane.auto_addresses import AutoAddresses
from nodeagent.controlplane.kinds import AddressKind, ClusterKind, EndpointKind
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.controlplane.view import Perspective, View
from nodeagent.model.protocols import Protocol
from nodeagent.proto import workload_pb2


def entry(name: str, spec: str, namespace: str = "default") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{spec}}}
"""


def key(name: str, namespace: str = "default") -> ObjectKey:
    return ObjectKey("networking.istio.io", "ServiceEntry", namespace, name)


HTTP = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]"
STATIC = f"resolution: STATIC, {HTTP}, endpoints: [{{address: 192.0.2.1}}]"
API = entry("api", f"hosts: [API.example.com], {STATIC}")
POD = """
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, labels: {app: a}}
spec: {}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
"""


def service(configured: Any, host: str) -> Any:
    return configured.world.registry.services.get(host)


def resources(configured: Any, kind: Any, group: str) -> dict[str, bytes]:
    view = View(configured.world, Perspective("default"))
    return {name: found.body for name, found in kind.build(view, group).items()}


def test_a_host_is_a_service_with_endpoints(configured: Any) -> None:
    change = configured.put(API)
    assert configured.messages() == []
    assert "api.example.com" in change.services & change.endpoints
    found = service(configured, "api.example.com")
    assert (found.name, found.namespace, found.port(80).protocol) == ("api", "default", Protocol.HTTP)
    (endpoint,) = configured.world.registry.endpoints("api.example.com")[80]
    assert (endpoint.address, endpoint.port) == ("192.0.2.1", 8080)
    assert endpoint.workload.workload_name == "api"
    configured.remove(key("api"))
    assert service(configured, "api.example.com") is None
    assert configured.world.registry.endpoints("api.example.com") == {}


def test_endpoints_have_ports_of_their_own_and_change(configured: Any) -> None:
    ports = "ports: [{number: 80, name: http}, {number: 443, name: tls}]"
    endpoints = (
        "endpoints: [{address: 192.0.2.1, ports: {tls: 8443}}, {address: 2001:DB8::1, locality: r/z/s}]"
    )
    configured.put(entry("api", f"hosts: [a.example.com], resolution: STATIC, {ports}, {endpoints}"))
    found = configured.world.registry.endpoints("a.example.com")
    assert [(each.address, each.port) for each in found[443]] == [("192.0.2.1", 8443), ("2001:db8::1", 443)]
    assert [each.locality.zone for each in found[80]] == ["", "z"]
    configured.put(
        entry(
            "api", f"hosts: [a.example.com], resolution: STATIC, {ports}, endpoints: [{{address: 192.0.2.9}}]"
        )
    )
    found = configured.world.registry.endpoints("a.example.com")
    assert [each.address for each in found[80]] == ["192.0.2.9"]


def test_endpoints_get_their_share_by_weight(configured: Any) -> None:
    """In EDS, where localities have the sum of theirs, and as capacity of workloads; 0 is as none."""
    here = "{address: 10.0.0.1, weight: 3}, {address: 10.0.0.2, weight: 0}"
    listed = f"{here}, {{address: 10.0.0.3, locality: r, weight: 2}}"
    configured.put(entry("api", f"hosts: [a.example.com], resolution: STATIC, {HTTP}, endpoints: [{listed}]"))
    name = "outbound|80||a.example.com"
    body = resources(configured, EndpointKind(), "a.example.com")[name]
    found = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    weights = [
        (group.load_balancing_weight.value, [each.load_balancing_weight.value for each in group.lb_endpoints])
        for group in found.endpoints
    ]
    assert weights == [(4, [3, 1]), (2, [2])]
    workload = told(configured, ENDPOINT)
    assert workload is not None
    assert workload.capacity.value == 3
    configured.put(
        entry(
            "api",
            f"hosts: [a.example.com], resolution: STATIC, {HTTP}, endpoints: [{{address: 10.0.0.1, weight: -1}}]",
        )
    )
    assert "weight: must be between 0 and 1000000, got -1" in configured.messages()[0]


def test_an_endpoint_that_is_a_pod_is_known_as_that(configured: Any) -> None:
    configured.put(POD)
    configured.put(
        entry(
            "api", f"hosts: [a.example.com], resolution: STATIC, {HTTP}, endpoints: [{{address: 10.0.0.1}}]"
        )
    )
    (endpoint,) = configured.world.registry.endpoints("a.example.com")[80]
    assert endpoint.workload.name == "a"


ENDPOINT = "Kubernetes/networking.istio.io/ServiceEntry/default/api/10.0.0.1"
POD_UID = "Kubernetes//Pod/default/a"
AT_POD = entry(
    "api",
    f"hosts: [a.example.com, b.example.com], resolution: STATIC, {HTTP}, endpoints: [{{address: 10.0.0.1}}]",
)


def told(configured: Any, uid: str) -> workload_pb2.Workload | None:
    """What node proxies are told of a workload."""
    found = resources(configured, AddressKind(), uid).get(uid)
    return workload_pb2.Address.FromString(found).workload if found is not None else None


def test_node_proxies_are_told_of_endpoints(configured: Any) -> None:
    change = configured.put(AT_POD)
    assert ENDPOINT in change.workloads
    found = told(configured, ENDPOINT)
    assert found is not None
    assert set(found.services) == {"default/a.example.com", "default/b.example.com"}
    (port,) = found.services["default/a.example.com"].ports
    assert (port.service_port, port.target_port) == (80, 8080)
    assert (found.workload_name, found.tunnel_protocol) == ("api", workload_pb2.NONE)
    change = configured.remove(key("api"))
    assert ENDPOINT in change.workloads
    assert told(configured, ENDPOINT) is None


def test_a_pod_at_the_address_of_an_endpoint_takes_its_place_while_it_is_there(configured: Any) -> None:
    configured.put(AT_POD)
    change = configured.put(POD)
    assert {ENDPOINT, POD_UID} <= change.workloads
    assert told(configured, ENDPOINT) is None
    pod = told(configured, POD_UID)
    assert pod is not None
    assert set(pod.services) == {"default/a.example.com", "default/b.example.com"}
    assert [each.target_port for each in pod.services["default/b.example.com"].ports] == [8080]
    change = configured.remove(ObjectKey("", "Pod", "default", "a"))
    assert ENDPOINT in change.workloads
    assert told(configured, ENDPOINT) is not None


def test_a_pod_serves_the_host_no_more_when_it_is_not_listed(configured: Any) -> None:
    configured.put(POD)
    configured.put(AT_POD)
    change = configured.put(AT_POD.replace("10.0.0.1", "10.0.0.2"))
    assert POD_UID in change.workloads
    pod = told(configured, POD_UID)
    assert pod is not None
    assert not pod.services


def test_workloads_may_be_selected(configured: Any) -> None:
    configured.put(POD)
    selector = "workloadSelector: {labels: {app: a}}"
    configured.put(entry("api", f"hosts: [a.example.com], resolution: STATIC, {HTTP}, {selector}"))
    (endpoint,) = configured.world.registry.endpoints("a.example.com")[80]
    assert (endpoint.address, endpoint.port) == ("10.0.0.1", 8080)
    pod = told(configured, POD_UID)
    assert pod is not None
    assert "default/a.example.com" in pod.services, "node proxies are told what it serves"


def test_addresses_are_given_where_there_are_none(configured: Any) -> None:
    configured.put(entry("two", f"hosts: [a.example.com, b.example.com], {STATIC}"))
    a, b = (service(configured, host).addresses for host in ("a.example.com", "b.example.com"))
    assert len({*a, *b}) == 4
    for v4, v6 in (a, b):
        assert ipaddress.ip_address(v4) in ipaddress.ip_network("240.240.0.0/16")
        assert ipaddress.ip_address(v6) in ipaddress.ip_network("2001:2::/48")
    configured.put(entry("two", f"hosts: [a.example.com], {STATIC}"))
    assert service(configured, "a.example.com").addresses == a
    assert service(configured, "b.example.com") is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            f"hosts: [a.example.com], addresses: [240.1.2.3, 'fd00::1/128'], {STATIC}",
            ("240.1.2.3", "fd00::1"),
        ),
        (f"hosts: ['*.example.com'], {STATIC}", ()),
        (f"hosts: [a.example.com], resolution: NONE, {HTTP}", ()),
    ],
    ids=["own", "wildcard", "nowhere"],
)
def test_addresses_are_not_given(configured: Any, spec: str, expected: tuple[str, ...]) -> None:
    configured.put(entry("api", spec))
    (found,) = configured.world.registry.services.values()
    assert found.addresses == expected


def test_without_resolution_connections_go_on(configured: Any) -> None:
    configured.put(entry("api", f"hosts: [a.example.com], {HTTP}"))
    (body,) = resources(configured, ClusterKind(), "a.example.com").values()
    assert b"outbound|80||a.example.com" in body
    made = _cluster(body)
    assert (made.type, made.lb_policy) == (made.ORIGINAL_DST, made.CLUSTER_PROVIDED)
    assert not made.HasField("eds_cluster_config")


def _cluster(body: bytes) -> Any:
    return cluster_pb2.Cluster.FromString(body)


@pytest.mark.parametrize("resolution", ["DNS", "DNS_ROUND_ROBIN"])
def test_a_host_that_is_its_own_endpoint_is_where_its_client_found_it(
    configured: Any, resolution: str
) -> None:
    configured.put(entry("api", f"hosts: [a.example.com], resolution: {resolution}, {HTTP}"))
    assert configured.messages() == []
    found = service(configured, "a.example.com")
    assert (found.passes_through, found.addresses) == (True, ())


def test_static_ones_have_clusters_and_endpoints_like_services(configured: Any) -> None:
    configured.put(API)
    name = "outbound|80||api.example.com"
    assert _cluster(resources(configured, ClusterKind(), "api.example.com")[name]).type == 3  # EDS
    assert b"192.0.2.1" in resources(configured, EndpointKind(), "api.example.com")[name]


def test_names_are_for_name_servers_until_that_is_supported(configured: Any) -> None:
    configured.put(
        entry("api", f"hosts: [a.example.com], resolution: DNS, {HTTP}, endpoints: [{{address: b.com}}]")
    )
    assert service(configured, "a.example.com") is None
    (issue,) = configured.report
    assert (issue.code, issue.path) == ("not-supported-yet", "spec.resolution")


class TestWhoseAHostIs:
    def test_the_older_entry_keeps_it_until_it_goes(self, configured: Any) -> None:
        configured.put(API)
        configured.put(entry("late", f"hosts: [api.example.com], addresses: [240.1.2.3], {STATIC}", "other"))
        assert service(configured, "api.example.com").name == "api"
        assert configured.messages() == [
            "ServiceEntry other/late: spec.hosts[0]: api.example.com is of ServiceEntry default/api, which is older, "
            "which keeps it"
        ]
        configured.remove(key("api"))
        assert service(configured, "api.example.com").addresses == ("240.1.2.3",)
        assert configured.messages() == []

    def test_a_kubernetes_service_keeps_it_until_it_goes(self, configured: Any) -> None:
        host = "a.default.svc.cluster.local"
        configured.put(entry("api", f"hosts: [{host}], {STATIC}"))
        assert service(configured, host).is_entry
        kubernetes = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}"
        configured.put(kubernetes)
        assert not service(configured, host).is_entry
        assert any("is of Service default/a" in message for message in configured.messages())
        configured.remove(ObjectKey("", "Service", "default", "a"))
        assert service(configured, host).is_entry

    def test_one_that_is_called_as_a_service_is_another_thing(self, configured: Any) -> None:
        configured.put("apiVersion: v1\nkind: Service\nmetadata: {name: api}\nspec: {ports: [{port: 80}]}")
        configured.put(API)
        registry = configured.world.registry
        assert registry.service_named("default", "api").host == "api.default.svc.cluster.local"
        assert registry.endpoints("api.default.svc.cluster.local") == {80: ()}
        configured.remove(key("api"))
        assert registry.service_named("default", "api") is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hosts: [a.com]", "spec.ports: required, but missing"),
        (HTTP, "spec.hosts: required, but missing"),
        (f"hosts: ['*'], {HTTP}", "'*' covers every host there is"),
        (f"hosts: [10.0.0.1], {HTTP}", "is an address; hosts are names"),
        (f"hosts: ['a b'], {HTTP}", "is not a host name"),
        (f"hosts: [a.com], addresses: [nowhere], {HTTP}", "neither an IP address nor a CIDR block"),
        (f"hosts: [a.com], resolution: SOMEHOW, {HTTP}", "must be one of NONE, STATIC, DNS"),
        (f"hosts: [a.com], location: HERE, {HTTP}", "must be one of MESH_EXTERNAL, MESH_INTERNAL"),
        ("hosts: [a.com], ports: [{number: 80, name: x, protocol: SMTP}]", "must be one of HTTP, HTTPS"),
        (
            "hosts: [a.com], ports: [{number: 80, name: x}, {number: 80, name: y}]",
            "port 80 (y) is there twice",
        ),
        (
            f"hosts: [a.com], {HTTP}, endpoints: [{{address: 10.0.0.1}}]",
            "NONE means wherever a client connects to",
        ),
        (
            f"hosts: [a.com], resolution: STATIC, {HTTP}, endpoints: [{{address: b.com}}]",
            "'b.com' is not an IP address",
        ),
        (
            f"hosts: [a.com], {STATIC}, workloadSelector: {{labels: {{a: b}}}}",
            "cannot be beside workloadSelector",
        ),
        (f"hosts: [a.com], {STATIC}, host: x", "unknown field; did you mean hosts?"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_taken(configured: Any, spec: str, message: str) -> None:
    configured.put(entry("bad", spec))
    assert any(message in text for text in configured.messages()), configured.messages()
    assert configured.world.registry.services == {}


class TestAutoAddresses:
    def test_they_come_of_the_name(self) -> None:
        one, other = AutoAddresses(), AutoAddresses()
        other.give("something/else")
        assert one.give("default/api/a.example.com") == other.give("default/api/a.example.com")

    def test_names_that_meet_are_kept_apart_and_all_can_be_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auto_addresses, "SIZE", 300)
        pool = AutoAddresses()
        given = {str(number): pool.give(str(number)) for number in range(300)}
        assert len({v4 for v4, _ in given.values()}) == 300
        assert not any(v4.endswith((".0", ".255")) for v4, _ in given.values())
        assert pool.give("one more") == ()
        pool.release("7")
        assert pool.give("one more") == given["7"]
        assert pool.give("8") == given["8"]
