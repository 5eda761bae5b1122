"""The programs of `direct`: what user space and they agree on, and that probes find out where they do not hold."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from harness import require

from nodeagent.dataplane import direct_programs
from nodeagent.dataplane.direct_probes import (
    AS_TCP,
    DIFFERS,
    FAILS,
    PROBES,
    accelerated_ground,
    plain_ground,
    probe_direct,
)

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


def _compile_changed(folder: Path, changes: Mapping[str, str]) -> None:
    """The object with other words in its sources, in `folder`."""
    require("root", "engine", "clang")
    shutil.copytree(ROOT / "include", folder / "include")
    shutil.copy(ROOT / "direct.bpf.c", folder)
    for old, new in changes.items():
        found = [
            file for file in (folder / "direct.bpf.c", *folder.glob("include/*.h")) if old in file.read_text()
        ]
        assert len(found) == 1, old
        text = found[0].read_text()
        assert text.count(old) == 1, old
        found[0].write_text(text.replace(old, new))
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    options = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I{folder}/include", f"-I{headers}"]
    subprocess.run(
        ["clang", *options, "-c", f"{folder}/direct.bpf.c", "-o", f"{folder}/direct.bpf.o"], check=True
    )


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
    _compile_changed(tmp_path, {rule: "if (0)"})
    found = {each.name: each for each in probe_direct(tmp_path)}
    assert found[probe].verdict == FAILS
    assert seen in found[probe].detail


def _passes(client: socket.socket, server: socket.socket) -> bool:
    client.sendall(b"there")
    server.sendall(b"back")
    return (server.recv(10), client.recv(10)) == (b"there", b"back")


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        ({"SLOTS                131072": "SLOTS 2"}, 2),
        ({"NA_REDIRECTED_CELLS 32768": "NA_REDIRECTED_CELLS 1"}, 3),
    ],
    ids=["slots", "cells"],
)
def test_what_finds_no_place_is_plain_tcp(tmp_path: Path, change: dict[str, str], ends: int) -> None:
    """Room for one connection; without a cell the client's end alone is left out."""
    _compile_changed(tmp_path, change)
    with accelerated_ground(tmp_path) as ground:
        assert ground.programs is not None
        with ground.connection() as first:
            assert _passes(*first)
            with ground.connection() as second:
                assert _passes(*second)
                counters = ground.programs.counters()
        assert (counters["joined"], counters["not_joined"]) == (ends, 4 - ends)
        assert counters["bytes"] == 9
        with ground.connection() as third:
            assert _passes(*third)
            assert ground.programs.counters()["bytes"] == 18, "places are free again"


def test_nothing_is_given_to_who_has_the_peers_slot_by_now(tmp_path: Path) -> None:
    """Which is the sender itself here, for want of another that comes just then."""
    found = "end->peer = *found;"
    _compile_changed(tmp_path, {found: f"{found} end->peer.slot = end->own.slot;"})
    with accelerated_ground(tmp_path) as ground, ground.connection() as (client, server):
        assert ground.programs is not None
        with pytest.raises(PermissionError):
            client.send(b"x")
        for each in (client, server):
            each.settimeout(0)
            with pytest.raises(BlockingIOError):
                each.recv(1)
        counters = ground.programs.counters()
        assert (counters["refused"], counters["redirected"], counters["bytes"]) == (1, 0, 0)


def test_a_slot_that_became_anothers_is_not_looked_for_again(tmp_path: Path) -> None:
    _compile_changed(tmp_path, {"SLOTS                131072": "SLOTS 2"})
    with accelerated_ground(tmp_path) as ground, ground.connection() as (client, server):
        programs = ground.programs
        assert programs is not None
        assert _passes(client, server)
        server.sendall(b"waits")
        (cookie,) = programs.workloads()
        programs.drop_workload(cookie)
        assert programs.sweep().sockets == 1, (
            "the server's is a plain one again, for the client's there is data"
        )
        programs.put_workload(cookie, 1 << 63, 0)
        with ground.connection():
            before = programs.counters()
            assert before["joined"] == 3, "one has its slot"
            client.sendall(b"by TCP")
            assert (server.recv(10), client.recv(10)) == (b"by TCP", b"waits")
            counters = programs.counters()
        assert counters["pass_unpaired"] - before["pass_unpaired"] == 1
        assert counters["refused"] == 0


def test_an_object_that_cannot_be_loaded_is_a_finding(tmp_path: Path) -> None:
    require("root", "engine")
    (found,) = probe_direct(tmp_path)
    assert (found.name, found.verdict) == ("programs", FAILS)
    assert "direct.bpf.o" in found.detail
