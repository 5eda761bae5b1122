"""The lab's DNS server: UDP and TCP, IPv4 and IPv6, answering from the present zone.

Names outside the cluster's domain do not exist: a lab has no way to the world outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Iterable
from typing import Any, Final, cast

from dnslib import (
    AAAA,
    CNAME,
    EDNS0,
    NS,
    PTR,
    QTYPE,
    RCODE,
    RR,
    SOA,
    SRV,
    TXT,
    A,
    DNSError,
    DNSHeader,
    DNSRecord,
)

from nodeagent.lab.dns_zone import TTL_SECONDS, Answer, Record, Zone
from nodeagent.lab.services import Address

_PORT: Final = 53
_UDP_PLAIN: Final = 512  # RFC 1035 section 4.2.1
_UDP_MAXIMUM: Final = 1232  # what DNS flag day 2020 settled on: fits any path unfragmented
_TCP_IDLE_SECONDS: Final = 10.0
_TCP_CONNECTIONS: Final = 256


class DnsServer:
    """Serves `zone`; replace the attribute to change what it answers."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.queries = 0
        self.malformed = 0
        self._transports: list[asyncio.DatagramTransport] = []
        self._servers: list[asyncio.Server] = []
        self._tcp = 0

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        """Serve on bound datagram and listening stream sockets; takes them over."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            if sock.type == socket.SOCK_DGRAM:
                transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=sock)
                self._transports.append(transport)
            else:
                self._servers.append(await asyncio.start_server(self._stream, sock=sock))

    def close(self) -> None:
        """Stop serving."""
        for transport in self._transports:
            transport.close()
        for server in self._servers:
            server.close()

    def answer(self, packet: bytes, *, udp: bool) -> bytes | None:
        """Return the reply to a query, or None for what deserves none."""
        self.queries += 1
        try:
            query = DNSRecord.parse(packet)
        except (DNSError, ValueError, IndexError, struct.error):
            self.malformed += 1
            return _format_error(packet)
        if query.header.qr:
            return None
        reply = self._reply(query)
        packed: bytes = reply.pack()
        if udp and len(packed) > _udp_limit(query):
            packed = reply.truncate().pack()
        return packed

    def _reply(self, query: Any) -> Any:
        if query.header.opcode != 0:
            return _refusal(query, RCODE.NOTIMP)
        if len(query.questions) != 1:
            return _refusal(query, RCODE.FORMERR)
        question = query.q
        answer = self.zone.resolve(str(question.qname), QTYPE.get(question.qtype, "TYPE0"))
        reply = query.reply(ra=1, aa=int(answer.authoritative))
        if not answer.exists:
            reply.header.rcode = RCODE.NXDOMAIN
        for record in _shuffled(answer):
            reply.add_answer(_resource_record(record, question.qname))
        if not answer.records and answer.authoritative:
            reply.add_auth(_soa(self.zone.domain))
        if _has_edns(query):
            reply.add_ar(EDNS0(udp_len=_UDP_MAXIMUM))
        return reply

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tcp >= _TCP_CONNECTIONS:
            writer.close()
            return
        self._tcp += 1
        try:
            while True:
                length = await asyncio.wait_for(reader.readexactly(2), _TCP_IDLE_SECONDS)
                packet = await asyncio.wait_for(
                    reader.readexactly(int.from_bytes(length, "big")), _TCP_IDLE_SECONDS
                )
                reply = self.answer(packet, udp=False)
                if reply is None:
                    return
                writer.write(len(reply).to_bytes(2, "big") + reply)
                await asyncio.wait_for(writer.drain(), _TCP_IDLE_SECONDS)
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            return
        finally:
            self._tcp -= 1
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        reply = self._server.answer(data, udp=True)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


def open_sockets(addresses: Iterable[Address]) -> list[socket.socket]:
    """Bind UDP and TCP port 53 of each address, in the calling thread's network namespace."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((str(address), _PORT))
                if kind == socket.SOCK_STREAM:
                    sock.listen(128)
    except OSError:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.close()
        raise
    return sockets


def _has_edns(query: Any) -> bool:
    return any(extra.rtype == QTYPE.OPT for extra in query.ar)


def _udp_limit(query: Any) -> int:
    for extra in query.ar:
        if extra.rtype == QTYPE.OPT:
            return max(_UDP_PLAIN, min(int(extra.rclass), _UDP_MAXIMUM))
    return _UDP_PLAIN


def _shuffled(answer: Answer) -> list[Record]:
    """Return the records with addresses in random order, so that clients of headless services spread."""
    fixed = [record for record in answer.records if record.type == "CNAME"]
    others = [record for record in answer.records if record.type != "CNAME"]
    random.shuffle(others)
    return fixed + others


def _resource_record(record: Record, asked: Any) -> Any:
    # The question's own spelling is echoed: resolvers that randomise case check it.
    name = asked if str(asked).lower().rstrip(".") == record.name else record.name
    return RR(name, getattr(QTYPE, record.type), rdata=_rdata(record), ttl=TTL_SECONDS)


def _rdata(record: Record) -> Any:
    match record.type:
        case "A":
            return A(record.data)
        case "AAAA":
            return AAAA(record.data)
        case "CNAME":
            return CNAME(record.data)
        case "PTR":
            return PTR(record.data)
        case "NS":
            return NS(record.data)
        case "SRV":
            port, target = record.data.split(" ")
            return SRV(priority=0, weight=100, port=int(port), target=target)
        case "TXT":
            return TXT(record.data)
        case "SOA":
            return _soa_data(record.name)


def _soa_data(domain: str) -> Any:
    return SOA(f"ns.dns.{domain}", f"hostmaster.{domain}", (1, 7200, 1800, 86400, TTL_SECONDS))


def _soa(domain: str) -> Any:
    return RR(domain, QTYPE.SOA, rdata=_soa_data(domain), ttl=TTL_SECONDS)


def _refusal(query: Any, code: int) -> Any:
    asked = query.header
    return DNSRecord(
        DNSHeader(id=asked.id, qr=1, opcode=asked.opcode, rd=asked.rd, rcode=code), questions=query.questions
    )


def _format_error(packet: bytes) -> bytes | None:
    """Return FORMERR for a broken query; a packet without a whole header, or a reply, gets nothing."""
    if len(packet) < 12 or packet[2] & 0x80:
        return None
    reply: bytes = DNSRecord(
        DNSHeader(id=int.from_bytes(packet[:2], "big"), qr=1, opcode=packet[2] >> 3, rcode=RCODE.FORMERR)
    ).pack()
    return reply
