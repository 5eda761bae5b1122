"""sock_diag(7): TCP connections and connected UDP sockets of a namespace as the kernel has them, and the end of one of
them by force.

Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; the kernel lists v4-mapped connections of IPv6 sockets among IPv6.
Listing takes CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG, destroying CONFIG_INET_DIAG_DESTROY and CAP_NET_ADMIN in
the namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nodeagent.dataplane.netlink import NetlinkSocket
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import CapabilityError, NetnsError
from nodeagent.snapshot.address import widen_address

# linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST: Final = struct.Struct("=BBBxI")
_ENDS: Final = struct.Struct("!HH16s16s")
_DEVICE_AND_COOKIE: Final = struct.Struct("=IQ")
_DEVICE_AT: Final = 40
_MESSAGE: Final = struct.Struct("=BBxx")
_ENDS_AT: Final = 4
_INODE_AT: Final = 68
_ATTRIBUTES_AT: Final = 72
_ATTRIBUTE: Final = struct.Struct("=HH")
_INFO, _CGROUP_ID = 2, 21
_ID: Final = struct.Struct("=Q")
# linux/tcp.h, struct tcp_info: tcpi_rtt, _total_retrans, _bytes_received, _bytes_sent, _bytes_retrans (Linux 4.19)
_COUNTS: Final = struct.Struct("=68xI28xI24xQ64xQQ")


class TcpState(IntEnum):
    """net/tcp_states.h."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


CONNECTED: Final = frozenset(
    {
        TcpState.ESTABLISHED,
        TcpState.FIN_WAIT1,
        TcpState.FIN_WAIT2,
        TcpState.CLOSE_WAIT,
        TcpState.LAST_ACK,
        TcpState.CLOSING,
    }
)
"""In which data may still be on its way, or be read."""
UNFINISHED: Final = CONNECTED | {TcpState.SYN_SENT}
"""In which a client's connection can be ended."""
_FIN_RECEIVED: Final = frozenset({TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING})


@dataclass(frozen=True, slots=True)
class Ends:
    """The addresses (16 bytes) and ports of a connection, as one socket sees it: its own first."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A connection's socket. Bytes are payload: `sent` what has left at least once, `received` what has come in
    order."""

    ends: Ends
    state: TcpState
    device: int
    """Index of the device that the socket is bound to; 0: none."""
    cookie: int
    """SO_COOKIE: of this socket alone, as long as the machine runs."""
    inode: int
    """0: no process has it any more."""
    sent: int
    received: int
    rtt_us: int
    """Smoothed round trip time."""
    retransmits: int
    """Segments."""


@dataclass(frozen=True, slots=True)
class DatagramSocket:
    """A connected UDP socket."""

    ends: Ends
    device: int
    """As TcpSocket's."""
    cookie: int
    cgroup: int
    """The id of the cgroup whose process made it; 0: this kernel does not tell (before 5.7)."""


class DiagSocket(NetlinkSocket):
    """A NETLINK_SOCK_DIAG socket of the namespace that the opening thread is in. Not for use by several threads at
    once. Errors come as NetnsError."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_SOCK_DIAG, "socket that tells of sockets")

    def connections(self, states: Collection[TcpState] = CONNECTED) -> list[TcpSocket]:
        """TCP sockets of both families in these states. Those that come and go meanwhile may be missing."""
        found: list[TcpSocket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _mask(states)) + bytes(48)
            bodies = self.dump(_BY_FAMILY, request, "connections", consistent=False)
            found += map(_read, bodies)
        return found

    def datagram_sockets(self) -> list[DatagramSocket]:
        """Connected UDP sockets of both families. Those that come and go meanwhile may be missing."""
        found: list[DatagramSocket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, _mask({TcpState.ESTABLISHED})) + bytes(48)
            bodies = self.dump(_BY_FAMILY, request, "UDP sockets", consistent=False)
            found += map(_read_datagram_socket, bodies)
        return found

    def destroy(self, connection: TcpSocket | DatagramSocket) -> bool:
        """Reset a connection that connections() has told of: the other end gets an RST, the application here
        ECONNABORTED; or disconnect a socket of datagram_sockets(): recv() tells ECONNABORTED, send() EDESTADDRREQ.
        False if it is gone already.

        CapabilityError if this kernel cannot do so.
        """
        code = self.request(_DESTROY, 0, _question(connection))
        if code in (0, errno.ENOENT, errno.ESTALE):
            return code == 0
        if code == errno.EOPNOTSUPP:
            raise CapabilityError(
                "the kernel cannot end connections by force; it needs CONFIG_INET_DIAG_DESTROY"
            )
        raise NetnsError(f"cannot end a connection: {os.strerror(code)}")


def probe_destroy(namespace: NetworkNamespace) -> None:
    """Whether connections can be ended here, tried on one of its own in `namespace`. CapabilityError if not; NetnsError
    if that cannot be found out. Blocks for some milliseconds."""
    namespace.run(_try_to_destroy)


def _try_to_destroy() -> None:
    """A socket that listens will do: it needs no device that is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, DiagSocket() as diag:
        listener.bind(("", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        for each in diag.connections({TcpState.LISTEN}):
            if each.ends.source_port == port and diag.destroy(each):
                return
    raise NetnsError("a connection that was to be ended is not there")


def _mask(states: Collection[TcpState]) -> int:
    return sum(1 << state for state in states)


def _question(connection: TcpSocket | DatagramSocket) -> bytes:
    # Ends that are v4-mapped are looked for among IPv4's (inet_diag_find_one_icsk, __udp_diag_destroy).
    ends = connection.ends
    protocol = socket.IPPROTO_TCP if isinstance(connection, TcpSocket) else socket.IPPROTO_UDP
    return (
        _REQUEST.pack(socket.AF_INET6, protocol, 0, 0)
        + _ENDS.pack(ends.source_port, ends.destination_port, ends.source, ends.destination)
        + _DEVICE_AND_COOKIE.pack(connection.device, connection.cookie)
    )


def _read(body: bytes) -> TcpSocket:
    _, state = _MESSAGE.unpack_from(body)
    device, cookie = _DEVICE_AND_COOKIE.unpack_from(body, _DEVICE_AT)
    inode: int = struct.unpack_from("=I", body, _INODE_AT)[0]
    counts = _counts(_attribute(body, _INFO), state)
    return TcpSocket(_read_ends(body), TcpState(state), device, cookie, inode, *counts)


def _read_datagram_socket(body: bytes) -> DatagramSocket:
    device, cookie = _DEVICE_AND_COOKIE.unpack_from(body, _DEVICE_AT)
    cgroup = _attribute(body, _CGROUP_ID)
    return DatagramSocket(_read_ends(body), device, cookie, _ID.unpack_from(cgroup)[0] if cgroup else 0)


def _read_ends(body: bytes) -> Ends:
    family, _ = _MESSAGE.unpack_from(body)
    source_port, destination_port, source, destination = _ENDS.unpack_from(body, _ENDS_AT)
    if family == socket.AF_INET:
        source, destination = widen_address(source[:4]), widen_address(destination[:4])
    return Ends(source, source_port, destination, destination_port)


def _attribute(body: bytes, wanted: int) -> bytes:
    at = _ATTRIBUTES_AT
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if kind == wanted or length < _ATTRIBUTE.size:
            return body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return b""


def _counts(info: bytes, state: int) -> tuple[int, int, int, int]:
    """The last fields of a TcpSocket."""
    if len(info) < _COUNTS.size:
        return 0, 0, 0, 0
    rtt, retransmits, received, sent, sent_again = _COUNTS.unpack_from(info)
    # A FIN counts as a byte received. Not among the bytes sent: those acknowledged hold SYN and FIN, too.
    return sent - sent_again, received - (state in _FIN_RECEIVED), rtt, retransmits
