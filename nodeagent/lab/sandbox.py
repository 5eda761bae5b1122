"""Starts a program inside a pod: joins its cgroup and namespaces, then becomes the program.

Run as a file by the bare interpreter (`python -I -S sandbox.py SPEC`), so it imports the standard library
only, without pathlib, and starts in some 15 ms. `nodeagent lab exec` calls `become` in its own process. The
process must have a single thread: a thread cannot change the mount namespace that it shares.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, Final, NoReturn

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19

EXIT_NOT_EXECUTABLE: Final = 126  # as a shell has it
EXIT_NOT_FOUND: Final = 127


def become(spec: dict[str, Any]) -> NoReturn:
    """Become the program of `spec`; raises OSError when a step fails.

    `cgroup` (folder to join), `netns` (path), `new` (True: make mount and UTS namespaces of its own, with
    `hostname` and `binds`, pairs of a file and what it covers), `join` (pid whose mount and UTS namespaces to
    enter), `argv`, `env`, `cwd`.
    """
    if cgroup := spec.get("cgroup"):
        with open(f"{cgroup}/cgroup.procs", "w") as procs:  # noqa: PTH123
            procs.write("0")
    joined = []
    if pid := spec.get("join"):
        joined = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("uts", "mnt")]
    if netns := spec.get("netns"):
        _setns(os.open(netns, os.O_RDONLY), _CLONE_NEWNET)
    for descriptor in joined:
        _setns(descriptor, 0)
    if spec.get("new"):
        _new_namespaces(spec["hostname"], spec["binds"])
    os.chdir(spec.get("cwd", "/"))
    # The interpreter ignores these, and what is ignored stays so across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    argv = spec["argv"]
    os.execvpe(argv[0], argv, spec["env"])  # noqa: S606


def _setns(descriptor: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, kind) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def _new_namespaces(hostname: str, binds: list[tuple[str, str]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, flags: int) -> None:
        if libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None) != 0:
            raise OSError(ctypes.get_errno(), "mount", target)

    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    # Slave, not private: what the host unmounts later must not be held alive by this pod.
    mount("", "/", _MS_SLAVE | _MS_REC)
    for source, target in binds:
        mount(source, os.path.realpath(target), _MS_BIND)
    name = hostname.encode()
    if libc.sethostname(name, len(name)) != 0:
        raise OSError(ctypes.get_errno(), "sethostname")


def explain(error: OSError, argv: list[str]) -> str:
    """Say in one line why a program did not start."""
    path = os.fsdecode(error.filename or argv[0])
    if isinstance(error, FileNotFoundError) and path.rpartition("/")[2] == argv[0].rpartition("/")[2]:
        return f"{argv[0]}: command not found"
    where = f"{path}: " if error.filename else ""
    return f"cannot start {argv[0]}: {where}{os.strerror(error.errno or 0)}"


def main() -> NoReturn:
    """Become the program of the specification in argv[1]; a failure is told on descriptor argv[2]."""
    spec = json.loads(sys.argv[1])
    report = int(sys.argv[2])
    os.set_inheritable(report, False)  # closed by a successful exec: the supervisor reads end of file
    try:
        become(spec)
    except OSError as error:
        os.write(report, explain(error, spec["argv"]).encode())
        os._exit(EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE)


if __name__ == "__main__":
    main()
