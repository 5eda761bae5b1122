"""The lab's cgroups (version 2): made, joined, killed as a whole, removed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from nodeagent.dataplane.cgroup import find_mount
from nodeagent.errors import CapabilityError

_KILL_SECONDS: Final = 5.0


@cache
def mount_point() -> Path:
    """Return where cgroup v2 is mounted: /sys/fs/cgroup, or below it beside version 1."""
    return find_mount(Path("/proc/mounts").read_text())


def require_writable() -> None:
    """Raise CapabilityError unless cgroups can be made here."""
    if not os.access(mount_point(), os.W_OK):
        raise CapabilityError(
            f"cgroup v2 at {mount_point()} is mounted read-only; a container needs --privileged, or a writable mount"
        )


def create(group: str) -> Path:
    """Make a cgroup with its parents; returns its folder."""
    path = mount_point() / group
    path.mkdir(parents=True, exist_ok=True)
    return path


def processes(group: str) -> list[int]:
    """Return the processes of a cgroup and of those below it."""
    found: list[int] = []
    for folder in _folders(mount_point() / group):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    return found


def kill(group: str) -> None:
    """Send SIGKILL to every process of a cgroup, children and late forks included."""
    path = mount_point() / group
    try:
        (path / "cgroup.kill").write_text("1")  # kernel 5.14
    except OSError:
        for pid in processes(group):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove(group: str) -> bool:
    """Kill what is in a cgroup and remove it with those below it; False if it will not go in time."""
    path = mount_point() / group
    deadline = time.monotonic() + _KILL_SECONDS
    while path.exists():
        kill(group)
        for folder in _folders(path):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if path.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    return True


def _folders(path: Path) -> Iterator[Path]:
    """Yield a cgroup's folders, deepest first."""
    if not path.is_dir():
        return
    with contextlib.suppress(OSError):
        for entry in path.iterdir():
            if entry.is_dir():
                yield from _folders(entry)
    yield path
