"""Which services and pods node proxies are told to reach through a waypoint, and where that is."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from harness.xds_client import node

from nodeagent.controlplane.kinds import AddressKind
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.controlplane.view import View
from nodeagent.controlplane.xds.node import read_node
from nodeagent.proto import workload_pb2

WEB = "web.foo.svc.cluster.local"
POD = "Kubernetes//Pod/foo/web-1"
VIP = {"address": {"address": "CmAACQ=="}, "hboneMtlsPort": 15008}


def namespace(name: str, labels: str = "{}") -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n---\n"


def service(name: str, labels: str = "{}", space: str = "foo", address: str = "10.96.0.1") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {space}, labels: {labels}}}\n"
        f"spec: {{clusterIP: {address}, selector: {{app: web}}, ports: [{{name: http, port: 80}}]}}\n---\n"
    )


def pod(labels: str = "app: web") -> str:
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: web-1, namespace: foo, labels: {{{labels}}}}}\n"
        "status: {podIP: 10.1.0.1}\n---\n"
    )


def gateway(
    spec: str = "gatewayClassName: istio-waypoint",
    space: str = "foo",
    labels: str = "{istio.io/waypoint-for: all}",
    status: str = "{}",
) -> str:
    meta = f"metadata: {{name: way, namespace: {space}, labels: {labels}}}"
    head = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n"
    return f"{head}{meta}\nspec: {{{spec}}}\nstatus: {status}\n---\n"


USE = "{istio.io/use-waypoint: way}"
NONE = "{istio.io/use-waypoint: none}"
OTHER = "{istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: bar}"
WAY = service("way", "{gateway.istio.io/managed: istio.io-mesh-controller}", address="10.96.0.9")
CLASS = "gatewayClassName: istio-waypoint"


def listener(allowed: str) -> str:
    routes = f"{{namespaces: {allowed}}}"
    return f"{CLASS}, listeners: [{{name: mesh, port: 15009, protocol: HBONE, allowedRoutes: {routes}}}]"


def address(configured: Any, identity: str) -> Any:
    """What is served of a service or pod."""
    client = read_node(node(kind="ztunnel"))
    view = View(configured.world, client.perspective(None), None)
    made = AddressKind().build(view, identity)
    (item,) = (item for name, item in made.items() if identity in name)
    return workload_pb2.Address.FromString(item.body)


def waypoint(configured: Any, identity: str = WEB) -> Any:
    """The waypoint that a service or pod is served with, as JSON; None if there is none."""
    message = address(configured, identity)
    found = message.workload if message.HasField("workload") else message.service
    return json_format.MessageToDict(found.waypoint) if found.HasField("waypoint") else None


@pytest.mark.parametrize(
    ("text", "of_service", "of_pod"),
    [
        (service("web"), None, None),
        (service("web", USE), VIP, None),
        (namespace("foo", USE) + service("web"), VIP, VIP),
        (namespace("foo", USE) + service("web", NONE), None, VIP),
        (service("web") + pod("app: web, istio.io/use-waypoint: way"), None, VIP),
        (
            namespace("foo", USE) + service("web") + pod("gateway.networking.k8s.io/gateway-name: way"),
            VIP,
            None,
        ),
    ],
    ids=["nobody asks", "service", "namespace", "none", "pod", "the waypoint itself"],
)
def test_who_has_a_waypoint(configured: Any, text: str, of_service: Any, of_pod: Any) -> None:
    configured.put(pod() + WAY + gateway() + text)
    assert (waypoint(configured), waypoint(configured, POD)) == (of_service, of_pod)
    assert configured.messages() == []


@pytest.mark.parametrize(
    ("labels", "of_service", "of_pod"),
    [
        ("{}", VIP, None),
        ("{istio.io/waypoint-for: service}", VIP, None),
        ("{istio.io/waypoint-for: workload}", None, VIP),
        ("{istio.io/waypoint-for: none}", None, None),
    ],
)
def test_what_a_waypoint_is_for(configured: Any, labels: str, of_service: Any, of_pod: Any) -> None:
    configured.put(namespace("foo", USE) + service("web") + pod() + WAY + gateway(labels=labels))
    assert (waypoint(configured), waypoint(configured, POD)) == (of_service, of_pod)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WAY, VIP),
        (
            service("way", address="None"),
            {
                "hostname": {"namespace": "foo", "hostname": "way.foo.svc.cluster.local"},
                "hboneMtlsPort": 15008,
            },
        ),
        (
            gateway(status="{addresses: [{type: IPAddress, value: 10.0.0.7}]}") + WAY,
            {"address": {"address": "CgAABw=="}, "hboneMtlsPort": 15008},
        ),
        (
            gateway(status="{addresses: [{type: Hostname, value: way.bar.svc.cluster.local}]}")
            + service("way", space="bar"),
            {
                "hostname": {"namespace": "bar", "hostname": "way.bar.svc.cluster.local"},
                "hboneMtlsPort": 15008,
            },
        ),
        ("", None),
    ],
    ids=["address of its service", "headless", "status: address", "status: host", "nowhere"],
)
def test_where_a_waypoint_is(configured: Any, text: str, expected: Any) -> None:
    configured.put(service("web", USE) + gateway() + text)
    assert waypoint(configured) == expected


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("{}", False),
        ("{from: All}", True),
        ("{from: Selector, selector: {matchLabels: {team: a}}}", True),
        ("{from: Selector, selector: {matchLabels: {team: b}}}", False),
    ],
)
def test_who_may_use_a_waypoint_of_another_namespace(configured: Any, allowed: str, expected: bool) -> None:
    way = service("way", space="bar", address="10.96.0.9")
    configured.put(
        namespace("foo", "{team: a}") + service("web", OTHER) + way + gateway(listener(allowed), "bar")
    )
    assert waypoint(configured) == ({**VIP, "hboneMtlsPort": 15009} if expected else None)
    reason = "waypoint bar/way does not allow namespace foo (allowedRoutes); traffic goes without a waypoint"
    expected_messages = [] if expected else [reason]
    assert [text.rpartition("]: ")[2] for text in configured.messages()] == expected_messages


FINDINGS = {
    service("web", USE): "there is no Gateway foo/way of class istio-waypoint",
    service("web", USE) + gateway(): (
        "waypoint foo/way has no address: neither in its status, nor a Service of its name"
    ),
    service("web", USE) + WAY + gateway(labels="{istio.io/waypoint-for: workload}"): (
        "waypoint foo/way is for workload (label istio.io/waypoint-for), not for service"
    ),
}


@pytest.mark.parametrize(("text", "reason"), FINDINGS.items(), ids=list(FINDINGS.values()))
def test_why_there_is_none(configured: Any, text: str, reason: str) -> None:
    configured.put(text)
    head = "Service foo/web: metadata.labels[istio.io/use-waypoint]: "
    assert configured.messages() == [f"{head}{reason}; traffic goes without a waypoint"]


def test_other_gateways_are_told_to_have_no_effect(configured: Any) -> None:
    configured.put(gateway("gatewayClassName: istio"))
    path = "Gateway foo/way: spec.gatewayClassName: "
    assert configured.messages() == [path + "class istio is not supported yet; the Gateway has no effect"]


def test_a_change_reaches_those_who_use_the_waypoint(configured: Any) -> None:
    configured.put(service("web", USE) + service("other", address="10.96.0.2") + pod())
    assert configured.put(gateway()).addresses == {WEB}
    assert configured.put(WAY).addresses == {WEB}
    change = configured.remove(ObjectKey("", "Service", "foo", "way"))
    assert change.addresses == {WEB}
    assert WEB in AddressKind().affected(View(configured.world, read_node(node()).perspective(None)), change)
    assert configured.put(namespace("foo", USE)).addresses == {WEB, "other.foo.svc.cluster.local", POD}
    assert configured.put(namespace("foo", "{istio.io/use-waypoint: way, a: b}")).addresses
    assert not configured.put(namespace("bar", "{a: b}")).addresses


WAYPOINTS_POD = pod("gateway.networking.k8s.io/gateway-name: way")


def bound(binding: str) -> str:
    """A Gateway with Istio's annotation for waypoints that do not speak HBONE themselves."""
    annotations = f"annotations: {{ambient.istio.io/waypoint-inbound-binding: {binding}}}"
    return gateway().replace("labels:", f"{annotations}, labels:", 1)


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("PROXY/15088", {"protocol": "PROXY", "port": 15088}),
        ("PROXY", {"protocol": "PROXY"}),
        ("NONE", None),
        ('""', None),
    ],
)
def test_a_waypoints_pods_may_be_served_by_their_agent(configured: Any, binding: str, expected: Any) -> None:
    configured.put(WAY + WAYPOINTS_POD)
    assert POD in configured.put(bound(binding)).addresses
    found = address(configured, POD).workload
    tunnel = found.application_tunnel if found.HasField("application_tunnel") else None
    assert (json_format.MessageToDict(tunnel) if tunnel is not None else None) == expected
    assert configured.messages() == []


@pytest.mark.parametrize("binding", ["proxy", "PROXY/", "PROXY/0", "PROXY/70000", "HBONE/1"])
def test_a_binding_that_cannot_be_is_refused(configured: Any, binding: str) -> None:
    configured.put(bound(binding))
    (message,) = configured.messages()
    assert f"must be NONE, PROXY or PROXY/<port>, got '{binding}'" in message
