"""Named network namespaces: made, entered, removed.

Compatible with `ip netns` (same folder, same mount propagation), without a process for each step.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import LabError
from nodeagent.lab.names import NETNS, netns_path

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: Path, flags: int) -> None:
    result = _libc.mount(source.encode(), str(target).encode(), b"none", ctypes.c_ulong(flags), None)
    _check(result, f"mount {target}")


def _share_netns_folder() -> None:
    """Make /run/netns a shared mount, as `ip netns` does, so that other mount namespaces let go too."""
    NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(NETNS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the lock that `ip netns add` takes
        try:
            _mount("", NETNS, _MS_SHARED | _MS_REC)
        except OSError:  # not a mount point yet
            _mount(str(NETNS), NETNS, _MS_BIND | _MS_REC)
            _mount("", NETNS, _MS_SHARED | _MS_REC)
    finally:
        os.close(lock)


def create(name: str, sysctls: dict[str, str]) -> None:
    """Make a named network namespace and set its sysctls (`net/ipv4/ip_forward` style keys)."""
    _share_netns_folder()
    path = netns_path(name)

    def work() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")  # of this short-lived thread only
        path.touch(mode=0o444, exist_ok=False)
        _mount("/proc/thread-self/ns/net", path, _MS_BIND)
        for key, value in sysctls.items():
            _write_sysctl(key, value)

    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(work).result()
    except FileExistsError:
        raise LabError(
            f"network namespace {name} exists already; `nodeagent lab down` removes leftovers"
        ) from None
    except OSError as error:
        raise LabError(f"cannot make network namespace {name}: {error.strerror or error}") from None


def _write_sysctl(key: str, value: str) -> None:
    path = Path("/proc/sys") / key
    if not path.exists() and "ipv6" in key:
        raise LabError("this kernel has IPv6 switched off; the lab needs it (boot without ipv6.disable=1)")
    path.write_text(value)


def run_in(name: str, work: Callable[[], _T]) -> _T:
    """Run `work` in a thread inside a named network namespace and return its result."""

    with NetworkNamespace.open(netns_path(name)) as namespace:
        return namespace.run(work)


def remove(name: str) -> None:
    """Remove a named network namespace; with its last process gone its links and tables go too."""
    path = netns_path(name)
    # Mounted several times if two `up` raced; detach, because a process may still sit in it.
    while _libc.umount2(str(path).encode(), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def names() -> list[str]:
    """Return the names of all network namespaces of this machine."""
    return sorted(entry.name for entry in NETNS.iterdir()) if NETNS.is_dir() else []
