"""Reads captured TCP connections as TLS records (RFC 8446, 5.1), and tells which version was agreed upon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from harness.sniffer import Segment

Connection: TypeAlias = tuple[str, int, str, int]
"""Source, port, target, port: one direction."""

_HANDSHAKE: Final = 22
_TYPES: Final = frozenset((20, 21, _HANDSHAKE, 23))  # change_cipher_spec, alert, handshake, application_data
_SERVER_HELLO: Final = 2
_SUPPORTED_VERSIONS: Final = 43
_MOST: Final = 16384 + 256
TLS_1_3: Final = 0x0304


def streams(segments: Iterable[Segment]) -> dict[Connection, bytes]:
    """The bytes of each direction of each connection from the first one seen on; segments that were seen several
    times (a bridge has several ports) count once. What comes after a gap is left out."""
    parts: dict[Connection, dict[int, bytes]] = {}
    for each in segments:
        key = (each.source, each.source_port, each.target, each.target_port)
        parts.setdefault(key, {})[each.sequence] = each.data
    return {key: _join(found) for key, found in parts.items()}


def _join(parts: dict[int, bytes]) -> bytes:
    at = min(parts)
    joined = b""
    while at in parts:
        joined += parts[at]
        at = (at + len(parts[at])) & 0xFFFFFFFF
    return joined


def records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each whole record; AssertionError for bytes that are none."""
    at = 0
    while at + 5 <= len(stream):
        kind, major, length = stream[at], stream[at + 1], int.from_bytes(stream[at + 3 : at + 5])
        is_record = kind in _TYPES and major == 3 and length <= _MOST
        assert is_record, f"no TLS record: {stream[at : at + 40]!r}"
        yield kind, stream[at + 5 : at + 5 + length]
        at += 5 + length


def agreed_version(stream: bytes) -> int | None:
    """What a ServerHello in the stream chose (supported_versions, RFC 8446, 4.2.1); None if there is no ServerHello."""
    for kind, content in records(stream):
        if kind == _HANDSHAKE and content[0] == _SERVER_HELLO:
            return _chosen(content)
    return None


def _chosen(hello: bytes) -> int:
    at = 4 + 2 + 32
    at += 1 + hello[at] + 2 + 1
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    while at < end:
        name, length = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        if name == _SUPPORTED_VERSIONS:
            return int.from_bytes(hello[at + 4 : at + 6])
        at += 4 + length
    return int.from_bytes(hello[4:6])
