"""DNS of the lab: the zone's names, and the server's packets."""

from ipaddress import ip_address

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSHeader, DNSQuestion, DNSRecord

from nodeagent.lab.dns_server import DnsServer
from nodeagent.lab.dns_zone import Zone, build_zone
from nodeagent.lab.services import Backend, PortEndpoints, Service, ServicePort, ServiceSpec

PORT = ServicePort("http", 80, "TCP", 8080)


def member(number: int, name: str = "") -> Backend:
    addresses = (ip_address(f"10.244.1.{number}"), ip_address(f"fd00:10:244:1::{number:x}"))
    return Backend(name or f"pod-{number}", "default", {}, addresses, True)


def services(*, members: int = 2) -> list[Service]:
    pods = tuple(member(n) for n in range(2, 2 + members))
    virtual = (ip_address("10.96.1.1"), ip_address("fd00:10:96::101"))
    web = ServiceSpec("default", "web", {"app": "web"}, (PORT,))
    db = ServiceSpec("default", "db", {"app": "db"}, (PORT,), headless=True)
    away = ServiceSpec("default", "away", {}, (), external_name="web.default.svc.cluster.local")
    return [
        Service(web, virtual, (PortEndpoints(PORT, ()),), pods),
        Service(db, (), (PortEndpoints(PORT, ()),), pods),
        Service(away, (), (), ()),
    ]


@pytest.fixture
def zone() -> Zone:
    return build_zone("cluster.local", services(), [member(2)], ["default", "empty"])


def data(zone: Zone, name: str, type_: str) -> list[str]:
    return [record.data for record in zone.resolve(name, type_).records]


@pytest.mark.parametrize(
    ("name", "type_", "expected"),
    [
        ("web.default.svc.cluster.local", "A", ["10.96.1.1"]),
        ("WEB.Default.svc.cluster.local.", "AAAA", ["fd00:10:96::101"]),
        ("db.default.svc.cluster.local", "A", ["10.244.1.2", "10.244.1.3"]),
        ("pod-2.db.default.svc.cluster.local", "AAAA", ["fd00:10:244:1::2"]),
        ("_http._tcp.web.default.svc.cluster.local", "SRV", ["80 web.default.svc.cluster.local"]),
        (
            "_http._tcp.db.default.svc.cluster.local",
            "SRV",
            ["80 pod-2.db.default.svc.cluster.local", "80 pod-3.db.default.svc.cluster.local"],
        ),
        ("10-244-1-2.default.pod.cluster.local", "A", ["10.244.1.2"]),
        ("1.1.96.10.in-addr.arpa", "PTR", ["web.default.svc.cluster.local"]),
        ("2.1.244.10.in-addr.arpa", "PTR", ["pod-2.db.default.svc.cluster.local"]),
        ("away.default.svc.cluster.local", "A", ["web.default.svc.cluster.local", "10.96.1.1"]),
        ("dns-version.cluster.local", "TXT", ["1.1.0"]),
    ],
)
def test_names(zone: Zone, name: str, type_: str, expected: list[str]) -> None:
    answer = zone.resolve(name, type_)
    assert [record.data for record in answer.records] == expected
    assert answer.exists
    assert answer.authoritative


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("web.default.svc.cluster.local", True),
        ("_tcp.web.default.svc.cluster.local", True),  # an empty non-terminal, RFC 8020
        ("default.svc.cluster.local", True),
        ("empty.svc.cluster.local", True),
        ("svc.cluster.local", True),
        ("nosuch.default.svc.cluster.local", False),
        ("web.nosuch.svc.cluster.local", False),
        ("example.com", False),
        ("9.9.96.10.in-addr.arpa", False),
    ],
)
def test_no_data_is_told_apart_from_no_name(zone: Zone, name: str, exists: bool) -> None:
    answer = zone.resolve(name, "MX")
    assert not answer.records
    assert answer.exists is exists


# -- packets --


def ask(zone: Zone, name: str, type_: str = "A", *, udp: bool = True, edns: int = 0) -> DNSRecord:
    query = DNSRecord.question(name, type_)
    if edns:
        query.add_ar(EDNS0(udp_len=edns))
    reply = DnsServer(zone).answer(query.pack(), udp=udp)
    assert reply is not None
    return DNSRecord.parse(reply)


def test_an_answer(zone: Zone) -> None:
    reply = ask(zone, "wEb.default.svc.cluster.local")
    assert (reply.header.qr, reply.header.aa, reply.header.rcode) == (1, 1, RCODE.NOERROR)
    assert str(reply.q.qname) == "wEb.default.svc.cluster.local.", "the question's spelling is echoed"
    assert [(str(rr.rname), str(rr.rdata), rr.ttl) for rr in reply.rr] == [
        ("wEb.default.svc.cluster.local.", "10.96.1.1", 5)
    ]


def test_negative_answers_carry_the_zones_soa(zone: Zone) -> None:
    missing = ask(zone, "nosuch.default.svc.cluster.local")
    assert missing.header.rcode == RCODE.NXDOMAIN
    assert missing.auth[0].rtype == QTYPE.SOA
    no_data = ask(zone, "web.default.svc.cluster.local", "MX")
    assert (no_data.header.rcode, no_data.rr) == (RCODE.NOERROR, [])
    outside = ask(zone, "example.com")
    assert (outside.header.rcode, outside.header.aa) == (RCODE.NXDOMAIN, 0)


def test_large_answers_are_truncated_on_udp_alone() -> None:
    zone = build_zone("cluster.local", services(members=100), [], [])
    name = "db.default.svc.cluster.local"
    assert ask(zone, name).header.tc == 1
    assert ask(zone, name, edns=4096).header.tc == 1
    assert len(ask(zone, name, udp=False).rr) == 100
    small = build_zone("cluster.local", services(members=40), [], [])
    assert ask(small, name).header.tc == 1
    assert len(ask(small, name, edns=1232).rr) == 40


def test_edns_is_answered_with_edns(zone: Zone) -> None:
    assert any(extra.rtype == QTYPE.OPT for extra in ask(zone, "web.default.svc.cluster.local", edns=1232).ar)


@pytest.mark.parametrize(
    ("packet", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0", RCODE.FORMERR),
        (b"\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0", None),  # a reply is not replied to
        (DNSRecord(DNSHeader(id=7, opcode=4), q=DNSQuestion("x.")).pack(), RCODE.NOTIMP),
        (DNSRecord(DNSHeader(id=7)).pack(), RCODE.FORMERR),
        (b"\x12\x34\x20\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0", RCODE.FORMERR),
    ],
)
def test_odd_packets(zone: Zone, packet: bytes, rcode: int | None) -> None:
    reply = DnsServer(zone).answer(packet, udp=True)
    assert (reply is None) == (rcode is None)
    if reply is not None:
        parsed = DNSRecord.parse(reply)
        assert (parsed.header.rcode, parsed.header.id) == (rcode, int.from_bytes(packet[:2], "big"))
        assert parsed.header.opcode == packet[2] >> 3, "else resolvers take it for no answer to them"
