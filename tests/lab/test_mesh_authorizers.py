"""External authorizers of a whole mesh: MeshConfig names them, policies use them, the destination's agent asks them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness import authorizer
from harness.mesh import Mesh, eventually
from harness.meshes import running_mesh

pytestmark = pytest.mark.lab

GRPC, HTTP = 9000, 8000
LAB = f"""
identity: {{}}
nodes: [{{name: node-a}}, {{name: node-b}}]
pods:
- {{name: client, node: node-a, serviceAccount: client, labels: {{app: client}}}}
- {{name: outsider, node: node-a, serviceAccount: outsider, mesh: false}}
- name: web
  node: node-b
  serviceAccount: web
  labels: {{app: web}}
  command: [nodeagent, echo, --http, "8080", --tcp, "7000"]
- name: authz
  node: node-a
  serviceAccount: authz
  labels: {{app: authz}}
  command: {json.dumps(authorizer.command(GRPC, HTTP, "0.0.0.0"))}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: by-grpc
      envoyExtAuthzGrpc: {service: authz.default.svc.cluster.local, port: 9000, timeout: 2s}
    - name: by-http
      envoyExtAuthzHttp:
        service: authz.default.svc.cluster.local
        port: 8000
        timeout: 2s
        includeRequestHeadersInCheck: [x-ext-authz]
        headersToUpstreamOnAllow: [x-user]
        headersToDownstreamOnDeny: [x-reason]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: authz}
spec: {selector: {app: authz}, ports: [{name: grpc, port: 9000}, {name: http, port: 8000}]}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: web}}
  action: CUSTOM
  provider: {name: %s}
  rules: [{to: [{operation: {%s}}]}]
"""
POLICIES = "---".join(
    (
        POLICY % ("grpc", "by-grpc", 'paths: [/grpc/*], ports: ["8080"]'),
        POLICY % ("http", "by-http", 'paths: [/http/*], ports: ["8080"]'),
        POLICY % ("gone", "nobody", 'paths: [/gone], ports: ["8080"]'),
    )
)
ALLOW = ("-H", "x-ext-authz: allow")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh-authorizers")
    with running_mesh("ta", folder, LAB, services=SERVICES) as mesh:
        mesh.apply(POLICIES, check=False)  # one of them is wrong
        eventually(lambda: status(mesh, "/grpc/a"), lambda code: code == "403")
        yield mesh


def status(mesh: Mesh, path: str, *options: str, pod: str = "client") -> str:
    """The status that a request to the pod `web` is answered with."""
    arguments = ("-o", "/dev/null", "-w", "%{http_code}", *options, f"http://web{path}")
    return mesh.curl(pod, *arguments, check=False)


@pytest.mark.parametrize("pod", ["client", "outsider"])
@pytest.mark.parametrize("path", ["/grpc/a", "/http/a"])
def test_the_authorizer_decides(mesh: Mesh, pod: str, path: str) -> None:
    assert status(mesh, path, pod=pod) == "403"
    assert status(mesh, path, *ALLOW, pod=pod) == "200"
    assert status(mesh, "/free", pod=pod) == "200"


def test_what_the_authorizer_says_reaches_both_sides(mesh: Mesh) -> None:
    answer = mesh.ask("client", *ALLOW, "http://web/http/a")
    assert ["x-user", "jane"] in answer["headers"]
    assert ["x-ext-authz-check-result", "allowed"] in mesh.ask("client", *ALLOW, "http://web/grpc/a")[
        "headers"
    ]
    refusal = mesh.curl("client", "-i", "http://web/http/a")
    assert "x-reason: because" in refusal
    assert refusal.endswith("denied by the authorizer")


def test_nobody_to_ask_is_a_refusal(mesh: Mesh) -> None:
    assert status(mesh, "/gone", *ALLOW) == "403"
    findings = [issue["text"] for issue in mesh.status("controlplane")["config_errors"]]
    assert any("no extension provider 'nobody'" in text for text in findings), findings


def test_connections_are_asked_about_too(mesh: Mesh) -> None:
    """The authorizer lets connections pass from one address only, which nobody here has."""
    talk = ("sh", "-c", "echo hello | nc -w 1 web 7000")
    assert mesh.exec("client", *talk, check=False) == "hello\n"
    mesh.apply(POLICY % ("tcp", "by-grpc", 'ports: ["7000"]'))
    try:
        eventually(lambda: mesh.exec("client", *talk, check=False), lambda heard: heard == "")
    finally:
        mesh.delete(POLICY % ("tcp", "by-grpc", 'ports: ["7000"]'))
    eventually(lambda: mesh.exec("client", *talk, check=False), lambda heard: heard == "hello\n")
