"""Keys and values of the maps of UDP as bytes (bpf/include/datagram_abi.h); services, endpoints and verdicts are laid
out as bypass_layout's."""

from __future__ import annotations

import struct
from typing import Final

COUNTERS: Final = ("allowed", "denied", "unknown", "no_endpoint", "outsider", "past")
"""enum na_udp_counter."""
ANY_PORT: Final = 0
"""As a port of AccessKey: those that have no entry of their own."""

OUTSIDERS: Final = 0
"""As a source of AccessKey: who is no workload of the mesh."""

_NUMBER: Final = struct.Struct("=I4x")
_PEER: Final = struct.Struct("=Q16sH6x")
_DESTINATION: Final = struct.Struct("=16sH6x")

_OUTSIDER: Final = struct.Struct("=IIH2x16s")
_OUTSIDER_BITS: Final = 64

OUTSIDER_SIZE: Final = _OUTSIDER.size
NUMBER_SIZE: Final = _NUMBER.size
PEER_SIZE: Final = _PEER.size
DESTINATION_SIZE: Final = _DESTINATION.size


def pack_number(number: int) -> bytes:
    """As struct na_sender or na_class."""
    return _NUMBER.pack(number)


def pack_outsider(number: int, port: int, address: bytes, bits: int) -> bytes:
    """As struct na_outsider_key: of a class, `bits` of the address."""
    return _OUTSIDER.pack(_OUTSIDER_BITS + bits, number, port, address)


def unpack_peer(raw: bytes) -> tuple[int, bytes, int]:
    """(cookie of the socket, address, port) of struct na_peer_key."""
    cookie, address, port = _PEER.unpack(raw)
    return cookie, address, port


def unpack_destination(raw: bytes) -> tuple[bytes, int]:
    """(address, port) of struct na_destination."""
    address, port = _DESTINATION.unpack(raw)
    return address, port
