"""Guards of a pod's inbound listener: which changes make them anew, and what is found wrong about them."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from harness.xds_client import node

from nodeagent.controlplane.istio.key_sets import KeySource
from nodeagent.controlplane.kinds import ListenerKind
from nodeagent.controlplane.resources import INBOUND
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.controlplane.view import View
from nodeagent.controlplane.xds.node import read_node

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: foo, labels: {app: web}}
status: {podIP: 10.0.0.1}
"""
AUTHZ = """\
apiVersion: v1
kind: Service
metadata: {name: authz, namespace: bar}
spec: {clusterIP: 10.96.0.1, ports: [{name: %s, port: %d}]}
"""
MESH = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: %s, port: 9000}}]
"""
HOST = "authz.bar.svc.cluster.local"


def policy(spec: str, namespace: str = "foo", kind: str = "AuthorizationPolicy", name: str = "p") -> str:
    head = f"apiVersion: security.istio.io/v1\nkind: {kind}\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"


CUSTOM = policy("{action: CUSTOM, provider: {name: opa}, rules: [{}]}")
TOKENS = policy("{jwtRules: [{issuer: me, jwksUri: https://keys.example/}]}", kind="RequestAuthentication")


def view_of(configured: Any, pod: str = "web", namespace: str = "foo") -> View:
    client = read_node(node(pod=pod, namespace=namespace, address="10.0.0.9"))
    workload = client.workload(configured.world)
    return View(configured.world, client.perspective(workload), workload)


def filters(configured: Any) -> list[str]:
    """The HTTP filters of the pod's catch-all chain."""
    made = ListenerKind().build(view_of(configured), INBOUND)["virtualInbound"]
    listener = listener_pb2.Listener.FromString(made.body)
    (chain,) = (chain for chain in listener.filter_chains if chain.name == "virtualInbound-catchall-http")
    manager = http_connection_manager_pb2.HttpConnectionManager.FromString(
        chain.filters[0].typed_config.value
    )
    return [found.name.removeprefix("envoy.filters.http.") for found in manager.http_filters]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (policy("{}"), True),
        (policy("{}", "istio-system"), True),
        (policy("{}", "bar"), False),
        (policy("{mtls: {mode: STRICT}}", kind="PeerAuthentication"), True),
        (TOKENS, True),
        (MESH % HOST, True),
        (AUTHZ % ("grpc", 9000), True),
        (POD.replace("name: web,", "name: other,"), False),
    ],
)
@pytest.mark.parametrize("pod", ["web", "unknown"])
def test_which_changes_make_them_anew(configured: Any, text: str, expected: bool, pod: str) -> None:
    configured.put(POD)
    assert (INBOUND in ListenerKind().affected(view_of(configured, pod), configured.put(text))) is expected


def test_fetched_keys_make_them_anew(configured: Any) -> None:
    configured.put(POD + "---\n" + TOKENS)
    change = configured.world.put_keys(KeySource("https://keys.example/"), "keys")
    assert INBOUND in ListenerKind().affected(view_of(configured), change)
    assert not configured.world.put_keys(KeySource("https://keys.example/"), "keys")
    assert not configured.world.put_keys(KeySource("https://nobody.wants/"), "keys")


def test_they_follow_policies_of_the_pod(configured: Any) -> None:
    configured.put(POD)
    assert filters(configured) == ["router"]
    configured.put(policy("{selector: {matchLabels: {app: other}}}"))
    assert filters(configured) == ["router"]
    configured.put(policy("{selector: {matchLabels: {app: web}}}"))
    assert filters(configured) == ["rbac", "router"]
    configured.remove(ObjectKey("security.istio.io", "AuthorizationPolicy", "foo", "p"))
    assert filters(configured) == ["router"]


DENIED = "What the policy matches is denied"
PROVIDERS = [
    ("", f"MeshConfig has no extension provider 'opa' that authorizes; there are: none. {DENIED}"),
    (MESH % HOST, f"extension provider opa: no service {HOST} is known. {DENIED}"),
    (
        MESH % f"foo/{HOST}" + "---\n" + AUTHZ % ("grpc", 9000),
        f"extension provider opa: no service {HOST} in namespace foo is known. {DENIED}",
    ),
    (
        MESH % HOST + "---\n" + AUTHZ % ("grpc", 9001),
        f"extension provider opa: {HOST} has no port 9000. {DENIED}",
    ),
    (
        MESH % HOST + "---\n" + AUTHZ % ("http", 9000),
        f"port 9000 of {HOST} is not declared to speak gRPC, which the provider needs; "
        "name it grpc or set appProtocol: grpc",
    ),
    (MESH % f"bar/{HOST}" + "---\n" + AUTHZ % ("grpc", 9000), ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), PROVIDERS, ids=[reason for _, reason in PROVIDERS])
def test_who_can_be_asked(configured: Any, text: str, reason: str) -> None:
    configured.put(POD + "---\n" + CUSTOM + ("---\n" + text if text else ""))
    head = "AuthorizationPolicy foo/p: spec.provider.name: "
    assert configured.messages() == ([head + reason] if reason else [])
    denied = reason.endswith("denied")
    assert filters(configured) == (["rbac", "router"] if denied else ["rbac", "ext_authz", "router"])


def test_the_newer_of_two_peer_authentications_is_told_that_it_loses(configured: Any) -> None:
    one = policy("{mtls: {mode: PERMISSIVE}}", kind="PeerAuthentication", name="a")
    configured.put(one + "---\n" + one.replace("name: a", "name: b"))
    assert configured.messages() == [
        "PeerAuthentication foo/b: spec: PeerAuthentication foo/a (f.yaml:1) is older and is the one in force"
    ]


def test_every_chain_reads_slashes_as_the_mesh_wants(configured: Any) -> None:
    """A chain that read them otherwise would let pass what another refuses."""
    service = AUTHZ.replace("bar", "foo") % ("http", 80)
    configured.put(POD + "---\n" + service.replace("ports", "selector: {app: web}, ports"))
    mesh = (MESH % HOST).replace(
        "extensionProviders", "pathNormalization: {normalization: MERGE_SLASHES}\n    extensionProviders"
    )
    configured.put(mesh)
    made = ListenerKind().build(view_of(configured), INBOUND)["virtualInbound"]
    managers = [
        http_connection_manager_pb2.HttpConnectionManager.FromString(chain.filters[-1].typed_config.value)
        for chain in listener_pb2.Listener.FromString(made.body).filter_chains
        if chain.filters[-1].name.endswith("http_connection_manager")
    ]
    assert [manager.merge_slashes for manager in managers] == [True, True]
