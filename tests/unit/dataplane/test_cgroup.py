"""Finding the agent's cgroup, by the texts that the kernel gives on different kinds of machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import require, scratch_cgroup

from nodeagent.dataplane.cgroup import Cgroup, describe, find_mount, own_group, own_path
from nodeagent.errors import CapabilityError

UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
HYBRID = (
    "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
    "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        (UNIFIED, "/sys/fs/cgroup"),
        (HYBRID, "/sys/fs/cgroup/unified"),
        ("none /mnt/two cgroup2 rw 0 0\n" + UNIFIED, "/sys/fs/cgroup"),
        ("none /mnt/with\\040space cgroup2 rw 0 0\n", "/mnt/with space"),
    ],
)
def test_mount(mounts: str, expected: str) -> None:
    assert find_mount(mounts) == Path(expected)


def test_no_mount_names_the_mend() -> None:
    with pytest.raises(CapabilityError, match="mount -t cgroup2"):
        find_mount("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n")


def test_path() -> None:
    assert (
        own_path("9:name=systemd:/x\n0::/system.slice/nodeagent.service\n")
        == "/system.slice/nodeagent.service"
    )
    with pytest.raises(CapabilityError):
        own_path("9:name=systemd:/x\n")


@pytest.mark.parametrize(
    ("mount", "path", "nft_path", "level"),
    [
        ("/sys/fs/cgroup", "/nodeagent", "nodeagent", 1),
        ("/sys/fs/cgroup", "/system.slice/nodeagent.service", "system.slice/nodeagent.service", 2),
        ("/sys/fs/cgroup/unified", "/nodeagent", "unified/nodeagent", 1),
        ("/sys/fs/cgroup/unified", "/", "unified", 0),
        ("/sys/fs/cgroup", "/", "", 0),
    ],
)
def test_level_and_path_for_nftables(mount: str, path: str, nft_path: str, level: int) -> None:
    group = describe(Path(mount), path)
    assert (group.nft_path, group.level) == (nft_path, level)
    assert group.directory == Path(mount) / path.strip("/")


def test_a_mount_that_nftables_cannot_see_is_refused() -> None:
    with pytest.raises(CapabilityError, match="needs it below /sys/fs/cgroup"):
        describe(Path("/mnt/cgroup"), "/nodeagent")


def test_this_process() -> None:
    assert isinstance(own_group(), Cgroup)


def test_ensure_own_group_keeps_one_that_is_there() -> None:
    """In a process of its own, since a process cannot come back to where it was without being told."""
    require("root")
    program = (
        "from nodeagent.dataplane.cgroup import ensure_own_group as e\n"
        "g = e('never'); print(g.nft_path, g.level)"
    )
    with scratch_cgroup("own") as scratch:
        done = subprocess.run(
            [sys.executable, "-c", program],
            preexec_fn=scratch.join,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [scratch.group.nft_path, "1"]


def test_ensure_own_group_leaves_the_root() -> None:
    require("root")
    name = f"nodeagent-test-{os.getpid()}-ensure"
    root = find_mount(Path("/proc/mounts").read_text())
    program = (
        "import sys; from nodeagent.dataplane.cgroup import ensure_own_group as e\n"
        f"open({str(root / 'cgroup.procs')!r}, 'w').write('0')\n"
        f"g = e({name!r}); print(g.nft_path, g.level)"
    )
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [describe(root, name).nft_path, "1"]
    finally:
        (root / name).rmdir()
