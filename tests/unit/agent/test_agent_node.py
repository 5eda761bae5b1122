"""Who the agent says it is."""

from __future__ import annotations

import pytest

from nodeagent.app.agent_node import own_address, workload_node
from nodeagent.config.agent import AgentConfig


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POD_NAME", "POD_NAMESPACE", "INSTANCE_IP", "SERVICE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)


def test_agents_of_two_nodes_are_told_apart() -> None:
    ids = {workload_node(AgentConfig(node=node, xds="127.0.0.1:15010")).id for node in ("node-a", "node-b")}
    end = "nodeagent-system~nodeagent-system.svc.cluster.local"
    assert ids == {f"ztunnel~127.0.0.1~nodeagent-{node}.{end}" for node in ("node-a", "node-b")}


def test_a_pod_is_named_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "nodeagent-x7z")
    monkeypatch.setenv("POD_NAMESPACE", "mesh")
    monkeypatch.setenv("INSTANCE_IP", "10.1.2.3")
    monkeypatch.setenv("SERVICE_ACCOUNT", "nodeagent")
    node = workload_node(AgentConfig(node="node-a"))
    assert node.id == "ztunnel~10.1.2.3~nodeagent-x7z.mesh~mesh.svc.cluster.local"
    assert dict(node.metadata) == {
        "NAME": "nodeagent-x7z",
        "NAMESPACE": "mesh",
        "INSTANCE_IPS": "10.1.2.3",
        "NODE_NAME": "node-a",
        "CLUSTER_ID": "Kubernetes",
        "SERVICE_ACCOUNT": "nodeagent",
    }


@pytest.mark.parametrize(
    ("peer", "own"), [("127.0.0.7:15010", "127.0.0.1"), ("[::1]:15010", "::1"), ("127.0.0.1:1", "127.0.0.1")]
)
def test_the_address_is_the_one_that_leads_to_the_control_plane(peer: str, own: str) -> None:
    assert own_address(peer) == own


@pytest.mark.parametrize("peer", ["istiod.istio-system.svc:15010", "unix:/run/xds.sock"])
def test_a_named_control_plane_is_not_looked_up(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert own_address(peer)
