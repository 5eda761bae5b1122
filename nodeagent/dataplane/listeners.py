"""Listening sockets inside a workload's network namespace."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import NetnsError

BACKLOG: Final = 4096
"""Connections that wait for accept; the kernel cuts it to net.core.somaxconn."""


def _open(port: int) -> socket.socket:
    """One socket for both families; IPv4 alone where the kernel has no IPv6."""
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
        # Against TIME_WAIT left by a predecessor. Not SO_REUSEPORT: with that, a program in the pod that runs
        # as the same user could bind the port beside us and take connections that policy has not seen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def open_listeners(namespace: NetworkNamespace | None, port: int, workers: int) -> list[int]:
    """Listen on `port` of every address in the namespace (None: the agent's own); one descriptor per worker,
    all of one socket.

    The descriptors are the caller's to close. NetnsError if the port is taken or out of reach.
    """
    try:
        listener = _open(port) if namespace is None else namespace.run(lambda: _open(port))
    except OSError as error:
        hint = "; a program in the pod listens there" if error.errno == errno.EADDRINUSE else ""
        raise NetnsError(
            f"cannot listen on port {port} in the workload's namespace: {error.strerror}{hint}"
        ) from error
    descriptors = [listener.detach()]
    try:
        while len(descriptors) < workers:
            descriptors.append(os.dup(descriptors[0]))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise NetnsError(f"out of descriptors for the listener on port {port}: {error.strerror}") from error
    return descriptors
