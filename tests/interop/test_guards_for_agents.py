"""What the control plane makes of security policies is all in force in our agent: its compiler leaves nothing out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3 import listener_pb2
from harness.xds_client import node

from nodeagent.compiler.inbound import compile_inbound
from nodeagent.compiler.pieces import InboundPiece, Scope
from nodeagent.controlplane.kinds import ListenerKind
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.resources import INBOUND
from nodeagent.controlplane.sources.base import Batch
from nodeagent.controlplane.sources.documents import read_yaml
from nodeagent.controlplane.sources.objects import read_object
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node
from nodeagent.snapshot.policies import Callout, RuleAction, Rules, TextCheck, Tokens
from nodeagent.snapshot.values import Protocol

EVERYTHING = Path(__file__).parents[1] / "golden" / "translate" / "cases" / "security.yaml"


@pytest.fixture(scope="module", params=["nodeagent.on-demand", "nodeagent.peers"])
def compiled(request: pytest.FixtureRequest) -> InboundPiece:
    """For an agent that asks for what it uses, and for one that takes everything."""
    world = World(MeshSettings(hbone=True), Report())
    documents = read_yaml(EVERYTHING.read_text())
    world.apply(Batch(tuple(read_object(item, str(item.line), lambda key: 1.0) for item in documents)))
    client = read_node(node(pod="web", features=[request.param]))
    workload = client.workload(world)
    view = View(world, client.perspective(workload), workload)
    served = ListenerKind().build(view, INBOUND)["virtualInbound"]
    return compile_inbound(listener_pb2.Listener.FromString(served.body), Scope("view"))


def kinds(stages: Any) -> list[str]:
    """The stages in short: what rules do, in lower case where they only note."""
    names = []
    for stage in stages:
        if isinstance(stage, Rules):
            names.append(stage.action.name.lower() if stage.shadow else stage.action.name)
        else:
            names.append({Tokens: "TOKENS", Callout: "CALLOUT"}[type(stage)])
    return names


def test_nothing_is_left_out(compiled: InboundPiece) -> None:
    assert compiled.warnings == ()
    assert {port: found.protocol for port, found in compiled.ports.items()} == {
        8080: Protocol.HTTP,
        5432: Protocol.TCP,
    }
    assert compiled.fallback.protocol is Protocol.DETECT


def test_the_order_of_stages(compiled: InboundPiece) -> None:
    requests = kinds(compiled.ports[8080].guarding.request)
    # Two authorizers that are asked, one that is not there; then tokens, AUDIT, DENY, ALLOW.
    assert requests == [
        "deny",
        "CALLOUT",
        "DENY",
        "deny",
        "CALLOUT",
        "TOKENS",
        "LOG",
        "deny",
        "DENY",
        "ALLOW",
    ]
    connections = kinds(compiled.ports[5432].guarding.connection)
    assert connections == ["DENY", "deny", "CALLOUT", "LOG", "deny", "DENY", "ALLOW"]


def test_callouts_look_where_shadow_rules_tell_what_they_found(compiled: InboundPiece) -> None:
    """For connections as for requests: else nobody would ever be asked, and all let through."""
    found = "envoy.filters.http.rbac\x1fistio_ext_authz_shadow_effective_policy_id"
    stages = (*compiled.ports[8080].guarding.request, *compiled.ports[5432].guarding.connection)
    conditions = [stage.when for stage in stages if isinstance(stage, Callout)]
    assert len(conditions) == 3
    assert {when.name for when in conditions if isinstance(when, TextCheck)} == {found}


def test_the_allowing_rule_of_a_tcp_port(compiled: InboundPiece) -> None:
    """Of three rules one is about connections; the others need requests and are not there."""
    allow = compiled.ports[5432].guarding.connection[-1]
    assert isinstance(allow, Rules)
    assert allow.action is RuleAction.ALLOW
    assert [policy.name for policy in allow.policies] == ["ns[default]-policy[allow]-rule[0]"]
