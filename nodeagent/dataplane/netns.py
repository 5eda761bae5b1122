"""Work inside network namespaces, which Python 3.11 cannot enter by itself (os.setns came with 3.12).

A namespace is entered by a thread that is made for the purpose and ends with it. So no thread that does
anything else is ever in a foreign namespace, and there is no way back that could fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from nodeagent.errors import NetnsError

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace(fd: int) -> None:
    """Move the calling thread into the namespace behind `fd` (setns(2))."""
    if _libc.setns(fd, CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    hint = {
        errno.EPERM: "; needs CAP_SYS_ADMIN",
        errno.EINVAL: "; the descriptor is not a network namespace",
    }.get(code, "")
    raise NetnsError(f"cannot enter the network namespace: {os.strerror(code)}{hint}")


class NetworkNamespace:
    """A network namespace, held by a descriptor of its own until close(); usable as a context manager."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take over `fd`."""
        self._fd = fd

    @classmethod
    def duplicate(cls, fd: int) -> NetworkNamespace:
        """The namespace behind `fd`, which stays the caller's."""
        return cls(os.dup(fd))

    @classmethod
    def open(cls, path: str | Path) -> NetworkNamespace:
        """The namespace at `path`, such as /run/netns/NAME or /proc/PID/ns/net."""
        try:
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise NetnsError(f"cannot open network namespace {path}: {error.strerror}") from error

    @property
    def fd(self) -> int:
        """The descriptor; stays this object's."""
        if self._fd < 0:
            raise NetnsError("the network namespace was closed")
        return self._fd

    @property
    def inode(self) -> int:
        """What tells namespaces apart while they live (`net:[...]`)."""
        return os.fstat(self.fd).st_ino

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` in the namespace, from a thread of its own, and return what it returns or raise
        what it raises. Blocks: from a coroutine call it by asyncio.to_thread."""
        results: list[T] = []
        failures: list[BaseException] = []

        def body() -> None:
            try:
                enter_namespace(fd)
                results.append(function())
            # The caller gets whatever it was, in its own thread.
            except BaseException as failure:
                failures.append(failure)

        fd = self.fd
        thread = threading.Thread(target=body, name="netns")
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def detach(self) -> int:
        """The descriptor, which is the caller's from here on."""
        fd, self._fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Let go of the namespace; may be called again."""
        fd, self._fd = self._fd, -1  # before it is closed: another thread may close, too
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> NetworkNamespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def scratch_namespace() -> Iterator[NetworkNamespace]:
    """A new namespace with nothing in it, which goes with the last descriptor and process in it."""
    opened: list[NetworkNamespace] = []
    failures: list[NetnsError] = []

    def make() -> None:
        if _libc.unshare(CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            failures.append(NetnsError(f"cannot make a network namespace: {reason}; needs CAP_SYS_ADMIN"))
            return
        opened.append(NetworkNamespace.open("/proc/thread-self/ns/net"))

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    with opened[0] as namespace:
        yield namespace
