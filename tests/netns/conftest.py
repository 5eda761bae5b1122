"""A network with a captured pod, for the tests of capture: each runs in both modes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Network, require, scratch_cgroup
from harness.bypass_scene import BypassScene, bypass_scene
from harness.capture_agent import CaptureAgent, Captured

from nodeagent.dataplane.ebpf_node import unload

_numbers = itertools.count()


@contextmanager
def pins_of(mode: str) -> Iterator[Path | None]:
    """What a CaptureAgent is given for its mode: a folder for pins in mode ebpf, which is gone afterwards."""
    require("root", "nft", "engine")
    if mode == "nft":
        yield None
        return
    folder = Path(f"/sys/fs/bpf/nodeagent-test-{os.getpid()}-{next(_numbers)}")
    try:
        yield folder
    finally:
        unload(folder)


@pytest.fixture(params=["nft", "ebpf"])
def pins(request: pytest.FixtureRequest) -> Iterator[Path | None]:
    with pins_of(request.param) as folder:
        yield folder


@contextmanager
def captured_pod(pins: Path | None, name: str) -> Iterator[Captured]:
    with Network(name) as network, scratch_cgroup("agent") as group, CaptureAgent(group.join, pins) as agent:
        pod, outside = network.add("pod", default_route=True), network.add("out", default_route=True)
        agent.enrol(pod)
        yield Captured(network, pod, outside, agent)


@pytest.fixture
def captured(pins: Path | None) -> Iterator[Captured]:
    with captured_pod(pins, "cap") as found:
        yield found


@pytest.fixture(scope="module", params=["nft", "ebpf"])
def captured_by_all(request: pytest.FixtureRequest) -> Iterator[Captured]:
    with pins_of(request.param) as pins, captured_pod(pins, "all") as found:
        yield found


@pytest.fixture
def shared(captured_by_all: Captured) -> Captured:
    """A captured pod for tests that only connect; others of the module have connected before."""
    captured_by_all.earlier += captured_by_all.connections()
    return captured_by_all


@pytest.fixture(scope="module")
def bypass_pods() -> Iterator[BypassScene]:
    require("root", "nft", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-test-{os.getpid()}-{next(_numbers)}")
    try:
        with bypass_scene("pass", pins) as scene:
            yield scene
    finally:
        unload(pins)


@pytest.fixture
def bypass(bypass_pods: BypassScene) -> BypassScene:
    """Captured pods, and nothing by which anybody may pass the engine."""
    bypass_pods.maps.clear()
    return bypass_pods
