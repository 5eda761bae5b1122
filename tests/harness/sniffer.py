"""Sees all frames of a network namespace, as tcpdump does, and takes TCP segments out of them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from nodeagent.lab import netns

_ETH_P_ALL: Final = 0x0003
_ETH_P_IP: Final = 0x0800
_ETH_P_IPV6: Final = 0x86DD
_FRAME: Final = 1 << 17
"""Frames of one node are up to 64 KiB: the kernel segments them on the wire only."""


@dataclass(frozen=True)
class Segment:
    """A TCP segment with data."""

    source: str
    source_port: int
    target: str
    target_port: int
    data: bytes
    sequence: int = 0

    def between(self, one: set[str], other: set[str]) -> bool:
        """Whether it goes from one set of addresses to the other, either way."""
        return (self.source in one and self.target in other) or (self.source in other and self.target in one)


def parse(frame: bytes) -> Segment | None:
    """The segment in an Ethernet frame; None if there is none, or no data in it."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[14:]
    if kind == _ETH_P_IP and packet[9] == socket.IPPROTO_TCP:
        end = int.from_bytes(packet[2:4], "big")
        head, source, target = (packet[0] & 0xF) * 4, packet[12:16], packet[16:20]
    elif kind == _ETH_P_IPV6 and packet[6] == socket.IPPROTO_TCP:
        end = 40 + int.from_bytes(packet[4:6], "big")
        head, source, target = 40, packet[8:24], packet[24:40]
    else:
        return None
    tcp = packet[head:end]
    source_port, target_port, sequence = struct.unpack_from("!HHI", tcp)
    data = tcp[(tcp[12] >> 4) * 4 :]
    if not data:
        return None
    return Segment(str(ip_address(source)), source_port, str(ip_address(target)), target_port, data, sequence)


@contextlib.contextmanager
def sniffing(namespace: str) -> Iterator[list[Segment]]:
    """Collect the segments that pass in a named network namespace, until the end of the block."""
    opened = netns.run_in(
        namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    )
    opened.settimeout(0.1)
    segments: list[Segment] = []
    ended = threading.Event()

    def collect() -> None:
        while True:
            try:
                segment = parse(opened.recv(_FRAME))
            except TimeoutError:
                if ended.is_set():
                    return
                continue
            if segment is not None:
                segments.append(segment)

    thread = threading.Thread(target=collect, name="sniffer")
    thread.start()
    try:
        yield segments
    finally:
        ended.set()
        thread.join()
        opened.close()
