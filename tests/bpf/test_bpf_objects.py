"""The BPF objects in the real kernel: each is taken by the verifier; maps, links, pins, and what errors say."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import require, scratch_cgroup
from harness.bpf_source import compile_bpf

from nodeagent.dataplane import ebpf_node, ebpf_shared
from nodeagent.dataplane.bpf import BpfMap, BpfObject, object_names
from nodeagent.dataplane.bpffs import ensure_bpffs, find_bpffs
from nodeagent.dataplane.bypass_layout import Flow
from nodeagent.dataplane.bypass_maps import NO_ROOM, BypassLimits
from nodeagent.dataplane.ebpf_node import EbpfNode
from nodeagent.errors import BpfError, BpfMapFullError, CapabilityError

ABI = Path(__file__).parents[2] / "bpf" / "include" / "nodeagent_abi.h"

REFUSED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
struct {
  __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 4); __type(key, int); __type(value, int);
} m SEC(".maps");
SEC("cgroup/connect4") int unchecked(struct bpf_sock_addr *ctx) {
  int key = 1, *value = bpf_map_lookup_elem(&m, &key);
  return *value;
}
"""

COUNTED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
struct {
  __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, SIZE); __type(key, int); __type(value, int);
} m SEC(".maps");
SEC("cgroup/connect4") int allow(struct bpf_sock_addr *ctx) { return 1; }
SEC("cgroup/connect4") int deny(struct bpf_sock_addr *ctx) { return 0; }
"""


def _number(value: int) -> bytes:
    return struct.pack("=i", value)


def _no_namespace(number: int) -> bytes:
    """A cookie that no namespace has: the kernel counts them up from 1."""
    return struct.pack("=Q", (1 << 63) + number)


@pytest.fixture
def counted(tmp_path: Path) -> BpfObject:
    require("root", "engine")
    compile_bpf(tmp_path, "counted", COUNTED, "-DSIZE=100")
    return BpfObject("counted", folder=tmp_path)


@pytest.mark.parametrize("name", object_names())
def test_the_verifier_takes_each_object(name: str) -> None:
    require("root", "engine")
    with BpfObject(name):
        pass


def test_all_objects_are_there() -> None:
    assert set(object_names()) >= {"outbound", "inbound"}


def test_what_the_verifier_refuses_is_told_with_its_words(tmp_path: Path) -> None:
    require("root", "engine")
    compile_bpf(tmp_path, "refused", REFUSED)
    with pytest.raises(BpfError) as refused:
        BpfObject("refused", folder=tmp_path)
    text = str(refused.value)
    assert "load BPF object refused" in text
    assert "unchecked" in text, "the program"
    assert "invalid mem access 'map_value_or_null'" in text, "the reason, at the end of the verifier's log"


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=r"nothing\.bpf\.o: No such file"):
        BpfObject("nothing", folder=tmp_path)


def test_a_map_takes_gives_lists_and_forgets(counted: BpfObject) -> None:
    with counted:
        numbers = counted.map("m", 4, 4)
    for value in range(10):
        numbers[_number(value)] = _number(value * value)
    assert numbers.get(_number(7)) == _number(49)
    numbers.discard(_number(7))
    numbers.discard(_number(7))
    assert numbers.get(_number(7)) is None
    assert {struct.unpack("=i", key)[0] for key in numbers} == set(range(10)) - {7}
    numbers.close()


def test_a_full_map_tells_how_far_it_came(counted: BpfObject) -> None:
    with counted:
        numbers = counted.map("m", 4, 4)
    numbers.update({_number(value): _number(1) for value in range(60)})
    numbers.update({})
    with pytest.raises(BpfError, match="map m took 40 of 60 entries: Argument list too long"):
        numbers.update({_number(1000 + value): _number(1) for value in range(60)})
    with pytest.raises(BpfMapFullError, match=r"write to BPF map m: .*the map is full"):
        numbers[_number(5000)] = _number(1)
    numbers.close()


def test_a_map_tells_how_full_it_is_and_what_it_takes(tmp_path: Path) -> None:
    require("root", "engine")
    compile_bpf(tmp_path, "large", COUNTED, "-DSIZE=5000")
    with BpfObject("large", folder=tmp_path) as large:
        numbers = large.map("m", 4, 4)
    assert numbers.count() == 0
    numbers.update({_number(value): _number(1) for value in range(3000)})
    assert numbers.count() == 3000, "more than are read at once"
    memory, limit = numbers.memory_and_limit()
    assert limit == 5000
    assert memory >= 5000 * 8
    numbers.close()


def test_a_node_counts_the_workloads_that_it_has_no_room_for(folder: Path) -> None:
    entry = ebpf_node.WorkloadEntry(1, 1).pack()
    with scratch_cgroup("full") as group:
        node = ebpf_node.EbpfNode(folder / "pins", group.group)
        node.start()
        try:
            assert (node.maps()[0].entries, node.maps()[0].full) == (0, 0)
            node.workloads.update({_no_namespace(number): entry for number in range(4096)})
            with pytest.raises(BpfMapFullError):
                node.put(node.workloads, _no_namespace(4096), entry)
            usage = {each.name: each for each in node.maps()}
            capture = {
                "workloads",
                "groups",
                "destinations",
                "original",
                "calls",
                "clients",
                "counters",
                "listeners",
            }
            bypass = {"sources", "services", "backends", "access", "bypassed", "redirected", "events"}
            assert set(usage) == capture | bypass
            workloads = usage["workloads"]
            assert (workloads.entries, workloads.limit, workloads.full) == (4096, 4096, 1)
            assert workloads.memory >= 4096 * len(entry)
            assert (usage["destinations"].entries, usage["destinations"].limit) == (0, 16_384)
            assert usage["original"].limit is None
        finally:
            node.close()
            ebpf_node.unload(folder / "pins")


def test_a_shared_map_outlives_its_object(tmp_path: Path, folder: Path) -> None:
    compile_bpf(tmp_path, "counted", COUNTED, "-DSIZE=100")
    with BpfObject("counted", {"m": folder / "m"}, tmp_path) as first:
        numbers: BpfMap = first.map("m", 4, 4)
        numbers[_number(1)] = _number(2)
        numbers.close()
    with BpfObject("counted", {"m": folder / "m"}, tmp_path) as second:
        numbers = second.map("m", 4, 4)
        assert numbers.get(_number(1)) == _number(2)
        numbers.close()
    with BpfObject("counted", {"m": folder / "m"}, tmp_path, limits={"m": 200}) as third:
        numbers = third.map("m", 4, 4)
        assert numbers.memory_and_limit()[1] == 100, "as many as it was made for"
        numbers.close()
    compile_bpf(tmp_path, "counted", COUNTED.replace("__type(key, int)", "__type(key, long)"), "-DSIZE=100")
    with pytest.raises(BpfError, match="counted"):
        BpfObject("counted", {"m": folder / "m"}, tmp_path)


def _may_connect(join: Callable[[], None]) -> bool:
    script = "import socket; s = socket.socket(); s.settimeout(2); s.connect(('127.0.0.1', 9))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, preexec_fn=join, capture_output=True, text=True)
    assert "PermissionError" in done.stderr or "ConnectionRefusedError" in done.stderr, done.stderr
    return "ConnectionRefusedError" in done.stderr


def test_a_pinned_program_is_replaced_and_ends_with_its_pin(counted: BpfObject, folder: Path) -> None:
    with counted, scratch_cgroup("bpf") as group:
        target = os.open(group.group.directory, os.O_RDONLY)
        counted.attach_pinned("deny", target, folder / "link")
        assert not _may_connect(group.join)
        counted.attach_pinned("allow", target, folder / "link")
        assert _may_connect(group.join)
        counted.attach_pinned("deny", target, folder / "link")
        counted.close()
        assert not _may_connect(group.join), "the pin holds it"
        (folder / "link").unlink()
        assert _may_connect(group.join)
        os.close(target)


def test_a_place_that_is_no_bpffs_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="not on a bpf filesystem"):
        ensure_bpffs(tmp_path / "pins")


def test_the_usual_mount_comes_first() -> None:
    mounts = "none /run/other\\040place bpf rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"
    assert find_bpffs(mounts) == [Path("/sys/fs/bpf"), Path("/run/other place")]


def test_python_and_c_agree_on_the_abi() -> None:
    text = ABI.read_text()
    numbers = dict(re.findall(r"#define (NA_\w+)\s+(\w+)", text))
    assert int(numbers["NA_BPF_ABI"]) == ebpf_node.ABI
    assert int(numbers["NA_OWN_ADDRESSES"]) == ebpf_node.OWN_ADDRESSES
    assert int(numbers["NA_WORKLOAD_RELEASED"]) == ebpf_node.RELEASED
    assert int(numbers["NA_WORKLOAD_SHARED"]) == ebpf_node.SHARED
    assert int(numbers["NA_WORKLOAD_OPEN"]) == ebpf_node.OPEN
    assert int(numbers["NA_GROUP_LEVELS"]) == ebpf_node.GROUP_LEVELS
    assert int(numbers["NA_SHARED_WORKLOADS"]) == ebpf_shared.WORKLOADS
    assert int(numbers["NA_SHARED_PORT_CLOSED"]) == ebpf_shared.CLOSED
    for kind, name in enumerate(("OUTBOUND", "INBOUND", "HBONE")):
        assert int(numbers[f"NA_PORT_SHARED_{name}"]) == ebpf_shared.own_port(kind, 0)
    counters = re.findall(r"NA_COUNT_(\w+) = (\d+)", text)
    assert [name.lower() for name, _ in sorted(counters, key=lambda each: int(each[1]))] == list(
        ebpf_node.COUNTERS
    )
    size = re.search(r"sizeof\(struct na_workload_entry\) == (\d+)", text)
    assert size is not None
    assert len(ebpf_node.WorkloadEntry(1, 1).pack()) == int(size[1])


def test_more_addresses_than_the_programs_know_are_an_error() -> None:
    address = bytes(10) + b"\xff\xff\x0a\0\0\1"
    known = ebpf_node.WorkloadEntry(1, 1, addresses=(address,) * ebpf_node.OWN_ADDRESSES)
    assert known.pack()[16:32] == address, "the source of what is captured"
    with pytest.raises(BpfError, match=r"17 addresses.*--capture nft"):
        ebpf_node.WorkloadEntry(1, 1, addresses=(address,) * 17).pack()


def test_two_agents_do_not_share_pins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebpf_node, "LOCK_SECONDS", 0.2)
    with scratch_cgroup("one") as one, scratch_cgroup("two") as two:
        first, second = (ebpf_node.EbpfNode(folder / "pins", each.group) for each in (one, two))
        first.start()
        try:
            with pytest.raises(CapabilityError, match=r"another agent captures by .*--bpf-pins"):
                second.start()
            second.close()
            assert (folder / "pins").exists()
        finally:
            first.close()
        assert not (folder / "pins").exists()
        second.start()
        second.close()


def test_a_start_that_fails_leaves_what_is_captured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(node: ebpf_node.EbpfNode, outbound: BpfObject, root: Path) -> None:
        raise BpfError("the verifier has changed its mind")

    pins = folder / "pins"
    with scratch_cgroup("one") as group:
        first = ebpf_node.EbpfNode(pins, group.group)
        first.start()
        first.workloads[_no_namespace(7)] = ebpf_node.WorkloadEntry(1, 1).pack()
        first.close()
        monkeypatch.setattr(ebpf_node.EbpfNode, "_attach", refuse)
        with pytest.raises(BpfError):
            ebpf_node.EbpfNode(pins, group.group).start()
        assert len(list((pins / f"v{ebpf_node.ABI}" / "links").iterdir())) == 5
        ebpf_node.unload(pins)
        with pytest.raises(BpfError):
            ebpf_node.EbpfNode(pins, group.group).start()
        assert not pins.exists()


def test_maps_of_bypass_are_as_large_as_is_asked_for(folder: Path) -> None:
    """Without bypass next to nothing; where connections live their table stays."""
    pins = folder / "pins"
    flow = Flow(bytes(16), 1, 1, 1, 1, 1, 1, 1, 1).pack()

    def start(limits: BypassLimits) -> tuple[EbpfNode, list[int]]:
        node = EbpfNode(pins, group.group, limits=limits)
        node.start()
        node.workloads[_no_namespace(1)] = ebpf_node.WorkloadEntry(1, 1).pack()
        maps = node.bypass_maps()
        sized = (maps.services, maps.backends, maps.access, maps.bypassed, maps.events)
        return node, [each.memory_and_limit()[1] for each in sized]

    with scratch_cgroup("size") as group:
        try:
            node, sizes = start(NO_ROOM)
            assert sizes == [1, 1, 1, 1, 4096]
            assert not {"services", "events"} & {each.name for each in node.maps()}
            node.close()
            node, sizes = start(BypassLimits(10, 20, 30, 40))
            assert sizes == [10, 20, 30, 40, 1 << 20]
            node.bypass_maps().bypassed[bytes(40)] = flow
            node.close()
            node, sizes = start(NO_ROOM)
            assert sizes == [1, 1, 1, 40, 4096]
            node.bypass_maps().bypassed.discard(bytes(40))
            node.close()
            node, sizes = start(BypassLimits())
            assert sizes == [65_536, 131_072, 65_536, 65_536, 1 << 20]
            node.close()
        finally:
            ebpf_node.unload(pins)
