"""The little of rtnetlink(7) that capture needs: addresses, links, rules and local routes of a namespace.

By hand, because pyroute2 would cost the agent 24 MB of memory and 100 ms of start for five kinds of message;
the lab, which needs much more of it, uses pyroute2.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from nodeagent.errors import NetnsError

# linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE = 0x01, 0x04, 0x300, 0x400, 0x200
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED: Final = 0x10
# linux/rtnetlink.h, linux/if_addr.h, linux/fib_rules.h
_GET_LINK, _GET_ADDRESS = 18, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_NEW_RULE, _DELETE_RULE, _GET_RULE = 32, 33, 34
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_LINK_NAME, _IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 3, 1, 2, 8
_ROUTE_DESTINATION, _ROUTE_INTERFACE, _ROUTE_PRIORITY, _ROUTE_TABLE = 1, 4, 6, 15
_RULE_DESTINATION, _RULE_PRIORITY, _RULE_MARK, _RULE_TABLE, _RULE_MASK, _RULE_PROTOCOL = 1, 6, 10, 15, 16, 21
_RULE_DEVICE, _RULE_SKIP_TO, _RULE_IP_PROTOCOL = 3, 4, 22
_TO_TABLE, _SKIP, _NOTHING = 1, 2, 3
_TYPE_LOCAL, _SCOPE_UNIVERSE, _SCOPE_HOST = 2, 0, 254
_UP: Final = 0x1
_ADDRESS_DADFAILED: Final = 0x08
_RECEIVE_BYTES: Final = 1 << 16
_DUMP_TRIES: Final = 5

Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    up: bool


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface: 4 or 16 bytes."""

    raw: bytes
    link: int
    usable: bool
    """False when duplicate address detection found it taken."""


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """`ip rule`: what has `mark` (all 32 bits; 0: any), goes to `destination` (one address; b"": any), comes by
    `device` ("lo": from here) and is of the IP `protocol` (0: any) is looked up in `table`, or goes on with the
    rule at `skip_to`. One with neither does nothing: a place to skip to."""

    family: int
    priority: int
    table: int = 0
    mark: int = 0
    destination: bytes = b""
    device: str = ""
    protocol: int = 0
    skip_to: int = 0


@dataclass(frozen=True, slots=True, order=True)
class LocalRoute:
    """`ip route add local`: packets to `destination` (one address; b"": all) on interface `link` stay
    here."""

    family: int
    table: int
    link: int
    metric: int
    """Differs between routes of several interfaces to one destination."""
    destination: bytes = b""


def _pack_attributes(attributes: Attributes) -> bytes:
    packed = b""
    for kind, value in attributes.items():
        padding = b"\0" * (-len(value) % 4)
        packed += struct.pack("=HH", len(value) + 4, kind) + value + padding
    return packed


def _unpack_attributes(data: bytes) -> Attributes:
    attributes: Attributes = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        attributes[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return attributes


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _number(attributes: Attributes, kind: int, default: int = 0) -> int:
    raw = attributes.get(kind)
    return int(struct.unpack("=I", raw)[0]) if raw is not None and len(raw) == 4 else default


def _read_rule(family: int, table: int, attributes: Attributes) -> Rule:
    return Rule(
        family,
        _number(attributes, _RULE_PRIORITY),
        _number(attributes, _RULE_TABLE, table),
        _number(attributes, _RULE_MARK),
        attributes.get(_RULE_DESTINATION, b""),
        attributes.get(_RULE_DEVICE, b"").rstrip(b"\0").decode(),
        attributes.get(_RULE_IP_PROTOCOL, b"\0")[0],
        _number(attributes, _RULE_SKIP_TO),
    )


class RouteSocket:
    """A NETLINK_ROUTE socket of the namespace that the opening thread is in. Not for use by several threads
    at once.

    Errors come as NetnsError; what is there already on adding, or gone already on deleting, is no error.
    Rules and routes are recognised as ours by `protocol` (an `rt_protos` number), which every one added here
    carries.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._sequence = 0
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
        except OSError as error:
            raise NetnsError(f"cannot open a route socket: {error.strerror}") from error

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    # -- what is there --

    def links(self) -> list[Link]:
        """All interfaces."""
        found = []
        for body in self._dump(_GET_LINK, socket.AF_UNSPEC, _LINK.size):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            name = _unpack_attributes(body[_LINK.size :]).get(_LINK_NAME, b"").rstrip(b"\0").decode()
            found.append(Link(index, name, bool(flags & _UP)))
        return found

    def addresses(self) -> list[Address]:
        """All addresses of all interfaces."""
        found = []
        for body in self._dump(_GET_ADDRESS, socket.AF_UNSPEC, _ADDRESS.size):
            _, _, flags, _, link = _ADDRESS.unpack_from(body)
            attributes = _unpack_attributes(body[_ADDRESS.size :])
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            flags = _number(attributes, _IFA_FLAGS, flags)
            if raw:
                found.append(Address(raw, link, not flags & _ADDRESS_DADFAILED))
        return found

    def own_rules(self, family: int) -> set[Rule]:
        """Rules of this family that carry our protocol number."""
        found = set()
        for body in self._dump(_GET_RULE, family, _ROUTE.size):
            attributes = _unpack_attributes(body[_ROUTE.size :])
            if attributes.get(_RULE_PROTOCOL) == bytes([self._protocol]):
                found.add(_read_rule(family, body[4], attributes))
        return found

    def own_routes(self, family: int) -> set[LocalRoute]:
        """Local routes of this family, in any table, that carry our protocol number."""
        found = set()
        for body in self._dump(_GET_ROUTE, family, _ROUTE.size):
            _, _, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
            if protocol == self._protocol and kind == _TYPE_LOCAL:
                attributes = _unpack_attributes(body[_ROUTE.size :])
                found.add(
                    LocalRoute(
                        family,
                        _number(attributes, _ROUTE_TABLE, table),
                        _number(attributes, _ROUTE_INTERFACE),
                        _number(attributes, _ROUTE_PRIORITY),
                        attributes.get(_ROUTE_DESTINATION, b""),
                    )
                )
        return found

    # -- changes --

    def add_rule(self, rule: Rule) -> None:
        """Add the rule unless it is there."""
        self._request(_NEW_RULE, _CREATE | _EXCLUSIVE, self._rule(rule), f"add {rule}", errno.EEXIST)

    def delete_rule(self, rule: Rule) -> None:
        """Delete the rule if it is there."""
        self._request(_DELETE_RULE, 0, self._rule(rule), f"delete {rule}", errno.ENOENT)

    def add_route(self, route: LocalRoute) -> None:
        """Add the route unless it is there."""
        self._request(_NEW_ROUTE, _CREATE | _EXCLUSIVE, self._route(route), f"add {route}", errno.EEXIST)

    def delete_route(self, route: LocalRoute) -> None:
        """Delete the route if it is there."""
        self._request(_DELETE_ROUTE, 0, self._route(route), f"delete {route}", errno.ESRCH)

    # -- messages --

    def _rule(self, rule: Rule) -> bytes:
        attributes = {
            _RULE_PRIORITY: _u32(rule.priority),
            _RULE_TABLE: _u32(rule.table),
            _RULE_PROTOCOL: bytes([self._protocol]),
        }
        if rule.mark:
            attributes |= {_RULE_MARK: _u32(rule.mark), _RULE_MASK: _u32(0xFFFFFFFF)}
        if rule.destination:
            attributes[_RULE_DESTINATION] = rule.destination
        if rule.device:
            attributes[_RULE_DEVICE] = rule.device.encode() + b"\0"
        if rule.protocol:
            attributes[_RULE_IP_PROTOCOL] = bytes([rule.protocol])
        if rule.skip_to:
            attributes[_RULE_SKIP_TO] = _u32(rule.skip_to)
        action = _TO_TABLE if rule.table else _SKIP if rule.skip_to else _NOTHING
        header = _ROUTE.pack(rule.family, len(rule.destination) * 8, 0, 0, 0, 0, 0, action, 0)
        return header + _pack_attributes(attributes)

    def _route(self, route: LocalRoute) -> bytes:
        attributes = {
            _ROUTE_TABLE: _u32(route.table),
            _ROUTE_INTERFACE: _u32(route.link),
            _ROUTE_PRIORITY: _u32(route.metric),
        }
        if route.destination:
            attributes[_ROUTE_DESTINATION] = route.destination
        scope = _SCOPE_HOST if route.family == socket.AF_INET else _SCOPE_UNIVERSE
        header = _ROUTE.pack(
            route.family, len(route.destination) * 8, 0, 0, 0, self._protocol, scope, _TYPE_LOCAL, 0
        )
        return header + _pack_attributes(attributes)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, body) of the messages in the next packet that answer the last request."""
        data = self._socket.recv(_RECEIVE_BYTES)
        while len(data) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            if length < _HEADER.size:
                raise NetnsError("the kernel sent a malformed netlink message")
            if sequence == self._sequence:
                yield kind, flags, data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]

    def _request(self, kind: int, flags: int, body: bytes, what: str, accepted: int) -> None:
        """Send a change and wait for its acknowledgement; the errno `accepted` means that it was done
        already."""
        self._send(kind, flags | _ACK, body)
        while True:
            for answer, _, payload in self._receive():
                if answer == _ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    if code not in (0, accepted):
                        raise NetnsError(f"cannot {what}: {os.strerror(code)}")
                    return

    def _dump(self, kind: int, family: int, header_size: int) -> list[bytes]:
        """Bodies of a listing; taken again if the kernel says that it changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            bodies, consistent = self._dump_once(kind, family, header_size)
            if consistent:
                return bodies
        raise NetnsError("rules, routes or addresses of the namespace keep changing; cannot list them")

    def _dump_once(self, kind: int, family: int, header_size: int) -> tuple[list[bytes], bool]:
        self._send(kind, _DUMP, bytes([family]) + b"\0" * (header_size - 1))
        bodies: list[bytes] = []
        consistent = True
        while True:
            for answer, flags, payload in self._receive():
                consistent = consistent and not flags & _DUMP_INTERRUPTED
                if answer == _DONE:
                    return bodies, consistent
                if answer == _ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    # A kernel without a family has nothing of it to list.
                    if code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                        return [], True
                    raise NetnsError(f"cannot list the namespace's configuration: {os.strerror(code)}")
                bodies.append(payload)
