"""io_uring(7) by its system calls, for as much of it as tests of sockets need: one request at a time is handed over."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

_SETUP, _ENTER = 425, 426  # system calls, on every architecture
_GETEVENTS: Final = 1
_SQES: Final = 0x10000000
_SQE_SIZE, _CQE_SIZE = 64, 16
# linux/io_uring.h
_SEND, _RECV, _PROVIDE_BUFFERS, _SEND_ZC = 26, 27, 31, 47
_RECV_MULTISHOT, _BUFFER_SELECT = 2, 32
_MORE, _NOTIFICATION = 2, 8
_EXT_ARG: Final = 8
_BUFFER_SIZE, _BUFFERS = 64, 8

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Completion:
    """`result` as the system call's, or -errno; `more` will follow; a `notification` says that what was sent may be
    overwritten."""

    result: int
    more: bool
    notification: bool
    buffer: int


class Ring:
    """A ring; usable as a context manager."""

    def __init__(self) -> None:
        """OSError where there is none: ENOSYS, or EPERM (kernel.io_uring_disabled)."""
        params = ctypes.create_string_buffer(120)
        self._fd = _libc.syscall(_SETUP, 16, params)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        words = struct.unpack("=30I", params.raw)
        self._entries = words[0]
        # struct io_sqring_offsets: head, tail, ring_mask, ...; array; struct io_cqring_offsets: head, tail, ..., cqes
        self._sq_tail, self._sq_array = words[11], words[16]
        self._cq_head, self._cq_tail, self._cqes = words[20], words[21], words[25]
        self._cq_entries = words[1]
        size = max(self._sq_array + 4 * self._entries, self._cqes + _CQE_SIZE * self._cq_entries)
        self._rings = mmap.mmap(self._fd, size)
        self._sqes = mmap.mmap(self._fd, _SQE_SIZE * self._entries, offset=_SQES)
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        """What the kernel reads and writes; kept as long as the ring."""
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *ignored: object) -> None:
        os.close(self._fd)

    def send(self, sock: socket.socket, data: bytes, *, zero_copy: bool = False) -> None:
        """Hand over a send(2); without a copy of the data, if so."""
        self._memory[: len(data)] = data
        self._submit(_SEND_ZC if zero_copy else _SEND, sock.fileno(), self._address, len(data))

    def receive(self, sock: socket.socket) -> None:
        """Hand over a recv(2)."""
        self._submit(_RECV, sock.fileno(), self._address, mmap.PAGESIZE)

    def keep_receiving(self, sock: socket.socket) -> None:
        """Hand over one that completes again and again (multishot), each time with a buffer of its own."""
        self._submit(_PROVIDE_BUFFERS, _BUFFERS, self._address, _BUFFER_SIZE)
        assert self.wait().result == 0
        self._submit(_RECV, sock.fileno(), 0, 0, flags=_BUFFER_SELECT, ioprio=_RECV_MULTISHOT)

    def data(self, completion: Completion) -> bytes:
        """What was received."""
        at = completion.buffer * _BUFFER_SIZE
        return self._memory[at : at + max(0, completion.result)]

    def _submit(
        self, opcode: int, fd: int, address: int, length: int, *, flags: int = 0, ioprio: int = 0
    ) -> None:
        assert sys.byteorder == "little", "the halves of what is 8 bytes"
        (tail,) = struct.unpack_from("=I", self._rings, self._sq_tail)
        at = tail % self._entries
        sqe = struct.pack("=BBHiQQI", opcode, flags, ioprio, fd, 0, address, length)
        self._sqes[at * _SQE_SIZE : (at + 1) * _SQE_SIZE] = sqe.ljust(_SQE_SIZE, b"\0")
        struct.pack_into("=I", self._rings, self._sq_array + 4 * at, at)
        struct.pack_into("=I", self._rings, self._sq_tail, tail + 1)
        self._enter(1, 0)

    def wait(self, seconds: float = 1.0) -> Completion:
        """The next completion; TimeoutError."""
        (head,) = struct.unpack_from("=I", self._rings, self._cq_head)
        if head == struct.unpack_from("=I", self._rings, self._cq_tail)[0]:
            self._enter(0, 1, seconds)
        at = self._cqes + _CQE_SIZE * (head % self._cq_entries)
        _, result, flags = struct.unpack_from("=QiI", self._rings, at)
        struct.pack_into("=I", self._rings, self._cq_head, head + 1)
        return Completion(result, bool(flags & _MORE), bool(flags & _NOTIFICATION), flags >> 16)

    def _enter(self, submit: int, wait: int, seconds: float = 0) -> None:
        timeout = ctypes.create_string_buffer(struct.pack("=qq", int(seconds), int(seconds % 1 * 1e9)))
        argument = struct.pack("=QIIQ", 0, 0, 0, ctypes.addressof(timeout))
        waiting = (_GETEVENTS | _EXT_ARG, argument, len(argument)) if wait else (0, None, 0)
        if _libc.syscall(_ENTER, self._fd, submit, wait, *waiting) < 0:
            code = ctypes.get_errno()
            raise TimeoutError if code == errno.ETIME else OSError(code, "io_uring_enter")
