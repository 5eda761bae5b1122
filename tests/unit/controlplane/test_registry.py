"""Endpoints and look-ups of the registry, and what changes touch."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.controlplane.sources.base import ObjectKey

HOST = "a.default.svc.cluster.local"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 9999}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: one}}, {addresses: [192.0.2.1]}]
"""


def pod(
    name: str, address: str = "10.0.0.1", labels: str = "app: a", ready: bool = True, rest: str = ""
) -> str:
    return f"""\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{labels}}}}}
spec: {{{rest}}}
status: {{podIP: {address}, conditions: [{{type: Ready, status: "{ready}"}}]}}
"""


def endpoints(configured: Any, port: int = 80) -> list[tuple[str, int, bool]]:
    found = configured.world.registry.endpoints(HOST).get(port, ())
    return [(endpoint.address, endpoint.port, endpoint.ready) for endpoint in found]


@pytest.mark.parametrize(
    "order", [(SERVICE, pod("one")), (pod("one"), SERVICE)], ids=["service first", "pod first"]
)
def test_pods_are_selected_by_label(configured: Any, order: tuple[str, str]) -> None:
    for text in order:
        configured.put(text)
    configured.put(pod("other", "10.0.0.9", "app: b"))
    assert endpoints(configured) == [("10.0.0.1", 8080, True)]


def test_labels_that_change_move_the_pod(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + pod("one"))
    change = configured.put(pod("one", labels="app: b"))
    assert endpoints(configured) == []
    assert change.endpoints == {HOST}
    assert not change.services


def test_unready_and_terminating_pods(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + pod("one", ready=False))
    assert endpoints(configured) == [("10.0.0.1", 8080, False)]


def test_publish_not_ready(configured: Any) -> None:
    configured.put(SERVICE.replace("clusterIP", "publishNotReadyAddresses: true, clusterIP") + "---\n")
    configured.put(pod("one", ready=False))
    assert endpoints(configured) == [("10.0.0.1", 8080, True)]


def test_named_target_port(configured: Any) -> None:
    configured.put(SERVICE.replace("8080", "web"))
    configured.put(pod("one", rest="containers: [{ports: [{name: web, containerPort: 5}]}]"))
    configured.put(pod("two", "10.0.0.2"))
    assert endpoints(configured) == [("10.0.0.1", 5, True)]


def test_slices_take_the_place_of_the_selector(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + pod("one") + "---\n" + pod("two", "10.0.0.2"))
    change = configured.put(SLICE)
    assert endpoints(configured) == [("10.0.0.1", 9999, True), ("192.0.2.1", 9999, True)]
    assert change.endpoints == {HOST}
    registry = configured.world.registry
    assert registry.hosts_of(registry.workload_named("default", "one")) == [HOST]
    assert registry.hosts_of(registry.workload_named("default", "two")) == []
    configured.remove(ObjectKey("discovery.k8s.io", "EndpointSlice", "default", "a-1"))
    assert endpoints(configured) == [("10.0.0.1", 8080, True), ("10.0.0.2", 8080, True)]


def test_pod_behind_a_slice_brings_its_labels(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + SLICE)
    configured.put(pod("one", labels="app: x, version: v7"))
    first = configured.world.registry.endpoints(HOST)[80][0]
    assert first.labels["version"] == "v7"


def test_slices_of_both_families_make_one_endpoint(configured: Any) -> None:
    configured.put(
        SERVICE.replace("clusterIP: 10.96.0.1", 'clusterIPs: [10.96.0.1, "fd00::1"]') + "---\n" + SLICE
    )
    configured.put(SLICE.replace("a-1", "a-2").replace("10.0.0.1", '"fd00::2"').replace("IPv4", "IPv6"))
    first = configured.world.registry.endpoints(HOST)[80][0]
    assert (first.address, first.additional_addresses) == ("10.0.0.1", ("fd00::2",))


def test_removed_service_is_gone_from_every_index(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + pod("one"))
    change = configured.remove(ObjectKey("", "Service", "default", "a"))
    registry = configured.world.registry
    assert change.services == {HOST}
    assert change.ports == {80}
    assert registry.service_at("10.96.0.1") is None
    assert registry.services_on_port(80) == []
    assert registry.hosts_of(registry.workload_named("default", "one")) == []


def test_the_older_of_two_services_keeps_the_address(configured: Any) -> None:
    configured.put(SERVICE + "---\n" + SERVICE.replace("name: a}", "name: b}"))
    assert configured.world.registry.service_at("10.96.0.1").name == "a"
    assert configured.messages() == [
        "Service default/b: spec.clusterIP: 10.96.0.1 is also of Service default/a, which is older and keeps it"
    ]


def test_same_object_again_changes_nothing(configured: Any) -> None:
    configured.put(SERVICE)
    configured.report.replace("x", ())
    raw = configured.objects(SERVICE)[0]
    before = configured.world.registry.services[HOST]
    from dataclasses import replace

    from nodeagent.controlplane.sources.base import Batch

    change = configured.world.apply(Batch(changed=(replace(raw, created=before.created),)))
    assert not change


def test_routes_that_lead_to_a_service_follow_its_ports(configured: Any) -> None:
    """A destination without a port takes the service's only one: a change of that one touches the route."""
    configured.put(
        SERVICE.replace("name: a}", "name: front}").replace("10.96.0.1", "10.96.0.2")
        + """\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec: {hosts: [front], http: [{route: [{destination: {host: a}}]}]}
"""
    )
    change = configured.put(SERVICE)
    assert "front.default.svc.cluster.local" in change.routes
