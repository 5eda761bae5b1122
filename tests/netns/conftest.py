"""A network with a captured pod, for the tests of capture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Network, require, scratch_cgroup
from harness.capture_agent import CaptureAgent, Captured


@pytest.fixture
def captured() -> Iterator[Captured]:
    require("root", "nft", "engine")
    with Network("cap") as network, scratch_cgroup("agent") as group, CaptureAgent(group.join) as agent:
        pod, outside = network.add("pod", default_route=True), network.add("out", default_route=True)
        agent.enrol(pod)
        yield Captured(network, pod, outside, agent)
