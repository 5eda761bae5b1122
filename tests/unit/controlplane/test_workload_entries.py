"""WorkloadEntries: workloads that are no pods."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.controlplane.report import Report, Severity
from nodeagent.controlplane.sources.base import Batch
from nodeagent.controlplane.translate.workloads import workload_address
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node
from nodeagent.model.workload import Locality
from nodeagent.proto import workload_pb2

HEAD = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
HOST = "web.default.svc.cluster.local"


def entry(name: str = "web-vm", metadata: str = "", spec: str = "address: 10.0.0.5") -> str:
    return f"{HEAD}metadata: {{name: {name}, {metadata}}}\nspec: {{{spec}}}\n"


def endpoints(configured: Any) -> list[tuple[str, int, bool]]:
    found = configured.world.registry.endpoints(HOST)[80]
    return [(each.address, each.port, each.ready) for each in found]


def test_what_it_says_makes_a_workload(configured: Any) -> None:
    text = entry(
        metadata="labels: {app: old, version: v1}, annotations: {nodeagent.io/node: vm-1}",
        spec="address: '::ffff:10.0.0.5', serviceAccount: web, labels: {app: web}, locality: eu/eu-1/rack-2",
    )
    configured.put(text)
    assert configured.messages() == []
    (found,) = configured.world.registry.workloads.values()
    assert found.uid == "Kubernetes/networking.istio.io/WorkloadEntry/default/web-vm"
    assert found.labels == {"app": "web", "version": "v1"}
    assert (found.node, found.service_account) == ("vm-1", "web")
    assert (found.canonical_name, found.canonical_revision) == ("web", "v1")
    assert found.locality == Locality("eu", "eu-1", "rack-2")
    registry = configured.world.registry
    assert registry.runs_on("vm-1", "default", "web"), "its node's agent may have its certificate"
    assert not registry.runs_on("", "default", "default")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("labels: {}", "WorkloadEntry default/web-vm: spec.address: required, but missing"),
        ("address: vm.example", "spec.address: 'vm.example' is not an IP address; names and Unix sockets"),
        (
            "address: 10.0.0.5, ports: {http: 70000}",
            "spec.ports.http: must be between 1 and 65535, got 70000",
        ),
        ("address: 10.0.0.5, port: 1", "spec.port: unknown field; did you mean ports?"),
    ],
)
def test_what_is_wrong_is_named(configured: Any, spec: str, message: str) -> None:
    configured.put(entry(spec=spec))
    assert message in configured.messages()[0]
    assert not configured.world.registry.workloads


def test_what_has_no_effect_yet_is_warned_of(configured: Any) -> None:
    configured.put(entry(spec="address: 10.0.0.5, weight: 5, network: far"))
    assert [(issue.path, issue.severity) for issue in configured.report] == [
        ("spec.network", Severity.WARNING),
    ]


def test_services_select_it_and_its_ports_go_by_name(configured: Any) -> None:
    configured.put(SERVICE)
    change = configured.put(entry(spec="address: 10.0.0.5, labels: {app: web}"))
    assert HOST in change.endpoints
    assert endpoints(configured) == [("10.0.0.5", 8080, True)]
    configured.put(entry(spec="address: 10.0.0.5, labels: {app: web}, ports: {http: 9080}"))
    assert endpoints(configured) == [("10.0.0.5", 9080, True)]
    unwell = "status: {conditions: [{type: Healthy, status: 'False'}]}"
    configured.put(entry(spec="address: 10.0.0.5, labels: {app: web}") + unwell)
    assert endpoints(configured) == [("10.0.0.5", 8080, False)]


def test_it_stands_beside_what_endpoint_slices_list(configured: Any) -> None:
    """Kubernetes lists pods only."""
    listed = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
"""
    configured.put("---\n".join((SERVICE, listed, entry(spec="address: 10.0.0.5, labels: {app: web}"))))
    assert {address for address, _, _ in endpoints(configured)} == {"10.0.0.1", "10.0.0.5"}
    (workload,) = configured.world.registry.workloads.values()
    assert configured.world.registry.hosts_of(workload) == [HOST]


def _tunnels(configured: Any, *texts: str) -> dict[str, int]:
    from envoy.config.core.v3 import base_pb2

    world = World(MeshSettings(hbone=True), Report())
    world.apply(Batch(changed=tuple(configured.objects("---\n".join(texts)))))
    client = read_node(base_pb2.Node(id="ztunnel~10.0.0.9~ztunnel.istio-system~cluster.local"))
    view = View(world, client.perspective(None), None)
    told = [workload_address(view, each).workload for each in world.registry.workloads.values()]
    entries = [each for each in told if "networking.istio.io" in each.uid]
    assert all(each.addresses for each in entries)
    assert all("nodeagent.machine" in [extension.name for extension in each.extensions] for each in entries)
    return {each.name: each.tunnel_protocol for each in entries}


HBONE = "labels: {networking.istio.io/tunnel: http}"


def test_it_is_reached_by_hbone_if_it_says_so(configured: Any) -> None:
    assert _tunnels(configured, entry(), entry("tunnelled", HBONE, "address: 10.0.0.6")) == {
        "web-vm": workload_pb2.NONE,
        "tunnelled": workload_pb2.HBONE,
    }


def test_at_a_shared_address_each_answers_at_its_own_port(configured: Any) -> None:
    own_network = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {%s}\nstatus: {podIP: 10.0.0.5}\n"
    two = entry(metadata=HBONE), entry("api-vm", HBONE)
    assert set(_tunnels(configured, *two).values()) == {workload_pb2.LEGACY_ISTIO_MTLS}
    assert _tunnels(configured, two[0], own_network % "hostNetwork: true") == {"web-vm": workload_pb2.HBONE}
    first = configured.put(two[0])
    assert first.workloads == {"Kubernetes/networking.istio.io/WorkloadEntry/default/web-vm"}
    assert configured.put(two[1]).workloads > first.workloads, "the first is told anew"
