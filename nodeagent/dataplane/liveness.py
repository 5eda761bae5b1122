"""How BPF programs know that the agent lives (bpf/include/liveness.h): by a socket of its own in a map."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import BpfMap, BpfObject, pinned_map

LIVENESS: Final = "liveness"
"""The map's name."""
_KEY: Final = bytes(4)
_KEY_SIZE: Final = 4
_VALUE_SIZE: Final = 8  # what is written is a descriptor, what is read a socket's cookie


class Liveness:
    """A sign of life from its making until close(), or until the process ends, however it does."""

    __slots__ = ("_pair",)

    def __init__(self, object_: BpfObject) -> None:
        """Put a socket into the map of `object_`, in place of a predecessor's. BpfError if the kernel refuses."""
        # Connected, which the map asks of a stream; nothing is ever sent. Children do not inherit it.
        self._pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        slots: BpfMap = object_.map(LIVENESS, _KEY_SIZE, _VALUE_SIZE)
        try:
            slots[_KEY] = struct.pack("=Q", self._pair[0].fileno())
        except BaseException:
            self.close()
            raise
        finally:
            slots.close()

    def close(self) -> None:
        """End it; may be called again."""
        for end in self._pair:
            end.close()


def agent_is_alive(pin: Path) -> bool:
    """Whether the agent lives whose map is pinned there; what agent_is_alive() in C answers."""
    slots = pinned_map(pin, _KEY_SIZE, _VALUE_SIZE)
    if slots is None:
        return False
    try:
        return slots.get(_KEY) is not None
    finally:
        slots.close()
