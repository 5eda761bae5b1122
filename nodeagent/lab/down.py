"""Takes a lab down to nothing, whatever state it is in.

What there is to remove is found by the lab's names, never by what some file recorded: a lab whose supervisor
was killed, that came up by half, or that lost its folder goes away just the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeagent.errors import LabError
from nodeagent.lab import cgroups, netns, rpc
from nodeagent.lab.names import LABS, LabNames, netns_path

_SHUTDOWN_SECONDS: Final = 20.0
_KILL_SECONDS: Final = 5.0


def exists(names: LabNames) -> bool:
    """Tell whether anything of a lab is there."""
    return (
        names.root.exists()
        or any(_supervisors(names))
        or (cgroups.mount_point() / names.cgroup).exists()
        or names.pins.exists()
        or any(names.owns_netns(name) for name in netns.names())
    )


def take_down(names: LabNames) -> None:
    """Remove everything of a lab. LabError names what would not go."""
    _ask_supervisor(names)
    left = _remove_processes(names)
    _remove_pins(names)
    for name in netns.names():
        if names.owns_netns(name):
            netns.remove(name)
    shutil.rmtree(names.root, ignore_errors=True)
    for folder in (LABS, LABS.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only when it is empty: no other lab, no agent of the machine's own
    if left:
        raise LabError(f"could not remove {', '.join(left)}")


def _remove_pins(names: LabNames) -> None:
    """What the agents pinned to outlive them."""
    if not names.pins.exists():
        return
    from nodeagent.dataplane.direct import unload_all

    for node in list(names.pins.iterdir()):
        unload_all(node)
    names.pins.rmdir()


def _ask_supervisor(names: LabNames) -> None:
    """Let the supervisor end its processes in an orderly way, if there is one that answers."""
    try:
        pid = rpc.call(names.supervisor_socket, "shutdown", timeout=5)["pid"]
    except (ConnectionError, LabError, OSError):
        return
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _remove_processes(names: LabNames) -> list[str]:
    # First the supervisor, also one that is only starting and in no cgroup yet: it would go on making things.
    for pid in _supervisors(names):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while _alive(pid):
            time.sleep(0.01)
    left = [] if cgroups.remove(names.cgroup) else [f"cgroup {names.cgroup}"]
    deadline = time.monotonic() + _KILL_SECONDS
    # Someone may have moved a process to another cgroup; its namespace still tells.
    while found := list(_inhabitants(names)):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left + [f"process {pid}" for pid in found]
        time.sleep(0.02)
    return left


def _supervisors(names: LabNames) -> Iterator[int]:
    """Yield the lab's supervisors, known by what they were started with."""
    wanted = list(names.supervisor_arguments)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if arguments[1:-1] == wanted:
                    yield int(entry.name)


def _inhabitants(names: LabNames) -> Iterator[int]:
    """Yield processes whose network namespace is one of the lab's."""
    inodes: set[tuple[int, int]] = set()
    for name in netns.names():
        if names.owns_netns(name):
            with contextlib.suppress(OSError):
                inodes.add(_identity(netns_path(name)))
    if not inodes:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if _identity(entry / "ns/net") in inodes and not _zombie(entry):
                    yield int(entry.name)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return not _zombie(Path(f"/proc/{pid}"))
    return False
