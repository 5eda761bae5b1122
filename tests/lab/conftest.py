"""One mesh for all tests of this folder that only use it; tests that break things restore them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.mesh import Mesh
from harness.meshes import running_mesh

LAB = """
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: client, node: node-a, labels: {app: client}}
- name: reviews-v1
  node: node-a
  serviceAccount: reviews
  labels: {app: reviews, version: v1}
  command: [nodeagent, echo, --http, "9080", --h2c, "9082", --grpc, "9083"]
- name: reviews-v2
  node: node-b
  serviceAccount: reviews
  labels: {app: reviews, version: v2}
  command: [nodeagent, echo, --http, "9080", --h2c, "9082", --grpc, "9083"]
- name: tcp-echo
  node: node-b
  labels: {app: tcp-echo}
  command: [nodeagent, echo, --tcp, "9000"]
- name: banner
  node: node-b
  labels: {app: banner}
  command: [nodeagent, echo, --tcp, "9001", --tcp-banner, "220 banner"]
- {name: outsider, node: node-b, mesh: false}
- name: plain
  node: node-a
  labels: {app: plain}
  command: [nodeagent, echo, --http, "9080"]
  mesh: false
config: [services.yaml]
"""


def service(name: str, *ports: str) -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{app: {name}}}
  ports: [{", ".join(ports)}]
"""


SERVICES = "---".join(
    [
        service(
            "reviews",
            "{name: http, port: 9080}",
            "{name: http2, port: 9082}",
            "{name: grpc, port: 9083}",
        ),
        service("tcp-echo", "{name: tcp, port: 9000}"),
        service("banner", "{name: smtp-like, port: 9001}"),
        service("plain", "{name: http, port: 9080}"),
    ]
)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The shared mesh: see LAB."""
    with running_mesh("t", tmp_path_factory.mktemp("mesh"), LAB, services=SERVICES) as mesh:
        yield mesh
