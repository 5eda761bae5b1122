"""Which packets of unknown sockets begin a connection, as a table by BPF_PROG_TEST_RUN (bpf/raw.bpf.c refuses those).

A test run has the packet leave by the loopback device, which the program leaves alone: here it is told another number
for that device. There is no socket: with sockets the program runs in netns/test_capture_escape.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import require
from harness.bpf_attempts import Counters
from harness.bpf_source import compile_bpf

from nodeagent.dataplane.bpf import BpfObject
from nodeagent.dataplane.ebpf_node import COUNTERS
from nodeagent.errors import BpfError

SOURCE = Path(__file__).parents[2] / "bpf" / "raw.bpf.c"
DROP, ACCEPT = 0, 1
IPV4, IPV6 = 2, 10  # NFPROTO_*
LOCAL_OUT = 3
FIN, SYN, RST, ACK, ECE, CWR = 1, 2, 4, 16, 64, 128
TCP, UDP, ICMP6 = 6, 17, 58
HOPOPTS, ROUTING, FRAGMENT, AH, DSTOPTS = 0, 43, 44, 51, 60


def tcp(flags: int) -> bytes:
    return struct.pack("=HHIIBBHHH", 1, 2, 3, 4, 0x50, flags, 5, 6, 7)


def ip4(payload: bytes, protocol: int = TCP, *, fragment: int = 0, options: int = 0) -> bytes:
    """`fragment`: offset in units of 8 bytes; `options`: words."""
    first = bytes([0x45 + options, 0]) + struct.pack(">HHHBBH", 0, 0, fragment, 64, protocol, 0)
    return first + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + bytes(4 * options) + payload


def ip6(payload: bytes, following: int = TCP) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(payload), following, 64) + bytes(32) + payload


def extended(following: int, payload: bytes, words: int = 0) -> bytes:
    """A header of options, or of routing."""
    return bytes([following, words]) + bytes(6 + 8 * words) + payload


def fragment(following: int, payload: bytes, offset: int = 0, more: int = 0) -> bytes:
    return bytes([following, 0]) + struct.pack(">HI", offset << 3 | more, 9) + payload


def authenticated(following: int, payload: bytes) -> bytes:
    return bytes([following, 4]) + bytes(22) + payload


def many(count: int) -> bytes:
    packet = tcp(ACK)
    for number in range(count):
        packet = extended(DSTOPTS if number else TCP, packet)
    return ip6(packet, DSTOPTS if count else TCP)


CASES = [
    pytest.param(ip4(tcp(SYN)), DROP, id="v4, a beginning"),
    pytest.param(ip4(tcp(SYN | ECE | CWR)), DROP, id="v4, one with ECN"),
    pytest.param(ip4(tcp(SYN | ACK)), ACCEPT, id="v4, an answer"),
    pytest.param(ip4(tcp(ACK)), ACCEPT, id="v4, data"),
    pytest.param(ip4(tcp(RST)), ACCEPT, id="v4, a reset"),
    pytest.param(ip4(tcp(SYN | RST)), ACCEPT, id="v4, which nobody takes for a beginning"),
    pytest.param(ip4(tcp(SYN | FIN)), ACCEPT, id="v4, nor this"),
    pytest.param(ip4(tcp(SYN), options=2), DROP, id="v4, options of IP, a beginning"),
    pytest.param(ip4(tcp(ACK), options=2), ACCEPT, id="v4, options of IP, data"),
    pytest.param(ip4(tcp(ACK), options=10), ACCEPT, id="v4, as many options as can be"),
    pytest.param(ip4(tcp(SYN), UDP), ACCEPT, id="v4, UDP"),
    pytest.param(ip4(tcp(SYN), fragment=1), DROP, id="v4, a later fragment"),
    pytest.param(ip4(tcp(ACK), fragment=1), DROP, id="v4, a later fragment, whatever is in it"),
    pytest.param(ip4(tcp(SYN), UDP, fragment=1), ACCEPT, id="v4, a later fragment of UDP"),
    pytest.param(ip4(tcp(SYN), fragment=0x2000), DROP, id="v4, a first fragment"),
    pytest.param(ip4(tcp(ACK), fragment=0x2000), ACCEPT, id="v4, a first fragment, data"),
    pytest.param(ip4(tcp(ACK)[:13]), DROP, id="v4, cut off before the flags"),
    pytest.param(ip4(tcp(ACK)[:14]), ACCEPT, id="v4, cut off after the flags"),
    pytest.param(ip6(tcp(SYN)), DROP, id="v6, a beginning"),
    pytest.param(ip6(tcp(SYN | ACK)), ACCEPT, id="v6, an answer"),
    pytest.param(ip6(tcp(SYN), UDP), ACCEPT, id="v6, UDP"),
    pytest.param(ip6(tcp(SYN), ICMP6), ACCEPT, id="v6, ICMP"),
    pytest.param(ip6(extended(TCP, tcp(SYN)), HOPOPTS), DROP, id="v6, options for hops"),
    pytest.param(ip6(extended(TCP, tcp(SYN), 3), DSTOPTS), DROP, id="v6, long options"),
    pytest.param(ip6(extended(TCP, tcp(ACK), 3), DSTOPTS), ACCEPT, id="v6, long options, data"),
    pytest.param(ip6(extended(TCP, tcp(SYN), 2), ROUTING), DROP, id="v6, routing"),
    pytest.param(ip6(extended(UDP, tcp(SYN), 2), ROUTING), ACCEPT, id="v6, routing of UDP"),
    pytest.param(ip6(authenticated(TCP, tcp(SYN)), AH), DROP, id="v6, authenticated"),
    pytest.param(ip6(authenticated(TCP, tcp(ACK)), AH), ACCEPT, id="v6, authenticated data"),
    pytest.param(ip6(fragment(TCP, tcp(SYN), more=1), FRAGMENT), DROP, id="v6, a first fragment"),
    pytest.param(ip6(fragment(TCP, tcp(ACK), more=1), FRAGMENT), ACCEPT, id="v6, a first fragment, data"),
    pytest.param(ip6(fragment(TCP, tcp(ACK), offset=1), FRAGMENT), DROP, id="v6, a later fragment"),
    pytest.param(ip6(fragment(UDP, tcp(ACK), offset=1), FRAGMENT), ACCEPT, id="v6, a later fragment of UDP"),
    pytest.param(ip6(extended(TCP, b""), HOPOPTS)[:42], DROP, id="v6, cut off in the options"),
    pytest.param(ip6(b""), DROP, id="v6, cut off before TCP"),
    pytest.param(many(7), ACCEPT, id="v6, as many headers as are looked at"),
    pytest.param(many(8), DROP, id="v6, one more"),
]


class Guard:
    def __init__(self, programs: BpfObject) -> None:
        self.programs = programs
        self.counters = Counters(programs, "counters", COUNTERS)

    def verdict(self, packet: bytes) -> int:
        v4 = packet[0] >> 4 == 4
        state = struct.pack("=BB46x", LOCAL_OUT, IPV4 if v4 else IPV6)  # struct nf_hook_state
        return self.programs.attempt("refuse_past", state, packet)[0]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    require("root", "engine", "clang")
    folder = tmp_path_factory.mktemp("guard")
    text = SOURCE.read_text()
    number = "#define LOOPBACK_IFINDEX 1\n"
    assert text.count(number) == 1
    compile_bpf(folder, "raw", text.replace(number, "#define LOOPBACK_IFINDEX 99\n"))
    with BpfObject("raw", folder=folder) as programs:
        try:
            found = Guard(programs)
            found.verdict(ip4(tcp(ACK)))
        except BpfError as error:
            pytest.skip(f"Linux 6.4 is needed, with netfilter programs: {error}")
        yield found
        found.counters.close()


@pytest.mark.parametrize(("packet", "expected"), CASES)
def test_what_may_leave_without_a_known_socket(guard: Guard, packet: bytes, expected: int) -> None:
    guard.counters.since()
    assert guard.verdict(packet) == expected
    assert guard.counters.since() == ({"raw": 1} if expected == DROP else {})


def test_what_leaves_by_loopback_is_left_alone() -> None:
    require("root", "engine")
    with BpfObject("raw") as programs:
        assert Guard(programs).verdict(ip4(tcp(SYN))) == ACCEPT
