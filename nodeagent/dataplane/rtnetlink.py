"""The little of rtnetlink(7) that capture needs: addresses, links, rules and local routes of a namespace."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from nodeagent.dataplane.netlink import (
    CREATE,
    EXCLUSIVE,
    Attributes,
    NetlinkSocket,
    pack_attributes,
    unpack_attributes,
)
from nodeagent.errors import NetnsError

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
_WHAT: Final = "rules, routes or addresses"


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
    """`ip route add local`: packets to `destination` (one address, or all with the same first `length` bits; b"": to
    all) on interface `link` stay here."""

    family: int
    table: int
    link: int
    metric: int
    """Differs between routes of several interfaces to one destination."""
    destination: bytes = b""
    length: int = 0
    """0: all bits."""


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


class RouteSocket(NetlinkSocket):
    """A NETLINK_ROUTE socket of the namespace that the opening thread is in. Not for use by several threads
    at once.

    Errors come as NetnsError; what is there already on adding, or gone already on deleting, is no error.
    Rules and routes are recognised as ours by `protocol` (an `rt_protos` number), which every one added here
    carries.
    """

    def __init__(self, protocol: int) -> None:
        super().__init__(socket.NETLINK_ROUTE, "route socket")
        self._protocol = protocol

    # -- what is there --

    def links(self) -> list[Link]:
        """All interfaces."""
        found = []
        for body in self._list(_GET_LINK, socket.AF_UNSPEC, _LINK.size):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            name = unpack_attributes(body[_LINK.size :]).get(_LINK_NAME, b"").rstrip(b"\0").decode()
            found.append(Link(index, name, bool(flags & _UP)))
        return found

    def addresses(self) -> list[Address]:
        """All addresses of all interfaces."""
        found = []
        for body in self._list(_GET_ADDRESS, socket.AF_UNSPEC, _ADDRESS.size):
            _, _, flags, _, link = _ADDRESS.unpack_from(body)
            attributes = unpack_attributes(body[_ADDRESS.size :])
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            flags = _number(attributes, _IFA_FLAGS, flags)
            if raw:
                found.append(Address(raw, link, not flags & _ADDRESS_DADFAILED))
        return found

    def own_rules(self, family: int) -> set[Rule]:
        """Rules of this family that carry our protocol number."""
        found = set()
        for body in self._list(_GET_RULE, family, _ROUTE.size):
            attributes = unpack_attributes(body[_ROUTE.size :])
            if attributes.get(_RULE_PROTOCOL) == bytes([self._protocol]):
                found.add(_read_rule(family, body[4], attributes))
        return found

    def own_routes(self, family: int) -> set[LocalRoute]:
        """Local routes of this family, in any table, that carry our protocol number."""
        found = set()
        for body in self._list(_GET_ROUTE, family, _ROUTE.size):
            _, bits, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
            if protocol == self._protocol and kind == _TYPE_LOCAL:
                attributes = unpack_attributes(body[_ROUTE.size :])
                destination = attributes.get(_ROUTE_DESTINATION, b"")
                found.add(
                    LocalRoute(
                        family,
                        _number(attributes, _ROUTE_TABLE, table),
                        _number(attributes, _ROUTE_INTERFACE),
                        _number(attributes, _ROUTE_PRIORITY),
                        destination,
                        bits if bits < len(destination) * 8 else 0,
                    )
                )
        return found

    # -- changes --

    def add_rule(self, rule: Rule) -> None:
        """Add the rule unless it is there."""
        self._request(_NEW_RULE, CREATE | EXCLUSIVE, self._rule(rule), f"add {rule}", errno.EEXIST)

    def delete_rule(self, rule: Rule) -> None:
        """Delete the rule if it is there."""
        self._request(_DELETE_RULE, 0, self._rule(rule), f"delete {rule}", errno.ENOENT)

    def add_route(self, route: LocalRoute) -> None:
        """Add the route unless it is there."""
        self._request(_NEW_ROUTE, CREATE | EXCLUSIVE, self._route(route), f"add {route}", errno.EEXIST)

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
        return header + pack_attributes(attributes)

    def _route(self, route: LocalRoute) -> bytes:
        attributes = {
            _ROUTE_TABLE: _u32(route.table),
            _ROUTE_INTERFACE: _u32(route.link),
            _ROUTE_PRIORITY: _u32(route.metric),
        }
        if route.destination:
            attributes[_ROUTE_DESTINATION] = route.destination
        scope = _SCOPE_HOST if route.family == socket.AF_INET else _SCOPE_UNIVERSE
        bits = route.length or len(route.destination) * 8
        header = _ROUTE.pack(route.family, bits, 0, 0, 0, self._protocol, scope, _TYPE_LOCAL, 0)
        return header + pack_attributes(attributes)

    def _request(self, kind: int, flags: int, body: bytes, what: str, accepted: int) -> None:
        """Make a change; the errno `accepted` means that it was made already."""
        code = self.request(kind, flags, body)
        if code not in (0, accepted):
            raise NetnsError(f"cannot {what}: {os.strerror(code)}")

    def _list(self, kind: int, family: int, header_size: int) -> list[bytes]:
        return self.dump(kind, bytes([family]) + b"\0" * (header_size - 1), _WHAT)
