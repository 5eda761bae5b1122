"""TCP segments that no connect() made, and whether they arrive."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from harness.netns import Namespace

RAW_PORT = 40_404
_SYN = 0x02


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def syn(source: str, target: str, port: int) -> bytes:
    """A SYN, as no connect() made it."""
    family = family_of(source)
    header = struct.pack("!HHIIBBHHH", RAW_PORT, port, 1, 0, 5 << 4, _SYN, 65535, 0, 0)
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    pseudo = addresses + struct.pack("!HH", socket.IPPROTO_TCP, len(header))
    if family == socket.AF_INET6:
        pseudo = addresses + struct.pack("!II", len(header), socket.IPPROTO_TCP)
    return header[:16] + struct.pack("!H", _checksum(pseudo + header)) + header[18:]


def arrivals(namespace: Namespace, attempt: Callable[[], None]) -> list[int]:
    """Source ports of the TCP packets that reach a namespace within half a second of an attempt."""
    opened = namespace.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)))
    with opened:
        attempt()
        opened.settimeout(0.1)
        ports: list[int] = []
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            try:
                packet, origin = opened.recvfrom(4096)
            except TimeoutError:
                continue
            incoming = origin[2] != socket.PACKET_OUTGOING
            v4 = packet[0] >> 4 == 4
            if incoming and packet[9 if v4 else 6] == socket.IPPROTO_TCP:
                start = (packet[0] & 15) * 4 if v4 else 40
                ports.append(int.from_bytes(packet[start : start + 2], "big"))
        return ports
