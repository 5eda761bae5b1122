"""Which ports a process's network namespace listens on, read from /proc without a packet to anyone.

A probe by connection would show in the application's log, and in the mesh's metrics as a request of nobody.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"  # TCP_LISTEN of include/net/tcp_states.h
_UNCONNECTED: Final = "07"  # TCP_CLOSE, which an unconnected UDP socket has
_TABLES: Final = (
    ("TCP", "tcp", _LISTEN),
    ("TCP", "tcp6", _LISTEN),
    ("UDP", "udp", _UNCONNECTED),
    ("UDP", "udp6", _UNCONNECTED),
)


def listening(pid: int, addresses: Iterable[IPv4Address | IPv6Address]) -> set[tuple[str, int]]:
    """Return (protocol, port) of what `addresses` can be reached at; empty when the process is gone."""
    wanted = {_kernel_form(address) for address in addresses} | {"0" * 8, "0" * 32}
    found: set[tuple[str, int]] = set()
    for protocol, table, state in _TABLES:
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, _, row_state, *_ = row.split()
            address, _, port = local.partition(":")
            if row_state == state and address in wanted:
                found.add((protocol, int(port, 16)))
    return found


def _kernel_form(address: IPv4Address | IPv6Address) -> str:
    """Return an address as /proc/net/tcp prints it: 32-bit words in host byte order."""
    packed = address.packed
    words = [int.from_bytes(packed[i : i + 4], "big") for i in range(0, len(packed), 4)]
    return "".join(f"{socket.ntohl(word):08X}" for word in words)
