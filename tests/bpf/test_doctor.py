"""`nodeagent doctor`: what it finds here, without rights, and that it leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import require
from harness.labs import WITHOUT_ROOT

from nodeagent.dataplane.cgroup import find_mount
from nodeagent.dataplane.probes import Finding, possible_modes

NODEAGENT = (sys.executable, "-m", "nodeagent.cli.main", "doctor")


def _footprint() -> set[str]:
    links = subprocess.run(["bpftool", "link", "list"], capture_output=True, text=True, check=True).stdout
    # Not deeper: what other tests have there comes and goes.
    groups = [str(path) for path in find_mount(Path("/proc/mounts").read_text()).glob("nodeagent-doctor-*")]
    doctors = [line for line in links.splitlines() if "doctor" in line]
    return {*groups, *doctors, *(str(path) for path in Path("/sys/fs/bpf").glob("*doctor*"))}


def _findings(argv: tuple[str, ...]) -> tuple[int, dict[str, Any], list[str]]:
    answer, code = _answer(argv)
    return code, {each["name"]: each for each in answer["findings"]}, answer["modes"]


def _answer(argv: tuple[str, ...]) -> tuple[dict[str, Any], int]:
    done = subprocess.run([*argv, "-o", "json"], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout), done.returncode


def test_what_acceleration_needs_is_tried_too() -> None:
    require("root", "nft", "engine")
    answer, _ = _answer(NODEAGENT)
    assert {each["verdict"] for each in answer["direct"]} <= {"as TCP", "differs"}
    assert "ordering" in [each["name"] for each in answer["direct"]]
    text = subprocess.run(NODEAGENT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "acceleration `direct` is possible" in text


def test_everything_is_tried_and_nothing_left() -> None:
    require("root", "nft", "engine", "bpftool")
    code, findings, modes = _findings(NODEAGENT)
    assert code == 0
    assert modes == ["ebpf", "nft"]
    assert findings["BPF objects"]["detail"].endswith("inbound, outbound, shared")
    assert findings["revocation"]["ok"]
    assert not _footprint()


def test_without_rights_each_lack_is_named_with_its_mend() -> None:
    require("root", "engine", "setpriv")
    code, findings, modes = _findings((*WITHOUT_ROOT, *NODEAGENT))
    assert code == 1
    assert modes == []
    assert "CAP_SYS_ADMIN" in findings["rights"]["detail"]
    assert "CAP_SYS_ADMIN" in findings["network namespaces"]["detail"]
    assert "BPF objects" not in findings, "what the rest needs is not there"


def test_a_mode_is_possible_when_it_lacks_nothing() -> None:
    both = Finding("rights", ("ebpf", "nft"), True, "")
    ruleset = Finding("ruleset", ("nft",), True, "")
    objects = Finding("BPF objects", ("ebpf",), True, "")
    assert possible_modes([both, ruleset, objects]) == ("ebpf", "nft")
    assert possible_modes([both, ruleset, Finding("BPF objects", ("ebpf",), False, "no")]) == ("nft",)
    assert possible_modes([both, Finding("ruleset", ("nft",), False, "no"), objects]) == ("ebpf",)
    assert possible_modes([Finding("rights", ("ebpf", "nft"), False, "no")]) == ()
    assert possible_modes([both]) == (), "the rest was not tried"
