"""Addresses as the engine has them: 16 bytes in network order, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2)."""

from __future__ import annotations

import socket
from typing import Final

LENGTH: Final = 16
V4_PREFIX: Final = b"\0" * 10 + b"\xff\xff"


def parse_address(text: str) -> bytes:
    """The 16 bytes of an IPv4 or IPv6 address in text form; ValueError if it is none."""
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return V4_PREFIX + socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text!r} is not an IP address") from None


def widen_address(raw: bytes) -> bytes:
    """The 16 bytes of an address of 4 or 16 bytes, as istio.workload carries them; ValueError for other
    lengths."""
    if len(raw) == LENGTH:
        return raw
    if len(raw) == 4:
        return V4_PREFIX + raw
    raise ValueError(f"an address has 4 or 16 bytes, not {len(raw)}")


def is_v4(address: bytes) -> bool:
    """Whether the 16 bytes hold a mapped IPv4 address."""
    return address[:12] == V4_PREFIX


def format_address(address: bytes) -> str:
    """Text form of 16 bytes; mapped IPv4 as dotted quad."""
    if is_v4(address):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def format_endpoint(address: bytes, port: int) -> str:
    """`a.b.c.d:port` or `[v6]:port`."""
    text = format_address(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
