"""netlink(7): requests, acknowledgements and listings, whatever the protocol.

By hand, because pyroute2 would cost the agent 24 MB of memory and 100 ms of start for a few kinds of message;
the lab, which needs much more of it, uses pyroute2.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from nodeagent.errors import NetnsError

# linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_REQUEST, _ACK, _DUMP = 0x01, 0x04, 0x300
CREATE: Final = 0x400
EXCLUSIVE: Final = 0x200
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED: Final = 0x10
_TYPE_BITS: Final = 0x3FFF
_RECEIVE_BYTES: Final = 1 << 16
_DUMP_TRIES: Final = 5

Attributes = dict[int, bytes]


def pack_attributes(attributes: Attributes) -> bytes:
    """Attributes as the kernel reads them, each padded to four bytes."""
    packed = b""
    for kind, value in attributes.items():
        padding = b"\0" * (-len(value) % 4)
        packed += _ATTRIBUTE.pack(len(value) + _ATTRIBUTE.size, kind) + value + padding
    return packed


def unpack_attributes(data: bytes) -> Attributes:
    """Attributes by their number; of those that come twice the last one."""
    attributes: Attributes = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind & _TYPE_BITS] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return attributes


class NetlinkSocket:
    """A netlink socket of the namespace that the opening thread is in. Not for use by several threads at once.

    Errors come as NetnsError.
    """

    def __init__(self, protocol: int, name: str) -> None:
        """`protocol` is NETLINK_*; `name` is for messages, as in "a route socket"."""
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise NetnsError(f"cannot open a {name}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> int:
        """Have something done: 0, or the errno of the refusal."""
        self._send(kind, flags | _ACK, body)
        while True:
            for answer, _, payload in self._receive():
                if answer == _ERROR:
                    return -int(struct.unpack_from("=i", payload)[0])

    def dump(self, kind: int, body: bytes, what: str, *, consistent: bool = True) -> list[bytes]:
        """Bodies of a listing of `what`. A `consistent` one is taken again if it changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            bodies, unchanged = self._dump_once(kind, body, what)
            if unchanged or not consistent:
                return bodies
        raise NetnsError(f"{what} of the namespace keep changing; cannot list them")

    def _dump_once(self, kind: int, body: bytes, what: str) -> tuple[list[bytes], bool]:
        self._send(kind, _DUMP, body)
        bodies: list[bytes] = []
        unchanged = True
        while True:
            for answer, flags, payload in self._receive():
                unchanged = unchanged and not flags & _DUMP_INTERRUPTED
                if answer == _DONE:
                    return bodies, unchanged
                if answer == _ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    # A kernel without a family has nothing of it to list.
                    if code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                        return [], True
                    raise NetnsError(f"cannot list {what} of the namespace: {os.strerror(code)}")
                bodies.append(payload)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, body) of the messages in the next packet that answer the last request."""
        data = self._socket.recv(_RECEIVE_BYTES)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                raise NetnsError("the kernel sent a malformed netlink message")
            if sequence == self._sequence:
                yield kind, flags, data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3
