"""The agent's own cgroup (version 2): what nftables knows its sockets by.

A socket belongs for good to the group that its creator was in (`sk_cgrp_data`), and nothing that an
application can set on a socket changes that. So the capture rules let through what the agent's group opened,
and nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import CapabilityError

NFT_ROOT: Final = Path("/sys/fs/cgroup")
"""libnftables resolves the path of `socket cgroupv2` below here; it is compiled in."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup of the version 2 hierarchy.

    `directory` is where it is mounted, `nft_path` its path as nftables writes it (below /sys/fs/cgroup),
    `level` its depth in the hierarchy, 0 for the root.
    """

    directory: Path
    nft_path: str
    level: int


def find_mount(mounts: str) -> Path:
    """Where cgroup version 2 is mounted, given the text of /proc/mounts; CapabilityError if nowhere.

    On a machine with both versions (`hybrid`) that is often /sys/fs/cgroup/unified. A mount that nftables can
    see wins over others.
    """
    found = [
        Path(fields[1].replace("\\040", " "))
        for fields in (line.split() for line in mounts.splitlines())
        if len(fields) > 2 and fields[2] == "cgroup2"
    ]
    found.sort(key=lambda path: not path.is_relative_to(NFT_ROOT))
    if not found:
        raise CapabilityError(
            "cgroup version 2 is not mounted; mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    return found[0]


def own_path(proc_cgroup: str) -> str:
    """The path of a process in the version 2 hierarchy, given the text of its /proc/PID/cgroup
    (cgroups(7))."""
    for line in proc_cgroup.splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy == "0" and path:
            return path
    raise CapabilityError("this process is in no cgroup of version 2; the kernel needs CONFIG_CGROUPS")


def describe(mount: Path, path: str) -> Cgroup:
    """The group at `path` of the hierarchy that is mounted at `mount`.

    CapabilityError if nftables, which looks only below /sys/fs/cgroup, could not name it.
    """
    if not mount.is_relative_to(NFT_ROOT):
        raise CapabilityError(
            f"cgroup version 2 is mounted at {mount}; nftables needs it below {NFT_ROOT}: "
            f"mount -t cgroup2 none {NFT_ROOT}/unified"
        )
    relative = path.strip("/")
    directory = mount / relative
    nft_path = str(directory.relative_to(NFT_ROOT))
    return Cgroup(directory, "" if nft_path == "." else nft_path, len(Path(relative).parts))


def own_group() -> Cgroup:
    """The group that this process is in; its level is 0 if nobody gave it one."""
    mount = find_mount(Path("/proc/mounts").read_text())
    return describe(mount, own_path(Path("/proc/self/cgroup").read_text()))


def ensure_own_group(name: str) -> Cgroup:
    """Be in a group of one's own, and return it: a process in the root group makes `name` there and moves
    into it.

    To be called before the first socket is opened, since sockets keep the group that they were opened in.
    CapabilityError if the group cannot be made.
    """
    group = own_group()
    if group.level > 0:
        return group
    directory = group.directory / name
    try:
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise CapabilityError(
            f"the agent is in the root cgroup and cannot move to {directory}: {error.strerror}; start it "
            "in a cgroup of its own (systemd-run, or a container with a writable cgroup mount)"
        ) from error
    return own_group()
