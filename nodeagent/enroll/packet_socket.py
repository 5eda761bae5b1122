"""A SOCK_SEQPACKET unix socket under asyncio: one packet at a time, with the descriptors that came along."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Final

PACKET_LIMIT: Final = 1024
"""Bytes of a ZDS packet at most."""
_DESCRIPTORS: Final = 16
"""How many are taken off the socket, in order to close what does not belong there."""


@dataclass(slots=True)
class Packet:
    """What arrived. `data` is empty at the end of the connection; `cut` if it was longer than allowed."""

    data: bytes
    descriptors: list[int]
    cut: bool = False

    def take(self) -> int:
        """The first descriptor, which is the caller's from now on."""
        return self.descriptors.pop(0)

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class PacketSocket:
    """A connected socket. For one coroutine at a time."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connected SOCK_SEQPACKET socket."""
        connection.setblocking(False)
        self._socket = connection

    @classmethod
    def connect(cls, path: str) -> PacketSocket:
        """Connect to a listening socket; OSError if there is none. Does not block: on a unix socket the
        connection is there at once or not at all."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            connection.connect(path)
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    async def send(self, data: bytes) -> None:
        """Send one packet."""
        while True:
            try:
                self._socket.send(data)
                return
            except BlockingIOError:
                await self._ready(write=True)

    async def receive(self) -> Packet:
        """The next packet. The caller closes it."""
        while True:
            try:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._socket, PACKET_LIMIT, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
                return Packet(data, list(descriptors), bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
            except BlockingIOError:
                await self._ready(write=False)

    async def _ready(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add, remove = (
            (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
        )
        add(self._socket, wake)
        try:
            await ready
        finally:
            remove(self._socket)

    def close(self) -> None:
        """Close the connection; may be called again."""
        self._socket.close()
