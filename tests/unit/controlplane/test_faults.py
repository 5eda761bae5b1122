"""A fault of the control plane's own: what cannot be made any more stays with the clients as it was."""

from __future__ import annotations

from typing import Any

import pytest
from harness.xds_client import node

from nodeagent.controlplane.cache import PerspectiveCache
from nodeagent.controlplane.kinds import ListenerKind
from nodeagent.controlplane.translate import inbound
from nodeagent.controlplane.view import View
from nodeagent.controlplane.xds.node import read_node
from nodeagent.controlplane.xds.subscription import WILDCARD, Subscription

WORLD = """\
apiVersion: v1
kind: Pod
metadata: {name: web}
status: {podIP: 10.0.0.1}
"""
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec: {}
"""
INBOUND = "virtualInbound"


@pytest.mark.parametrize("name", [WILDCARD, INBOUND])
async def test_a_listener_that_cannot_be_made_stays(
    configured: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    configured.put(WORLD)
    client = read_node(node(pod="web", on_demand=name == INBOUND))
    workload = client.workload(configured.world)
    view = View(configured.world, client.perspective(workload), workload)
    subscription, cache = Subscription(ListenerKind()), PerspectiveCache()
    subscription.subscribe(view, [name])
    assert INBOUND in (await subscription.difference(view, cache)).updates

    def fail(view: View) -> None:
        raise ValueError("a fault")

    with monkeypatch.context() as broken:
        broken.setattr(inbound, "make_guards", fail)
        subscription.mark(view, configured.put(POLICY))
        assert not await subscription.difference(view, cache)
        assert any("ValueError: a fault" in message for message in configured.messages())
    subscription.mark(view, configured.put(POLICY.replace("{}", "{rules: [{}]}")))
    assert INBOUND in (await subscription.difference(view, cache)).updates
    assert configured.messages() == []
