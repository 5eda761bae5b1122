"""Cgroups (version 2) of a test."""

from __future__ import annotations

import fnmatch
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.processes import wait_until
from nodeagent.dataplane.cgroup import Cgroup, describe, find_mount

_numbers = itertools.count()


def groups_named(pattern: str) -> list[Path]:
    """Folders of groups, in any hierarchy, whose names are like that. Others may go while it looks."""
    return [
        Path(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")  # which passes over what is gone, as glob does not
        for name in names
        if fnmatch.fnmatchcase(name, pattern)
    ]


@dataclass(frozen=True, slots=True)
class ScratchCgroup:
    """A group made for a test."""

    group: Cgroup

    @property
    def path(self) -> str:
        """In the hierarchy."""
        mount = find_mount(Path("/proc/mounts").read_text())
        return str(self.group.directory.relative_to(mount))

    def join(self) -> None:
        """Move the calling process in; for use as `prepare` of a process to start."""
        (self.group.directory / "cgroup.procs").write_text("0")

    def pids(self) -> list[int]:
        return [int(line) for line in (self.group.directory / "cgroup.procs").read_text().split()]


@contextmanager
def scratch_cgroup(
    name: str, within: ScratchCgroup | None = None, *, exact: bool = False
) -> Iterator[ScratchCgroup]:
    """An empty group below the root, or within another; removed at the end, when its processes must have ended. It is
    called just `name` if that is to be `exact`."""
    mount = find_mount(Path("/proc/mounts").read_text())
    parent = within.path if within is not None else ""
    full = name if exact else f"nodeagent-test-{os.getpid()}-{next(_numbers)}-{name}"
    group = describe(mount, f"{parent}/{full}")
    group.directory.mkdir()
    scratch = ScratchCgroup(group)
    try:
        yield scratch
    finally:
        wait_until(lambda: not scratch.pids(), f"processes of {group.directory} ended")
        group.directory.rmdir()
