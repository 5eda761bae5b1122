"""Listening sockets inside a workload's network namespace."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import NetnsError

BACKLOG: Final = 4096
"""Connections that wait for accept; the kernel cuts it to net.core.somaxconn."""

Opener = Callable[[NetworkNamespace | None, int, int], list[int]]
"""Listens on a port in a namespace (None: the agent's own) for a number of workers. Returns descriptors, the
caller's to close: one per worker for each socket, worker after worker."""

Opened = list[tuple[int, int, int]]
"""(kind, worker, descriptor) of each socket."""

_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_IPV6_TRANSPARENT: Final = 75  # linux/in6.h
_IP_TRANSPARENT: Final = 19  # linux/in.h


def bind_listener(port: int, *, device: str = "", transparent: bool = False) -> socket.socket:
    """One socket for both families in the calling thread's namespace; IPv4 alone where the kernel has no IPv6.

    With a `device` it takes what arrives there only. A `transparent` one may be given connections to addresses
    that are not the namespace's (IP_TRANSPARENT). OSError if the port is taken.
    """
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        address = "::"
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        address = ""
    try:
        if listener.family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if transparent:
            v6 = listener.family is socket.AF_INET6
            level, option = (
                (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if v6 else (socket.SOL_IP, _IP_TRANSPARENT)
            )
            listener.setsockopt(level, option, 1)
        if device:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        # Against TIME_WAIT left by a predecessor. Not SO_REUSEPORT: with that, a program in the pod that runs
        # as the same user could bind the port beside us and take connections that policy has not seen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def open_failed(port: int, error: OSError) -> NetnsError:
    """The error of a port that cannot be had."""
    hint = "; a program in the pod listens there" if error.errno == errno.EADDRINUSE else ""
    return NetnsError(f"cannot listen on port {port} in the workload's namespace: {error.strerror}{hint}")


def duplicate(listener: socket.socket, port: int, workers: int) -> list[int]:
    """One descriptor per worker, all of the one socket, which is taken over; NetnsError if there are too few."""
    descriptors = [listener.detach()]
    try:
        while len(descriptors) < workers:
            descriptors.append(os.dup(descriptors[0]))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise NetnsError(f"out of descriptors for the listener on port {port}: {error.strerror}") from error
    return descriptors


def open_dns_sockets(namespace: NetworkNamespace | None, port: int, workers: int) -> list[int]:
    """Datagram and listening sockets on `port` of both loopback addresses, where captured DNS is led; otherwise as
    open_listeners(). Nobody outside of the namespace can ask there."""
    try:
        opened = bind_dns(port) if namespace is None else namespace.run(lambda: bind_dns(port))
    except OSError as error:
        raise open_failed(port, error) from error
    return [fd for each in opened for fd in duplicate(each, port, workers)]


def bind_dns(port: int) -> list[socket.socket]:
    """The sockets of open_dns_sockets(), in the calling thread's namespace."""
    opened: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                try:
                    opened.append(_bind_loopback(family, kind, address, port))
                except OSError as error:
                    if family is socket.AF_INET or error.errno not in _NO_IPV6:
                        raise
    except OSError:
        for each in opened:
            each.close()
        raise
    return opened


def _bind_loopback(
    family: socket.AddressFamily, kind: socket.SocketKind, address: str, port: int
) -> socket.socket:
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if kind is socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if kind is socket.SOCK_STREAM:
            made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def open_listeners(namespace: NetworkNamespace | None, port: int, workers: int) -> list[int]:
    """Listen on `port` of every address (an Opener). NetnsError if the port is taken or out of reach."""
    try:
        listener = bind_listener(port) if namespace is None else namespace.run(lambda: bind_listener(port))
    except OSError as error:
        raise open_failed(port, error) from error
    return duplicate(listener, port, workers)


def open_each(
    wanted: Iterable[tuple[int, Opener, int]], namespace: NetworkNamespace | None, workers: int
) -> Opened:
    """Open (kind, opener, port) each; NetnsError as of its opener, then none stays open."""
    opened: Opened = []
    try:
        for kind, opener, port in wanted:
            descriptors = opener(namespace, port, workers)
            opened.extend((kind, index % workers, fd) for index, fd in enumerate(descriptors))
    except NetnsError:
        for _, _, descriptor in opened:
            os.close(descriptor)
        raise
    return opened


class KeptListeners:
    """Sockets that workloads listen on, kept while one is taken on again: what connects meanwhile waits in them.

    The engine owns the descriptors that it is given; they are copied here as long as it surely has them.
    """

    def __init__(self) -> None:
        self._given: dict[str, Opened] = {}
        self._kept: dict[str, Opened] = {}

    def gave(self, uid: str, kind: int, worker: int, descriptor: int) -> None:
        """The engine has taken a socket over."""
        self._given.setdefault(uid, []).append((kind, worker, descriptor))

    def gone(self, uid: str | None = None) -> None:
        """The engine closes the sockets of a workload, or (None) of all."""
        if uid is None:
            self._given.clear()
        else:
            self._given.pop(uid, None)

    def keep(self, uid: str) -> None:
        """Keep a workload's sockets open whatever the engine does, until they are taken or released. None are kept
        where there are too few descriptors: then others are opened, and who connects meanwhile is refused."""
        self.release(uid)
        kept: Opened = []
        self._kept[uid] = kept
        try:
            for kind, worker, descriptor in self._given.get(uid, ()):
                kept.append((kind, worker, os.dup(descriptor)))
        except OSError:
            self.release(uid)

    def take(self, uid: str) -> Opened | None:
        """The sockets that were kept for a workload, which are the caller's from here on; None if there are none."""
        return self._kept.pop(uid, None) or None

    def release(self, uid: str) -> None:
        """Close what was kept for a workload and not taken."""
        for _, _, descriptor in self._kept.pop(uid, ()):
            os.close(descriptor)
