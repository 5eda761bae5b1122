"""Tells when the devices of network namespaces change: one thread for all, woken by the kernel (rtnetlink)."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import DataplaneError, NetnsError

logger = logging.getLogger(__name__)

_LINKS: Final = 1  # RTMGRP_LINK, linux/rtnetlink.h
_RECEIVE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Watched:
    events: socket.socket
    changed: Callable[[], None]


class DeviceWatch:
    """Usable from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._epoll: select.epoll | None = None
        self._thread: threading.Thread | None = None
        self._end = -1

    def add(self, namespace: NetworkNamespace, changed: Callable[[], None]) -> int:
        """Call `changed`, in a thread of the watch's own, after devices of the namespace have come, gone, or become
        another way; returns what remove() is to be told. NetnsError if the kernel does not let us."""
        try:
            events = namespace.run(_subscribe)
        except OSError as error:
            raise NetnsError(f"cannot watch the devices of a namespace: {error.strerror}") from error
        key = events.fileno()
        with self._lock:
            epoll = self._start()
            self._watched[key] = _Watched(events, changed)
            epoll.register(key, select.EPOLLIN)
        return key

    def _start(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._end = os.eventfd(0, os.EFD_CLOEXEC)
            self._epoll.register(self._end, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, args=(self._epoll, self._end), daemon=True)
            self._thread.start()
        return self._epoll

    def remove(self, key: int) -> None:
        """Watch no more. A call that has begun goes on; it is not waited for."""
        with self._lock:
            watched = self._watched.pop(key, None)
            if watched is not None:
                watched.events.close()  # and so it leaves the epoll

    def _run(self, epoll: select.epoll, end: int) -> None:
        while True:
            for key, _ in epoll.poll():
                if key == end:
                    return
                changed = self._take(key)
                if changed is not None:
                    _call(changed)

    def _take(self, key: int) -> Callable[[], None] | None:
        with self._lock:
            watched = self._watched.get(key)
            if watched is None:
                return None
            with contextlib.suppress(OSError):  # ENOBUFS: there was more than the kernel kept for us
                while watched.events.recv(_RECEIVE_BYTES):
                    pass
            return watched.changed

    def close(self) -> None:
        """Watch nothing; may be called again. Not from a call of `changed`."""
        if self._epoll is None or self._thread is None:
            return
        os.eventfd_write(self._end, 1)
        self._thread.join()
        for key in list(self._watched):
            self.remove(key)
        self._epoll.close()
        os.close(self._end)
        self._epoll = self._thread = None


def _subscribe() -> socket.socket:
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        events.bind((0, _LINKS))
    except OSError:
        events.close()
        raise
    return events


def _call(changed: Callable[[], None]) -> None:
    try:
        changed()
    except (DataplaneError, OSError) as error:
        logger.warning("a namespace's devices changed, and its capture did not follow: %s", error)
