"""Which workloads' connections pass while no agent runs: those that ask for it, where everybody may come in anyway."""

from __future__ import annotations

from typing import Any

import pytest
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import FakeNamespace, Node
from harness.strict_policy import STRICT, strict_authorization

from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.errors import CapabilityError
from nodeagent.xds.types import ADDRESS, AUTHORIZATION

UID = "Kubernetes//Pod/default/productpage-1"


def _tell(server: MeshServer, labels: dict[str, str], *policies: str) -> None:
    message = xds.workload("productpage-1", "10.244.0.5", labels=labels)
    message.workload.authorization_policies.extend(policies)
    server.put(ADDRESS, UID, message)


async def _enrol(node: Node, *, fail_open: bool) -> None:
    pod = EnrolledPod("uid-1", "productpage-1", "default", "default", fail_open)
    await node.agent.enrolment.add(pod, FakeNamespace())  # type: ignore[arg-type]


def _fail_mode(node: Node) -> str:
    (row,) = node.agent.state.status().enrolment.workloads
    return row.fail_mode


async def test_a_label_opens_and_closes(node: Node) -> None:
    _tell(node.server, {"app": "page", "nodeagent.io/fail-mode": "open"})
    await node.enroll()
    await node.until(lambda: _fail_mode(node) == "open")
    _tell(node.server, {"app": "page"})
    await node.until(lambda: _fail_mode(node) == "closed")
    assert [line for line in node.engine.log if "open" in line] == ["open", "not open"]


async def test_a_policy_closes_what_asks_to_be_open(node: Node) -> None:
    _tell(node.server, {})
    await _enrol(node, fail_open=True)
    await node.until(lambda: _fail_mode(node) == "open")
    node.server.put(AUTHORIZATION, STRICT, strict_authorization())
    _tell(node.server, {}, STRICT)
    await node.until(lambda: _fail_mode(node) == "closed")
    _tell(node.server, {})
    await node.until(lambda: _fail_mode(node) == "open")


async def test_who_does_not_ask_is_closed(node: Node) -> None:
    _tell(node.server, {"nodeagent.io/fail-mode": "closed"})
    await node.enroll()
    assert _fail_mode(node) == "closed"
    assert "open" not in node.engine.log


async def test_where_it_cannot_be_the_workload_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_capture: Any, _open: bool) -> None:
        raise CapabilityError("fail mode open needs capture by eBPF")

    monkeypatch.setattr("harness.agent_node.FakeCapture.set_open", refuse)
    _tell(node.server, {})
    await _enrol(node, fail_open=True)
    await node.until(lambda: node.agent.state.status().enrolment.workloads[0].error)
    (row,) = node.agent.state.status().enrolment.workloads
    assert (row.state, row.fail_mode) == ("enrolled", "closed")
    assert "needs capture by eBPF" in row.error
