"""The capture ruleset, word for word. `UPDATE_GOLDEN=1 pytest tests/golden/nft` writes the files anew."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.ruleset import CaptureRules, chains_of, render, render_removal

HERE = Path(__file__).parent
RULES = CaptureRules("unified/nodeagent", 1)

CASES = {
    "captured": render(RULES),
    "released": render(RULES.released()),
    "nested_cgroup": render(CaptureRules("system.slice/nodeagent.service", 2)),
    "hbone": render(CaptureRules("unified/nodeagent", 1, hbone=True)),
    "other_ports": render(
        CaptureRules(
            "nodeagent",
            1,
            outbound_port=25001,
            inbound_port=25006,
            untouched_inbound_ports=(),
            probe_v4="192.0.2.1",
            probe_v6="2001:db8::1",
        )
    ),
    "steered": render(replace(RULES, steered=True)),
    "steered_unpast": render(replace(RULES, steered=True, past=False)),
    "steered_released": render(replace(RULES, steered=True).released()),
    "removed": render_removal(),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    file = HERE / f"{name}.nft"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(CASES[name])
    assert CASES[name] == file.read_text()


def test_rendering_is_deterministic() -> None:
    assert render(RULES) == render(CaptureRules("unified/nodeagent", 1))


def test_a_group_is_named_as_nftables_does() -> None:
    group = Cgroup(Path("/sys/fs/cgroup/unified/a/b"), "unified/a/b", 2)
    assert 'socket cgroupv2 level 2 "unified/a/b" accept' in render(CaptureRules.for_agent(group))


def test_the_root_group_is_refused() -> None:
    with pytest.raises(ValueError, match="cgroup of its own"):
        CaptureRules.for_agent(Cgroup(Path("/sys/fs/cgroup"), "", 0))


def test_each_rule_can_be_told_by_its_comment() -> None:
    for chain in chains_of(RULES):
        comments = [rule.comment for rule in chain.rules]
        assert len(set(comments)) == len(comments)
        assert all(0 < len(comment) < 128 and '"' not in comment for comment in comments)
