"""Whose datagrams are kept out where they arrive, as a table by BPF_PROG_TEST_RUN (test_lookup_tables.py says more)."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from socket import IPPROTO_TCP, IPPROTO_UDP

import pytest
from harness import require
from harness.bpf_attempts import APPLICATION, REFUSED, Arrival, Counters, ask, clear

from nodeagent.dataplane import bypass_layout as layout
from nodeagent.dataplane.bpf import BpfMap, BpfObject
from nodeagent.dataplane.datagram_layout import COUNTERS, OUTSIDER_SIZE, pack_outsider
from nodeagent.snapshot.address import parse_address

CLASS, LOCAL = 5, 9
V4 = Arrival(protocol=IPPROTO_UDP)
V6 = Arrival("fd00::1", "fd00::2", protocol=IPPROTO_UDP)
ALLOW, DENY, ENGINE = layout.Access.ALLOW, layout.Access.DENY, layout.Access.ENGINE
MINUTE = 60 * 10**9


@dataclass(frozen=True)
class Case:
    """`access`: verdicts on the workload by source (0: outsiders) and port (0: all others; not of outsiders, who are
    kept out only at ports of services)."""

    name: str
    expected: str
    arrival: Arrival = V4
    judged: bool = True
    access: tuple[tuple[int, int, layout.Access], ...] = ((0, 8080, DENY),)
    ranges: tuple[tuple[str, int, layout.Access], ...] = ()
    """Verdicts on outsiders by where they come from, where it depends on that: a network, and its bits of 128."""
    member: bool = False
    local: int = 0
    """Which workload of this node sends."""
    asked_ago: int = -1
    """Nanoseconds since the workload has sent something there."""
    counted: str = ""


def _kept_out(name: str, **others: object) -> Case:
    return Case(name, REFUSED, **{"counted": "outsider", **others})  # type: ignore[arg-type]


CASES = [
    _kept_out("an outsider"),
    _kept_out("an outsider over IPv6", arrival=V6),
    Case("without policy", APPLICATION, judged=False),
    Case("an outsider without a verdict", APPLICATION, access=()),
    Case("an outsider that is let in", APPLICATION, access=((0, 8080, ALLOW),)),
    _kept_out("an outsider of whom it cannot be said", access=((0, 8080, ENGINE),)),
    Case(
        "one from a range that is let in",
        APPLICATION,
        access=((0, 8080, ENGINE),),
        ranges=(("0.0.0.0", 96, DENY), ("10.0.0.0", 120, ALLOW)),
    ),
    _kept_out(
        "one from a range that is not",
        access=((0, 8080, ENGINE),),
        ranges=(("0.0.0.0", 96, ALLOW), ("10.0.0.1", 128, DENY)),
    ),
    _kept_out("one from elsewhere", access=((0, 8080, ENGINE),), ranges=(("10.9.0.0", 112, ALLOW),)),
    _kept_out("where ranges are not asked", ranges=(("0.0.0.0", 96, ALLOW),)),
    Case("an outsider, at a port of no service", APPLICATION, access=((0, 8081, DENY), (0, 0, DENY))),
    Case("a member of the mesh, whose node has judged", APPLICATION, member=True),
    Case("a workload of this node", APPLICATION, local=LOCAL, access=((0, 8080, DENY), (LOCAL, 0, ALLOW))),
    Case("one that may not", REFUSED, local=LOCAL, access=((LOCAL, 0, DENY),), counted="past"),
    Case("one of whom nothing is known", REFUSED, local=LOCAL, access=(), counted="past"),
    Case("one that may not, but a member", REFUSED, local=LOCAL, access=(), member=True, counted="past"),
    Case("an answer", APPLICATION, asked_ago=0),
    Case("an answer after two minutes", APPLICATION, asked_ago=2 * MINUTE),
    _kept_out("no answer after four", asked_ago=4 * MINUTE),
    Case("to itself", APPLICATION, replace(V4, remote=V4.local)),
    Case("from loopback", APPLICATION, replace(V4, remote="127.0.0.1")),
    Case("a connection", APPLICATION, replace(V4, protocol=IPPROTO_TCP)),
]


class Datagrams:
    """The program of a namespace."""

    def __init__(self, programs: BpfObject) -> None:
        self.programs = programs
        self.counters = Counters(programs, "udp_counters", COUNTERS)
        self._access = programs.map("udp_access", layout.ACCESS_KEY_SIZE, layout.ACCESS_SIZE)
        self._outsiders = programs.map("udp_outsiders", OUTSIDER_SIZE, layout.ACCESS_SIZE)
        self._sizes = {"udp_classes": 8, "udp_members": 1, "udp_locals": 8}
        self._by_address = {name: programs.map(name, 16, size) for name, size in self._sizes.items()}
        self.awaited, self.owed = (
            programs.map(f"udp_{name}", layout.ENDS_SIZE, 8) for name in ("awaited", "owed")
        )

    def fill(self, case: Case) -> None:
        """With what there is in a case."""
        for table in self._all():
            clear(table)
        local, remote = parse_address(case.arrival.local), parse_address(case.arrival.remote)
        if case.judged:
            self._by_address["udp_classes"][local] = struct.pack("=II", CLASS, 0)
        if case.member:
            self._by_address["udp_members"][remote] = b"\1"
        if case.local:
            self._by_address["udp_locals"][remote] = struct.pack("=II", case.local, 0)
        for source, port, access in case.access:
            key = layout.AccessKey(source, CLASS, port, IPPROTO_UDP)
            self._access[key.pack()] = layout.AccessEntry(access).pack()
        for network, bits, access in case.ranges:
            of_range = pack_outsider(CLASS, 8080, parse_address(network), bits)
            self._outsiders[of_range] = layout.AccessEntry(access).pack()
        if case.asked_ago >= 0:
            self.awaited[_ends(case.arrival)] = struct.pack("=Q", time.monotonic_ns() - case.asked_ago)

    def _all(self) -> tuple[BpfMap, ...]:
        return (self._access, self._outsiders, *self._by_address.values(), self.awaited, self.owed)

    def close(self) -> None:
        for each in (*self._all(), self.counters):
            each.close()


def _ends(arrival: Arrival) -> bytes:
    """As the workload sees it."""
    local, remote = parse_address(arrival.local), parse_address(arrival.remote)
    return layout.Ends(local, remote, arrival.local_port, arrival.remote_port).pack()


@pytest.fixture(scope="module")
def datagrams() -> Iterator[Datagrams]:
    require("root", "engine")
    with BpfObject("datagram") as programs, contextlib.closing(Datagrams(programs)) as datagrams:
        yield datagrams


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_arrives_at_a_workload(datagrams: Datagrams, case: Case) -> None:
    datagrams.fill(case)
    datagrams.counters.since()
    assert ask(datagrams.programs, "datagram_lookup", case.arrival) == case.expected
    assert datagrams.counters.since() == ({case.counted: 1} if case.counted else {})
    judged = case.judged and case.asked_ago < 0 and case.arrival in (V4, V6)
    let_in = case.expected == APPLICATION and judged
    assert (datagrams.owed.get(_ends(case.arrival)) is not None) == let_in, "so that it may be answered"
