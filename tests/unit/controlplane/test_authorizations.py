"""Security policies as node proxies get them: istio.security.Authorization, and which workload is told of which."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from harness.xds_client import node

from nodeagent.controlplane.kinds import KINDS, AddressKind, AuthorizationKind
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch, ObjectKey
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node
from nodeagent.proto import authorization_pb2, workload_pb2

POD = """
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %s}}
status: {podIP: 10.0.0.%d}
---
"""
PODS = POD % ("web", "foo", "web", 1) + POD % ("db", "foo", "db", 2) + POD % ("web", "bar", "web", 3)
ROOT, STRICT = "istio-system", "istio-system/istio_converted_static_strict"
NO_CERTIFICATE = {"notPrincipals": [{"presence": {}}]}


def policy(spec: str, name: str = "p", namespace: str = "foo", kind: str = "AuthorizationPolicy") -> str:
    head = f"apiVersion: security.istio.io/v1\nkind: {kind}\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"


def peer(spec: str, name: str = "p", namespace: str = "foo") -> str:
    return policy(spec, name, namespace, "PeerAuthentication")


def view_of(configured: Any, text: str, *aliases: str) -> View:
    world = World(MeshSettings(hbone=True, trust_domain_aliases=aliases), Report())
    world.apply(Batch(changed=tuple(configured.objects(PODS + text))))
    assert not [issue for issue in world.report if issue.severity == "error"], list(world.report)
    client = read_node(node(kind="ztunnel"))
    return View(world, client.perspective(None), None)


def authorizations(view: View) -> dict[str, Any]:
    """All that are served, by name, as JSON."""
    kind = AuthorizationKind()
    made = [item for group in kind.groups(view) for item in kind.build(view, group).values()]
    return {
        item.name: json_format.MessageToDict(authorization_pb2.Authorization.FromString(item.body))
        for item in made
    }


def told(view: View, namespace: str = "foo", name: str = "web") -> list[str]:
    """Names of the policies that a pod's Workload lists."""
    uid = f"Kubernetes//Pod/{namespace}/{name}"
    body = AddressKind().build(view, uid)[uid].body
    return list(workload_pb2.Address.FromString(body).workload.authorization_policies)


def rules(configured: Any, rule: str, action: str = "DENY", *aliases: str) -> Any:
    """The rules that one rule becomes."""
    view = view_of(configured, policy(f"{{action: {action}, rules: [{rule}]}}"), *aliases)
    return authorizations(view)["foo/p"].get("rules", [])


def clauses(*groups: Any) -> list[Any]:
    return [{"clauses": [{"matches": list(group)} for group in groups]}]


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{}", [{}]),
        (
            "{from: [{source: {principals: [a, b*, '*c', '*'], notPrincipals: [d]}}]}",
            clauses(
                [
                    {
                        "principals": [{"exact": "a"}, {"prefix": "b"}, {"suffix": "c"}, {"presence": {}}],
                        "notPrincipals": [{"exact": "d"}],
                    }
                ]
            ),
        ),
        (
            "{from: [{source: {namespaces: [a]}}, {source: {notNamespaces: [b*]}}]}",
            clauses([{"namespaces": [{"exact": "a"}]}, {"notNamespaces": [{"prefix": "b"}]}]),
        ),
        (
            "{from: [{source: {ipBlocks: [10.1.2.3/8], notIpBlocks: ['::1']}}]}",
            clauses(
                [
                    {
                        "sourceIps": [{"address": "CgAAAA==", "length": 8}],
                        "notSourceIps": [{"address": "AAAAAAAAAAAAAAAAAAAAAQ==", "length": 128}],
                    }
                ]
            ),
        ),
        (
            "{from: [{source: {serviceAccounts: [a, b/c], notServiceAccounts: [d]}}]}",
            clauses(
                [
                    {
                        "serviceAccounts": [
                            {"namespace": "foo", "serviceAccount": "a"},
                            {"namespace": "b", "serviceAccount": "c"},
                        ],
                        "notServiceAccounts": [{"namespace": "foo", "serviceAccount": "d"}],
                    }
                ]
            ),
        ),
        (
            "{to: [{operation: {ports: ['80'], notPorts: ['81']}}], from: [{source: {namespaces: [a]}}]}",
            clauses(
                [{"destinationPorts": [80], "notDestinationPorts": [81]}], [{"namespaces": [{"exact": "a"}]}]
            ),
        ),
        (
            "{when: [{key: source.principal, values: [a]}, {key: destination.ip, notValues: [10.0.0.1]},"
            " {key: destination.port, values: ['1']}, {key: source.serviceAccount, values: [b]}]}",
            clauses(
                [{"principals": [{"exact": "a"}]}],
                [{"notDestinationIps": [{"address": "CgAAAQ==", "length": 32}]}],
                [{"destinationPorts": [1]}],
                [{"serviceAccounts": [{"namespace": "foo", "serviceAccount": "b"}]}],
            ),
        ),
        (
            "{from: [{source: {namespaces: [a], trustDomains: [x]}}, {source: {notTrustDomains: [y*, '*']}}]}",
            clauses([{"namespaces": [{"exact": "a"}]}], [{"principals": [{"prefix": "x/"}]}])
            + clauses([{"notPrincipals": [{"prefix": "y"}, {"presence": {}}]}]),
        ),
    ],
)
def test_what_connections_show(configured: Any, rule: str, expected: Any, action: str) -> None:
    assert rules(configured, rule, action) == expected


HTTP_RULES = [
    "{to: [{operation: {paths: [/a]}}]}",
    "{to: [{operation: {notMethods: [GET]}}]}",
    "{to: [{operation: {hosts: [a]}}]}",
    "{from: [{source: {requestPrincipals: [a]}}]}",
    "{from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}",
    "{from: [{source: {trustDomains: ['*a']}}]}",
    "{when: [{key: 'request.headers[a]', values: [b]}]}",
    "{when: [{key: request.auth.audiences, values: [b]}]}",
    "{when: [{key: connection.sni, values: [b]}]}",
]


@pytest.mark.parametrize("rule", HTTP_RULES)
def test_what_only_requests_show_never_matches_alone(configured: Any, rule: str) -> None:
    assert rules(configured, rule, "ALLOW") == []
    assert rules(configured, rule, "DENY") == clauses([{}])


@pytest.mark.parametrize("rule", HTTP_RULES)
def test_a_denying_rule_keeps_what_connections_show(configured: Any, rule: str) -> None:
    both = rule[:-1] + ", when: [{key: source.namespace, values: [a]}]}"
    if "when" in rule:
        both = rule.replace("when: [", "when: [{key: source.namespace, values: [a]}, ")
    assert rules(configured, both, "ALLOW") == []
    assert rules(configured, both, "DENY") == clauses([{"namespaces": [{"exact": "a"}]}])


def test_aliases_of_the_trust_domain(configured: Any) -> None:
    rule = "{from: [{source: {principals: [cluster.local/ns/a/sa/b, '*/ns/a/sa/b', other/ns/a/sa/b]}}]}"
    (found,) = rules(configured, rule, "ALLOW", "old")[0]["clauses"]
    assert found["matches"][0]["principals"] == [
        {"exact": "cluster.local/ns/a/sa/b"},
        {"exact": "old/ns/a/sa/b"},
        {"suffix": "/ns/a/sa/b"},
        {"exact": "other/ns/a/sa/b"},
    ]


def test_scopes_and_who_is_told(configured: Any) -> None:
    selector = "{selector: {matchLabels: {app: web}}}"
    view = view_of(
        configured,
        policy("{}", "namespace")
        + policy(selector, "selecting")
        + policy("{}", "mesh", ROOT)
        + policy(selector, "everywhere", ROOT)
        + policy("{action: AUDIT}", "audit")
        + policy("{action: CUSTOM, provider: {name: a}, rules: [{}]}", "custom")
        + policy("{targetRefs: [{kind: Service, name: a}]}", "attached"),
    )
    scopes = {name: found.get("scope", "GLOBAL") for name, found in authorizations(view).items()}
    assert scopes == {
        "foo/namespace": "NAMESPACE",
        "foo/selecting": "WORKLOAD_SELECTOR",
        "istio-system/mesh": "GLOBAL",
        "istio-system/everywhere": "WORKLOAD_SELECTOR",
    }
    assert told(view) == ["foo/selecting", "istio-system/everywhere"]
    assert told(view, "bar") == ["istio-system/everywhere"]
    assert told(view, name="db") == []


# -- PeerAuthentication: mode of mesh, namespace and workload, ports of the workload, what is told --

SELECT = "selector: {matchLabels: {app: web}}"
CONVERTED = "foo/converted_peer_authentication_p"
PEERS = [
    ("", "", "", []),
    ("STRICT", "", "", [STRICT]),
    ("STRICT", "PERMISSIVE", "", []),
    ("PERMISSIVE", "STRICT", "", [STRICT]),
    ("STRICT", "UNSET", "", [STRICT]),
    ("STRICT", "", "mtls: {mode: DISABLE}", []),
    ("", "", "mtls: {mode: STRICT}", [STRICT]),
    ("STRICT", "", "portLevelMtls: {80: {mode: STRICT}}", [STRICT]),
    ("STRICT", "", "portLevelMtls: {80: {mode: UNSET}}", [STRICT]),
    ("", "", "portLevelMtls: {80: {mode: PERMISSIVE}}", []),
    ("", "STRICT", "portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: DISABLE}, 82: {mode: STRICT}}", [CONVERTED]),
    ("", "", "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}", [CONVERTED]),
    ("", "", "portLevelMtls: {80: {mode: STRICT}, 81: {mode: STRICT}}", [CONVERTED]),
    ("STRICT", "", "mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}", [CONVERTED]),
]  # fmt: skip


def peers(mesh: str, namespace: str, workload: str) -> str:
    text = peer(f"{{mtls: {{mode: {mesh}}}}}", "m", ROOT) if mesh else ""
    text += peer(f"{{mtls: {{mode: {namespace}}}}}", "n") if namespace else ""
    return text + (peer(f"{{{SELECT}, {workload}}}") if workload else "")


@pytest.mark.parametrize(("mesh", "namespace", "workload", "expected"), PEERS)
def test_the_effective_mode(
    configured: Any, mesh: str, namespace: str, workload: str, expected: list[str]
) -> None:
    view = view_of(configured, peers(mesh, namespace, workload))
    assert told(view) == expected
    assert set(expected) <= set(authorizations(view))


def test_strict(configured: Any) -> None:
    found = authorizations(view_of(configured, peers("STRICT", "", "")))
    assert found == {
        STRICT: {
            "name": "istio_converted_static_strict",
            "namespace": ROOT,
            "scope": "WORKLOAD_SELECTOR",
            "action": "DENY",
            "rules": clauses([NO_CERTIFICATE]),
        }
    }


def test_ports_that_are_not_strict(configured: Any) -> None:
    workload = "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: DISABLE}}"
    found = authorizations(view_of(configured, peers("", "", workload)))[CONVERTED]
    excepted = [[{"notDestinationPorts": [80]}], [{"notDestinationPorts": [81]}]]
    assert found["rules"] == clauses([NO_CERTIFICATE], *excepted)


def test_ports_that_are_strict(configured: Any) -> None:
    workload = "portLevelMtls: {80: {mode: STRICT}, 81: {mode: STRICT}}"
    found = authorizations(view_of(configured, peers("", "", workload)))[CONVERTED]
    each = [clauses([{**NO_CERTIFICATE, "destinationPorts": [port]}]) for port in (80, 81)]
    assert found["rules"] == [*each[0], *each[1]]


def test_the_oldest_wins(configured: Any) -> None:
    older = peer("{mtls: {mode: STRICT}}", "b")
    view = view_of(configured, older + peer("{mtls: {mode: PERMISSIVE}}", "a"))
    assert told(view) == [STRICT]


def test_none_without_policies(configured: Any) -> None:
    assert authorizations(view_of(configured, "")) == {}


# -- changes --


def test_a_change_names_whom_it_concerns(configured: Any) -> None:
    configured.put(PODS)
    change = configured.put(policy(f"{{{SELECT}}}"))
    assert (change.policies, change.guarded) == ({"foo/p"}, {"foo"})
    assert change.addresses == {"Kubernetes//Pod/foo/web"}
    change = configured.remove(ObjectKey("security.istio.io", "AuthorizationPolicy", "foo", "p"))
    assert (change.policies, change.addresses) == ({"foo/p"}, {"Kubernetes//Pod/foo/web"})


def test_who_asked_for_a_service_is_told_of_its_pods_policies(configured: Any) -> None:
    """On demand a service comes with its pods."""
    web = "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}"
    configured.put(
        PODS + f"apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: foo}}\nspec: {web}"
    )
    change = configured.put(policy(f"{{{SELECT}}}"))
    view = View(configured.world, read_node(node(kind="ztunnel")).perspective(None))
    groups = AddressKind().affected(view, change)
    assert AddressKind().group_of(view, "foo/web.foo.svc.cluster.local") in groups


def test_a_mesh_wide_mode_concerns_everybody(configured: Any) -> None:
    configured.put(PODS + peers("", "", "portLevelMtls: {80: {mode: PERMISSIVE}}"))
    change = configured.put(peers("STRICT", "", ""))
    assert change.guarded == {"*"}
    assert {STRICT, CONVERTED} <= change.policies
    assert len(change.addresses) == 3


def test_policies_are_sent_before_the_workloads_that_list_them() -> None:
    order = [type(kind) for kind in KINDS]
    assert order.index(AuthorizationKind) < order.index(AddressKind)
