"""Keys and values of the maps by which connections within the node pass the engine, as bytes.

One class for each struct of bpf/include/nodeagent_abi.h, which says what the fields mean. Addresses are 16 bytes
(snapshot/address.py), ports and numbers in host order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

ANY_SOURCE: Final = 0
"""As a source of AccessKey: whoever has no entry of its own."""
NO_BYPASS: Final = 0
"""As a life's number: everything goes to the engine."""

_PAIR: Final = struct.Struct("=II")
_LIFE: Final = struct.Struct("=I4x")
_SERVICE_KEY: Final = struct.Struct("=16sIHBx")
_BACKEND: Final = struct.Struct("=16sIH2x")
_ACCESS_KEY: Final = struct.Struct("=IIHBx")
_ENDS: Final = struct.Struct("=16s16sHH4x")
_FLOW: Final = struct.Struct("=16sH6xQQQIIII8x")
_REDIRECTED: Final = struct.Struct("=QQQ")
_EVENT: Final = struct.Struct("=40s72sQQQIIIIII")

LIFE_SIZE: Final = _LIFE.size
SOURCE_SIZE: Final = _PAIR.size
SERVICE_KEY_SIZE: Final = _SERVICE_KEY.size
SERVICE_SIZE: Final = _PAIR.size
BACKEND_KEY_SIZE: Final = _PAIR.size
BACKEND_SIZE: Final = _BACKEND.size
ACCESS_KEY_SIZE: Final = _ACCESS_KEY.size
ACCESS_SIZE: Final = _PAIR.size
HERE_SIZE: Final = _PAIR.size
ENDS_SIZE: Final = _ENDS.size
FLOW_SIZE: Final = _FLOW.size
REDIRECTED_SIZE: Final = _REDIRECTED.size


class Access(IntEnum):
    """enum na_access."""

    ENGINE = 0
    ALLOW = 1
    DENY = 2


class EventKind(IntEnum):
    """enum na_bypass_event_kind."""

    DENIED = 1
    OPENED = 2
    FAILED = 3
    CLOSED = 4


class End(IntEnum):
    """enum na_bypass_end."""

    CLIENT = 0
    SERVER = 1
    RESET = 2


@dataclass(frozen=True, slots=True)
class Life:
    """struct na_life: which agent's decisions hold."""

    number: int

    def pack(self) -> bytes:
        """As in the map."""
        return _LIFE.pack(self.number)

    @classmethod
    def unpack(cls, raw: bytes) -> Life:
        """From the map."""
        return cls(*_LIFE.unpack(raw))


@dataclass(frozen=True, slots=True)
class Source:
    """struct na_source: a workload as a client."""

    workload: int
    view: int

    def pack(self) -> bytes:
        """As in the map."""
        return _PAIR.pack(self.workload, self.view)


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """struct na_service_key: what is asked for, in a view."""

    address: bytes
    view: int
    port: int
    protocol: int
    """IPPROTO_*."""

    def pack(self) -> bytes:
        """As in the map."""
        return _SERVICE_KEY.pack(self.address, self.view, self.port, self.protocol)


@dataclass(frozen=True, slots=True)
class Service:
    """struct na_service: how many slots it has, of which one is drawn."""

    id: int
    slots: int

    def pack(self) -> bytes:
        """As in the map."""
        return _PAIR.pack(self.id, self.slots)


@dataclass(frozen=True, slots=True)
class BackendKey:
    """struct na_backend_key: a slot of a service."""

    service: int
    slot: int

    def pack(self) -> bytes:
        """As in the map."""
        return _PAIR.pack(self.service, self.slot)


@dataclass(frozen=True, slots=True)
class Backend:
    """struct na_backend: an endpoint on this node."""

    address: bytes
    workload: int
    port: int

    def pack(self) -> bytes:
        """As in the map."""
        return _BACKEND.pack(self.address, self.workload, self.port)


@dataclass(frozen=True, slots=True)
class AccessKey:
    """struct na_access_key: a source (a workload, or ANY_SOURCE) and a port of a destination."""

    source: int
    destination: int
    port: int
    protocol: int

    def pack(self) -> bytes:
        """As in the map."""
        return _ACCESS_KEY.pack(self.source, self.destination, self.port, self.protocol)


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """struct na_access_entry: a verdict, and the number of the policy that it is by (0: none)."""

    access: Access
    policy: int = 0

    def pack(self) -> bytes:
        """As in the map."""
        return _PAIR.pack(self.access, self.policy)


@dataclass(frozen=True, slots=True)
class Here:
    """struct na_here: which workload a namespace is, in a life of an agent."""

    life: int
    workload: int

    def pack(self) -> bytes:
        """As in the map."""
        return _PAIR.pack(self.life, self.workload)


@dataclass(frozen=True, slots=True)
class Ends:
    """struct na_bypass_key: the ends of a connection, the client's first."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int

    def pack(self) -> bytes:
        """As in the map."""
        return _ENDS.pack(self.source, self.destination, self.source_port, self.destination_port)

    @classmethod
    def unpack(cls, raw: bytes) -> Ends:
        """From the map."""
        return cls(*_ENDS.unpack(raw))


@dataclass(frozen=True, slots=True)
class Flow:
    """struct na_bypass: a live connection."""

    asked: bytes
    asked_port: int
    netns_cookie: int
    socket_cookie: int
    started_ns: int
    life: int
    source: int
    destination: int
    service: int

    def pack(self) -> bytes:
        """As in the map."""
        return _FLOW.pack(
            self.asked,
            self.asked_port,
            self.netns_cookie,
            self.socket_cookie,
            self.started_ns,
            self.life,
            self.source,
            self.destination,
            self.service,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Flow:
        """From the map."""
        return cls(*_FLOW.unpack(raw))


@dataclass(frozen=True, slots=True)
class Event:
    """struct na_bypass_event: what the ring buffer tells."""

    ends: Ends
    flow: Flow
    at_ns: int
    sent: int
    received: int
    kind: EventKind
    end: End
    policy: int
    srtt_us: int
    retransmits: int
    error: int
    """Errno of the client's socket; 0: none."""

    @classmethod
    def unpack(cls, raw: bytes) -> Event:
        """From the ring buffer."""
        ends, flow, at_ns, sent, received, kind, end, *rest = _EVENT.unpack(raw)
        return cls(
            Ends.unpack(ends), Flow.unpack(flow), at_ns, sent, received, EventKind(kind), End(end), *rest
        )


@dataclass(frozen=True, slots=True)
class Redirected:
    """struct na_redirected (direct_abi.h): what a connection carried past TCP, as its client sees it."""

    cookie: int
    """Of the client's socket; 0: of nobody."""
    sent: int = 0
    received: int = 0

    def pack(self) -> bytes:
        """As in the map."""
        return _REDIRECTED.pack(self.cookie, self.sent, self.received)

    @classmethod
    def unpack(cls, raw: bytes) -> Redirected:
        """From the map."""
        return cls(*_REDIRECTED.unpack(raw))
