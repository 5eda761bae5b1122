"""Who refuses raw sockets: the ruleset, where the kernel has no netfilter links, else a program. Who follows whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from harness import Namespace, Network, scratch_cgroup

from nodeagent.dataplane import ebpf_node
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.ebpf_capture import EbpfCapture
from nodeagent.dataplane.ebpf_node import EbpfNode, netns_cookie
from nodeagent.dataplane.nft import read_rules
from nodeagent.dataplane.raw_guard import RawGuard, is_raw_guarded
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.errors import BpfError


def _refuse(shared: dict[str, Path]) -> RawGuard:
    raise BpfError("cannot load BPF object raw: Invalid argument\n  and more")


def _capture(pins: Path, group: Cgroup, pod: Namespace) -> EbpfNode:
    """What an agent does; it is gone then, and capture stays."""
    node = EbpfNode(pins, group)
    node.start()
    capture = EbpfCapture(node, pod.handle, replace(CaptureRules.for_agent(group), steered=True))
    capture.apply()
    capture.apply()
    assert capture.in_force()
    node.close()
    return node


def _chains(pod: Namespace) -> set[str]:
    return {chain for chain, _ in read_rules(pod.handle) or []}


def test_a_program_takes_over_from_the_ruleset_and_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = folder / "pins"
    with Network("raw") as network, scratch_cgroup("raw") as group:
        pod = network.add("pod")
        attached = pins / f"v{ebpf_node.ABI}" / "netns" / f"{netns_cookie(pod.handle):x}"
        with monkeypatch.context() as old_kernel:
            old_kernel.setattr(ebpf_node, "RawGuard", _refuse)
            node = _capture(pins, group.group, pod)
            assert node.bypass_lacks == (
                "raw sockets need a guard of Linux 6.4: cannot load BPF object raw: Invalid argument"
            )
            assert "output_past" in _chains(pod)
            assert not is_raw_guarded(attached)
        for _ in range(2):
            node = _capture(pins, group.group, pod)
            assert not node.bypass_lacks
            assert "output_past" not in _chains(pod)
            assert is_raw_guarded(attached)
        node.start()
        EbpfCapture(node, pod.handle, CaptureRules.for_agent(group.group)).remove()
        node.close()
    assert not pins.exists()
