"""Which pods node proxies are told to reach by HBONE."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch
from nodeagent.controlplane.translate.workloads import workload_address
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node
from nodeagent.proto import workload_pb2

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, annotations: {%s}}
spec: {serviceAccountName: web, hostNetwork: %s}
status: {podIP: 10.0.0.1}
"""
CAPTURED = "ambient.istio.io/redirection: enabled"


def tunnel_protocol(configured: Any, text: str, *, hbone: bool = True) -> int:
    from envoy.config.core.v3 import base_pb2

    world = World(MeshSettings(hbone=hbone), Report())
    world.apply(Batch(changed=tuple(configured.objects(text))))
    (workload,) = world.registry.workloads.values()
    client = read_node(base_pb2.Node(id="ztunnel~10.0.0.9~ztunnel.istio-system~cluster.local"))
    view = View(world, client.perspective(None), None)
    return int(workload_address(view, workload).workload.tunnel_protocol)


def test_a_captured_pod_is_reached_by_hbone(configured: Any) -> None:
    assert tunnel_protocol(configured, POD % (CAPTURED, "false")) == workload_pb2.HBONE


@pytest.mark.parametrize(
    "text",
    [
        POD % ("", "false"),
        POD % ("ambient.istio.io/redirection: disabled", "false"),
        POD % (CAPTURED, "true"),
    ],
    ids=["not captured", "captured no more", "on the host's network"],
)
def test_others_are_not(configured: Any, text: str) -> None:
    assert tunnel_protocol(configured, text) == workload_pb2.NONE


SIDECAR = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {security.istio.io/tlsMode: %s}, annotations: {%s}}
spec: {serviceAccountName: web}
status: {podIP: 10.0.0.1}
"""


@pytest.mark.parametrize(
    ("label", "annotation", "hbone", "protocol"),
    [
        ("istio", "", True, workload_pb2.LEGACY_ISTIO_MTLS),
        ("istio", CAPTURED, True, workload_pb2.HBONE),
        ("disabled", "", True, workload_pb2.NONE),
        ("istio", "", False, workload_pb2.NONE),
    ],
    ids=["by its label", "captured as well", "another label", "without a CA"],
)
def test_a_sidecar_is_reached_by_mtls(
    configured: Any, label: str, annotation: str, hbone: bool, protocol: int
) -> None:
    assert tunnel_protocol(configured, SIDECAR % (label, annotation), hbone=hbone) == protocol


def test_nobody_is_without_a_ca(configured: Any) -> None:
    assert tunnel_protocol(configured, POD % (CAPTURED, "false"), hbone=False) == workload_pb2.NONE
