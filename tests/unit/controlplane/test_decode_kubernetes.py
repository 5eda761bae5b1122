"""Kubernetes objects as the control plane reads them."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.model.protocols import Protocol, select_protocol
from nodeagent.model.service import ServicePort
from nodeagent.model.workload import Locality, WorkloadType


def service(spec: str, metadata: str = "name: a") -> str:
    return f"apiVersion: v1\nkind: Service\nmetadata: {{{metadata}}}\nspec: {{{spec}}}\n"


def pod(metadata: str = "", status: str = "podIP: 10.0.0.1", spec: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: a-b, {metadata}}}\nspec: {{{spec}}}\nstatus: {{{status}}}\n"


def endpoint_slice(rest: str, labels: str = "{kubernetes.io/service-name: a}") -> str:
    head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
    return f"{head}metadata: {{name: a-1, labels: {labels}}}\naddressType: IPv4\n{rest}\n"


ERRORS = {
    service("ports: [{port: 80}, {port: 80, name: b}]"): (
        "Service default/a: spec.ports[1].port: port 80 is there twice"
    ),
    service("ports: [{port: 80}, {port: 81}]"): (
        "Service default/a: spec.ports[1].name: each port of a service needs a name of its own; (none) is there twice"
    ),
    service("ports: []"): "Service default/a: spec.ports: required, but empty",
    service("selector: {}"): "Service default/a: spec.ports: required, but missing",
    service(
        "ports: [{port: 0}]"
    ): "Service default/a: spec.ports[0].port: must be between 1 and 65535, got 0",
    service("ports: [{port: 80, protocol: HTTP}]"): (
        "Service default/a: spec.ports[0].protocol: must be one of TCP, UDP, SCTP, got 'HTTP'"
    ),
    service("ports: [{port: 80, targetPort: 70000}]"): (
        "Service default/a: spec.ports[0].targetPort: must be between 1 and 65535 or a port name, got 70000"
    ),
    service("ports: [{port: 80, targetPort: true}]"): (
        "Service default/a: spec.ports[0].targetPort: must be between 1 and 65535 or a port name, got True"
    ),
    service("clusterIP: 10.0.0.256, ports: [{port: 80}]"): (
        "Service default/a: spec.clusterIP: '10.0.0.256' is not an IP address"
    ),
    service("selector: {app: 1}, ports: [{port: 80}]"): (
        "Service default/a: spec.selector[app]: expected a string, got a number; put it in quotes"
    ),
    service("selectors: {app: a}, ports: [{port: 80}]"): (
        "Service default/a: spec.selectors: unknown field; did you mean selector?"
    ),
    service("type: Cluster, ports: [{port: 80}]"): (
        "Service default/a: spec.type: must be one of ClusterIP, NodePort, LoadBalancer, ExternalName, got 'Cluster'"
    ),
    service("ports: [{port: 80}]", "name: a, annotations: {networking.istio.io/exportTo: 'a b'}"): (
        "Service default/a: metadata.annotations[networking.istio.io/exportTo]: "
        "'a b' is neither '*', '.', '~' nor a namespace"
    ),
    pod(status="podIP: nowhere"): "Pod default/a-b: status.podIPs: 'nowhere' is not an IP address",
    pod(spec="containers: [{ports: [{containerPort: x}]}]"): (
        "Pod default/a-b: spec.containers[0].ports[0].containerPort: expected a whole number, got a string"
    ),
    endpoint_slice("endpoints: [{addresses: [x]}]"): (
        "EndpointSlice default/a-1: endpoints[0].addresses: 'x' is not an IP address"
    ),
    endpoint_slice(
        "endpoints: [{}]"
    ): "EndpointSlice default/a-1: endpoints[0].addresses: required, but missing",
    endpoint_slice("endpoints: []", "{}"): (
        "EndpointSlice default/a-1: metadata.labels[kubernetes.io/service-name]: required, but missing"
    ),
    endpoint_slice(
        "endpoint: []"
    ): "EndpointSlice default/a-1: endpoint: unknown field; did you mean endpoints?",
}


@pytest.mark.parametrize("text", ERRORS, ids=ERRORS.values())
def test_wrong_objects(configured: Any, text: str) -> None:
    configured.put(text)
    assert configured.messages() == [ERRORS[text]]


def test_unsupported_parts_of_services_are_warned_of(configured: Any) -> None:
    configured.put(service("sessionAffinity: ClientIP, ports: [{port: 80}]"))
    configured.put(service("type: ExternalName, externalName: b.example.com", "name: b"))
    assert configured.messages() == [
        "Service default/a: spec.sessionAffinity: not supported yet; it has no effect",
        "Service default/b: spec.externalName: not supported yet; it has no effect",
    ]
    assert list(configured.world.registry.services) == ["a.default.svc.cluster.local"]


@pytest.mark.parametrize(
    ("port", "name", "transport", "app_protocol", "expected"),
    [
        (80, "http", "TCP", "", Protocol.HTTP),
        (80, "http-web", "TCP", "", Protocol.HTTP),
        (80, "HTTP-web", "TCP", "", Protocol.HTTP),
        (80, "httpweb", "TCP", "", Protocol.UNDECLARED),
        (80, "", "TCP", "", Protocol.UNDECLARED),
        (80, "http", "TCP", "tcp", Protocol.TCP),
        (80, "web", "TCP", "http2", Protocol.HTTP2),
        (80, "web", "TCP", "kubernetes.io/h2c", Protocol.HTTP2),
        (80, "web", "TCP", "kubernetes.io/ws", Protocol.HTTP),
        (80, "web", "TCP", "kubernetes.io/wss", Protocol.HTTPS),
        (80, "grpc-web-x", "TCP", "", Protocol.GRPC_WEB),
        (80, "grpc-x", "TCP", "", Protocol.GRPC),
        (443, "https", "TCP", "", Protocol.HTTPS),
        (443, "tls-x", "TCP", "", Protocol.TLS),
        (27017, "mongo", "TCP", "", Protocol.MONGO),
        (3306, "x", "TCP", "", Protocol.TCP),
        (25, "", "TCP", "", Protocol.TCP),
        (53, "http", "UDP", "http", Protocol.UDP),
        (6379, "redis", "TCP", "", Protocol.REDIS),
    ],
)
def test_protocol_selection(
    port: int, name: str, transport: str, app_protocol: str, expected: Protocol
) -> None:
    assert select_protocol(port, name, transport, app_protocol) is expected


def the_pod(configured: Any, text: str) -> Any:
    configured.put(text)
    return next(iter(configured.world.registry.workloads.values()), None)


def test_pod_identity(configured: Any) -> None:
    found = the_pod(
        configured, pod("labels: {app: x, version: v2}", spec="serviceAccountName: sa, nodeName: n")
    )
    assert (found.uid, found.service_account, found.node) == ("Kubernetes//Pod/default/a-b", "sa", "n")
    assert (found.canonical_name, found.canonical_revision) == ("x", "v2")
    assert (found.workload_name, found.workload_type) == ("a-b", WorkloadType.POD)


@pytest.mark.parametrize(
    ("kind", "owner", "labels", "name", "kind_found"),
    [
        ("ReplicaSet", "web-7d9f", "pod-template-hash: 7d9f", "web", WorkloadType.DEPLOYMENT),
        ("ReplicaSet", "web-5b8c7d9f", "", "web", WorkloadType.DEPLOYMENT),
        ("StatefulSet", "db", "", "db", WorkloadType.DEPLOYMENT),
        ("Job", "once", "", "once", WorkloadType.JOB),
        ("Job", "nightly-28000000", "", "nightly", WorkloadType.CRONJOB),
    ],
)
def test_pod_owner(
    configured: Any, kind: str, owner: str, labels: str, name: str, kind_found: WorkloadType
) -> None:
    owners = f"ownerReferences: [{{kind: {kind}, name: {owner}, controller: true}}]"
    found = the_pod(configured, pod(f"labels: {{{labels}}}, {owners}"))
    assert (found.workload_name, found.workload_type) == (name, kind_found)


def test_canonical_labels_have_precedence(configured: Any) -> None:
    labels = "service.istio.io/canonical-name: c, app.kubernetes.io/name: n, app: a"
    assert the_pod(configured, pod(f"labels: {{{labels}}}")).canonical_name == "c"


def test_pod_readiness_and_phase(configured: Any) -> None:
    ready = 'podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]'
    assert the_pod(configured, pod(status=ready)).ready
    assert not the_pod(configured, pod(status="podIP: 10.0.0.1")).ready
    assert the_pod(configured, pod("deletionTimestamp: x", status=ready)).terminating
    assert the_pod(configured, pod(status="phase: Succeeded, podIP: 10.0.0.1")) is None
    assert the_pod(configured, pod(status="phase: Pending")) is None


def test_addresses_are_canonical(configured: Any) -> None:
    found = the_pod(configured, pod(status='podIPs: [{ip: 10.0.0.1}, {ip: "fd00:0::0001"}]'))
    assert found.addresses == ("10.0.0.1", "fd00::1")
    assert configured.world.registry.workload_at("fd00::1") is found


def test_locality_labels(configured: Any) -> None:
    assert the_pod(configured, pod("labels: {istio-locality: r.z.s}")).locality == Locality("r", "z", "s")
    assert the_pod(configured, pod("labels: {topology.kubernetes.io/zone: z}")).locality == Locality(
        "", "z", ""
    )


def test_target_ports(configured: Any) -> None:
    configured.put(
        service(
            "ports: [{name: a, port: 1}, {name: b, port: 2, targetPort: '8080'}, "
            "{name: c, port: 3, targetPort: web}, {name: d, port: 4, targetPort: 0}]"
        )
    )
    (found,) = configured.world.registry.services.values()
    undeclared = Protocol.UNDECLARED
    assert found.ports == (
        ServicePort("a", 1, 1, undeclared),
        ServicePort("b", 2, 8080, undeclared),
        ServicePort("c", 3, "web", undeclared),
        ServicePort("d", 4, 4, undeclared),
    )


def test_udp_and_tcp_on_one_port(configured: Any) -> None:
    configured.put(service("ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]"))
    (found,) = configured.world.registry.services.values()
    assert found.port(53).name == "dns-tcp"
