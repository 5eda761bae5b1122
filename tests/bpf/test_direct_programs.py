"""The programs of `direct`: what user space and they agree on, and that probes find out where they do not hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import require

from nodeagent.dataplane import direct_programs
from nodeagent.dataplane.direct_probes import AS_TCP, DIFFERS, FAILS, PROBES, plain_ground, probe_direct

ROOT = Path(__file__).parents[2] / "bpf"
ABI = ROOT / "include" / "direct_abi.h"


def test_python_and_c_agree_on_the_abi_of_direct() -> None:
    text = ABI.read_text()
    numbers = dict(re.findall(r"#define (NA_\w+)\s+(\w+)", text))
    assert int(numbers["NA_DIRECT_ABI"]) == direct_programs.ABI
    assert int(numbers["NA_DIRECT_MESSAGE_COST"]) == direct_programs.MESSAGE_COST
    counters = re.findall(r"NA_DIRECT_(\w+) = (\d+)", text)
    assert [name.lower() for name, _ in sorted(counters, key=lambda each: int(each[1]))] == [
        *direct_programs.COUNTERS,
        "counters",
    ]


def test_a_message_costs_what_is_counted() -> None:
    """The kernel's struct sk_msg fits into what is counted for it."""
    require("bpftool")
    types = subprocess.run(
        ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"STRUCT 'sk_msg' size=(\d+)", types)
    assert found is not None
    assert int(found[1]) <= direct_programs.MESSAGE_COST


def test_probes_pass_on_this_kernel_and_name_what_differs() -> None:
    require("root", "engine")
    verdicts = {each.name: each.verdict for each in probe_direct()}
    assert set(verdicts) == {name for name, _ in PROBES}
    assert verdicts.pop("FIONREAD") in (AS_TCP, DIFFERS)
    assert verdicts.pop("splice") in (AS_TCP, DIFFERS)
    assert set(verdicts.values()) == {AS_TCP}


def test_plain_tcp_passes_but_where_acceleration_itself_is_asked_for() -> None:
    require("root", "engine")
    with plain_ground() as ground:
        assert {probe(ground)[0] for name, probe in PROBES if name != "accounting"} == {AS_TCP}


@pytest.mark.parametrize(
    ("rule", "probe", "seen"),
    [
        ("if (me->write_seq != peer->copied_seq)", "ordering", "overtook"),
        (
            "if (unread + messages * NA_DIRECT_MESSAGE_COST + size > limit)",
            "backpressure",
            "never has to wait",
        ),
        ("if (verdict == NA_DIRECT_REDIRECTED)", "accounting", "nothing is redirected"),
    ],
)
def test_probes_find_what_does_not_hold(tmp_path: Path, rule: str, probe: str, seen: str) -> None:
    """Each with a program that lacks a rule."""
    require("root", "engine", "clang")
    source = (ROOT / "direct.bpf.c").read_text()
    assert source.count(rule) == 1
    shutil.copytree(ROOT / "include", tmp_path / "include")
    (tmp_path / "direct.bpf.c").write_text(source.replace(rule, "if (msg_is_never_this)"))
    (tmp_path / "include" / "address.h").write_text(
        (ROOT / "include" / "address.h").read_text() + "\nstatic const volatile int msg_is_never_this = 0;\n"
    )
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    options = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I{tmp_path}/include", f"-I{headers}"]
    subprocess.run(
        ["clang", *options, "-c", f"{tmp_path}/direct.bpf.c", "-o", f"{tmp_path}/direct.bpf.o"], check=True
    )
    found = {each.name: each for each in probe_direct(tmp_path)}
    assert found[probe].verdict == FAILS
    assert seen in found[probe].detail


def test_an_object_that_cannot_be_loaded_is_a_finding(tmp_path: Path) -> None:
    require("root", "engine")
    (found,) = probe_direct(tmp_path)
    assert (found.name, found.verdict) == ("programs", FAILS)
    assert "direct.bpf.o" in found.detail
