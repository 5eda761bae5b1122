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
from nodeagent.dataplane.raw_guard import RawGuard, detach_raw_guard, is_raw_guarded
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.errors import BpfError


def _refuse(shared: dict[str, Path]) -> RawGuard:
    raise BpfError("cannot load BPF object raw: Invalid argument\n  and more")


def _capture(pins: Path, group: Cgroup, pod: Namespace) -> EbpfNode:
    """What an agent does; it is gone then, and capture stays."""
    node = EbpfNode(pins, group)
    node.start()
    capture = EbpfCapture(node, pod.handle, replace(CaptureRules.for_agent(group), steered=True))
    for _ in range(4):
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


CUT_SHORT = {
    "before the first": {"second": "raw4-new"},
    "with both": {"first": "raw4", "second": "raw4-new"},
    "with neither in force": {"first": "raw4-old", "second": "raw4-new"},
    "before the old one went": {"first": "raw4-old", "second": "raw4"},
}


@pytest.mark.parametrize("moment", CUT_SHORT)
def test_a_change_that_was_cut_short_is_mended(folder: Path, moment: str) -> None:
    """By an agent that was killed between two of its steps: one link is left then, and none in the end."""
    (folder / "pod").mkdir()
    names = CUT_SHORT[moment]
    with Network("cut") as network:
        pod = network.add("pod")
        guard = RawGuard({"counters": folder / "counters"})
        if "first" in names:
            guard.attach(pod.handle, folder / "pod")
            (folder / "pod" / "raw4").rename(folder / "first")
        guard.attach(pod.handle, folder / "pod")
        (folder / "pod" / "raw4").rename(folder / "second")
        for link, name in names.items():
            (folder / link).rename(folder / "pod" / name)
        for _ in range(3):
            guard.attach(pod.handle, folder / "pod")
            assert {each.name for each in (folder / "pod").iterdir()} == {"raw4", "raw6"}
        detach_raw_guard(folder / "pod")
        assert not list((folder / "pod").iterdir())
        guard.close()
