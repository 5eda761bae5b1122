"""What listener lookup decides, as tables, by BPF_PROG_TEST_RUN: no packet, no namespace, each case some microseconds.

The kernel has that for sk_lookup and netfilter (test_packet_tables.py). It has it neither for the programs of cgroups
(connect, sendmsg, sockops, getsockopt) nor for sk_msg, which the last test here finds out; those run on real sockets in
namespaces (tests/netns). A test run cannot name a device either: what depends on it is in netns/test_capture_traffic.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from socket import IPPROTO_UDP
from typing import Any

import pytest
from harness import require
from harness.bpf_attempts import AGENT, APPLICATION, REFUSED, Arrival, Counters, ask, clear

from nodeagent.dataplane import bypass_layout as layout
from nodeagent.dataplane.bpf import BpfObject
from nodeagent.dataplane.ebpf_node import COUNTERS
from nodeagent.dataplane.liveness import Liveness
from nodeagent.errors import BpfError
from nodeagent.snapshot.address import parse_address

CLIENT, SERVER, OTHER = 1, 2, 3
LIFE, COOKIE = 0xA11CE, 77
HERE = layout.Here(LIFE, SERVER)
V4, V6 = Arrival(), Arrival("fd00::1", "fd00::2")
OPEN = "inbound_lookup_open"
ALLOW, DENY, ENGINE = layout.Access.ALLOW, layout.Access.DENY, layout.Access.ENGINE
HBONE, DNS = 1, 2
_KEYS = (0, 0x80000000, 0x80000001, 0x80000002)
"""Of listeners: of no device, of tunnels, of DNS."""
_NO_KEY = bytes(4)  # also of what comes by no device


@dataclass(frozen=True)
class Case:
    """What there is besides what arrives, and what is to come of it. `listener`: the agent's, "dual", "v4" or none."""

    name: str
    expected: str
    arrival: Arrival = V4
    program: str = "inbound_lookup"
    listener: str = "dual"
    alive: bool = True
    flow: layout.Flow | None = None
    flow_of: Arrival | None = None
    """Whose entry it is, if not the arrival's."""
    life: int = LIFE
    here: layout.Here = HERE
    source: int = CLIENT
    """Whose the client's namespace is; 0: nobody's."""
    access: dict[int, layout.Access] = field(default_factory=lambda: {CLIENT: ALLOW})
    """By source."""
    access_port: int = 8080
    guards: int = 0
    """Which further ports are the agent's."""
    called: bool = False
    """The agent connects in a client's name."""
    counted: str = ""


FLOW = layout.Flow(parse_address("10.96.0.10"), 80, COOKIE, 5, 6, LIFE, CLIENT, SERVER, 9)


def _past(name: str, expected: str, **others: Any) -> Case:
    """Of a connection that connect() has let past the engine."""
    counted = "withdrawn" if expected == REFUSED else ""
    return Case(name, expected, **{"flow": FLOW, "counted": counted, **others})


def _at(port: int, arrival: Arrival = V4) -> Arrival:
    return replace(arrival, local_port=port)


CASES = [
    Case("a connection", AGENT, counted="steered"),
    Case("over IPv6", AGENT, V6, counted="steered"),
    Case("a datagram", APPLICATION, replace(V4, protocol=IPPROTO_UDP)),
    Case("without a listener", REFUSED, listener="", counted="no_listener"),
    Case("without one for IPv6", REFUSED, V6, listener="v4", counted="no_listener"),
    Case("without an agent", REFUSED, listener="", alive=False, counted="no_listener"),
    Case("open, without a listener", APPLICATION, program=OPEN, listener=""),
    Case("open, with a listener", AGENT, program=OPEN, counted="steered"),
    Case("open, without one for IPv6", REFUSED, V6, program=OPEN, listener="v4", counted="no_listener"),
    Case("the outbound port", AGENT, _at(15001)),
    Case("the outbound port of nobody", REFUSED, _at(15001), listener="", counted="no_listener"),
    Case("the outbound port, open", REFUSED, _at(15001), OPEN, listener="", counted="no_listener"),
    Case("the inbound port", AGENT, _at(15006)),
    Case("the inbound port of nobody", REFUSED, _at(15006), listener="", counted="no_listener"),
    Case("the inbound port, open", REFUSED, _at(15006), OPEN, listener="", counted="no_listener"),
    Case("the tunnels' port", APPLICATION, _at(15008)),
    Case("the tunnels' port, the agent's", AGENT, _at(15008), guards=HBONE | DNS),
    Case(
        "the agent's tunnels' port of nobody",
        REFUSED,
        _at(15008),
        OPEN,
        "",
        guards=HBONE,
        counted="no_listener",
    ),
    Case("the port for DNS, an application's", AGENT, _at(15053), counted="steered"),
    Case("the port for DNS", REFUSED, _at(15053), guards=DNS, counted="no_listener"),
    Case("the port for DNS, from within", AGENT, _at(15053, replace(V4, remote=V4.local)), guards=DNS),
    Case("the port for DNS over IPv6", AGENT, _at(15053, replace(V6, remote=V6.local)), guards=DNS),
    Case("a client's stand-in", APPLICATION, replace(V4, remote="127.6.0.9"), called=True),
    Case(
        "a client's stand-in over IPv6", APPLICATION, replace(V6, remote="fd16:9254:7127:6::9"), called=True
    ),
    Case("somebody else's stand-in", REFUSED, replace(V4, remote="127.6.0.9"), counted="no_listener"),
    Case("somebody's over IPv6", REFUSED, replace(V6, remote="fd16:9254:7127:6::9"), counted="no_listener"),
    Case("to itself", APPLICATION, replace(V4, remote=V4.local)),
    Case("to itself over IPv6", APPLICATION, replace(V6, remote=V6.local)),
    Case("from loopback", APPLICATION, replace(V4, remote="127.9.9.9")),
    Case("from loopback over IPv6", APPLICATION, replace(V6, remote="::1")),
    Case("from loopback, mapped", APPLICATION, Arrival("::ffff:127.0.0.1", "::ffff:10.0.0.2")),
    Case("the kubelet", APPLICATION, replace(V4, remote="169.254.7.127")),
    Case("the kubelet over IPv6", APPLICATION, replace(V6, remote="fd16:9254:7127:1337:ffff:ffff:ffff:ffff")),
    Case("next to the kubelet", AGENT, replace(V4, remote="169.254.7.126"), counted="steered"),
    _past("past the engine", APPLICATION),
    _past("past the engine over IPv6", APPLICATION, arrival=V6),
    _past("past the engine without a listener", APPLICATION, listener=""),
    _past("past the engine, denied by now", REFUSED, access={CLIENT: DENY}),
    _past("past the engine, the engine's by now", REFUSED, access={CLIENT: ENGINE}),
    _past("past the engine without a verdict", REFUSED, access={}),
    _past("past the engine, by a verdict on all", APPLICATION, access={0: ALLOW}),
    _past("past the engine, an own verdict wins", REFUSED, access={0: ALLOW, CLIENT: DENY}),
    _past("past the engine, a verdict on others", REFUSED, access={OTHER: ALLOW}),
    _past("past the engine, a verdict on other ports", REFUSED, access_port=8081),
    _past("past the engine under an earlier agent", REFUSED, life=LIFE + 1),
    _past("past the engine, which nothing passes any more", REFUSED, life=0),
    _past("past the engine, of no life", REFUSED, flow=replace(FLOW, life=0), life=0),
    _past("past the engine to a workload before", REFUSED, here=layout.Here(LIFE, OTHER)),
    _past("past the engine to nobody known", REFUSED, here=layout.Here(0, 0)),
    _past("past the engine, named by an earlier agent", REFUSED, here=layout.Here(LIFE - 1, SERVER)),
    _past("past the engine of nobody any more", REFUSED, source=0),
    _past("past the engine of another by now", REFUSED, source=OTHER),
    _past("past the engine without an agent", REFUSED, alive=False),
    _past("past the engine without an agent, open", REFUSED, alive=False, program=OPEN, listener=""),
    _past("from another port", AGENT, flow_of=replace(V4, remote_port=40_001), counted="steered"),
    _past("to another port", AGENT, flow_of=replace(V4, local_port=8081), counted="steered"),
    _past("from another address", AGENT, flow_of=replace(V4, remote="10.0.0.9"), counted="steered"),
    _past("to itself, past the engine", APPLICATION, arrival=replace(V4, remote=V4.local), access={}),
]


def _ends(arrival: Arrival) -> bytes:
    source, destination = parse_address(arrival.remote), parse_address(arrival.local)
    return layout.Ends(source, destination, arrival.remote_port, arrival.local_port).pack()


def _arrived(value: bytes | None) -> bool:
    assert value is not None
    return bool(struct.unpack_from("=I", value, 64)[0])


@pytest.fixture(scope="module")
def listeners() -> Iterator[dict[str, socket.socket]]:
    with socket.socket(socket.AF_INET6) as dual, socket.socket() as v4:
        dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        dual.bind(("::", 0))
        v4.bind(("127.0.0.1", 0))
        dual.listen()
        v4.listen()
        yield {"dual": dual, "v4": v4}


class Inbound:
    """The programs of a namespace."""

    def __init__(self, programs: BpfObject, listeners: dict[str, socket.socket]) -> None:
        self.programs = programs
        self._sockets = listeners
        self.counters = Counters(programs, "counters", COUNTERS)
        self._listeners = programs.map("listeners", 4, 8)
        self._life = programs.map("life", 4, layout.LIFE_SIZE)
        self._here = programs.map("here", 4, layout.HERE_SIZE)
        self._guarded = programs.map("guarded", 4, 4)
        self._calls = programs.map("calls", layout.ENDS_SIZE, 24)
        self._sources = programs.map("sources", 8, layout.SOURCE_SIZE)
        self._access = programs.map("access", layout.ACCESS_KEY_SIZE, layout.ACCESS_SIZE)
        self.flows = programs.map("bypassed", layout.ENDS_SIZE, layout.FLOW_SIZE)

    @contextlib.contextmanager
    def as_in(self, case: Case) -> Iterator[None]:
        """With what there is in a case."""
        for key in _KEYS:
            self._listeners.discard(struct.pack("=I", key))
        for table in (self._sources, self._access, self.flows, self._calls):
            clear(table)
        if case.listener:
            for key in _KEYS:
                number = self._sockets[case.listener].fileno()
                self._listeners[struct.pack("=I", key)] = struct.pack("=Q", number)
        self._guarded[_NO_KEY] = struct.pack("=I", case.guards)
        if case.called:
            self._calls[_ends(case.arrival)] = bytes(24)
        self._life[_NO_KEY] = layout.Life(case.life).pack()
        self._here[_NO_KEY] = case.here.pack()
        if case.source:
            self._sources[struct.pack("=Q", COOKIE)] = layout.Source(case.source, 1).pack()
        for source, access in case.access.items():
            key = layout.AccessKey(source, SERVER, case.access_port, socket.IPPROTO_TCP)
            self._access[key.pack()] = layout.AccessEntry(access).pack()
        if case.flow is not None:
            self.flows[_ends(case.flow_of or case.arrival)] = case.flow.pack()
        with contextlib.ExitStack() as closing:
            if case.alive:
                closing.enter_context(contextlib.closing(Liveness(self.programs)))
            yield

    def close(self) -> None:
        state = (self._life, self._here, self._guarded)
        maps = (self._listeners, *state, self._calls, self._sources, self._access, self.flows)
        for each in (*maps, self.counters):
            each.close()


@pytest.fixture(scope="module")
def inbound(listeners: dict[str, socket.socket]) -> Iterator[Inbound]:
    require("root", "engine")
    with BpfObject("inbound") as programs, contextlib.closing(Inbound(programs, listeners)) as inbound:
        yield inbound


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_arrives_at_a_workload(inbound: Inbound, case: Case) -> None:
    with inbound.as_in(case):
        inbound.counters.since()
        assert ask(inbound.programs, case.program, case.arrival) == case.expected
        assert inbound.counters.since() == ({case.counted: 1} if case.counted else {})
        if case.flow is not None:
            let_in = case.expected == APPLICATION and bool(case.access)
            assert _arrived(inbound.flows.get(_ends(case.flow_of or case.arrival))) == let_in


# -- namespaces that several workloads share ---------------------------------------------------------------------------

_OUTBOUND_KEY, _INBOUND_KEY = 3, 128 + 3
_CLOSED, _OPEN = 1, 16


@pytest.mark.parametrize(
    ("arrival", "port", "flags", "listener", "expected"),
    [
        pytest.param(V4, ("::", 8080), 0, True, AGENT, id="a port of all addresses"),
        pytest.param(V6, ("::", 8080), 0, True, AGENT, id="over IPv6"),
        pytest.param(V4, (V4.local, 8080), 0, True, AGENT, id="a port of the address"),
        pytest.param(V4, ("10.0.0.3", 8080), 0, True, APPLICATION, id="of another address"),
        pytest.param(V4, ("::", 8081), 0, True, APPLICATION, id="another port"),
        pytest.param(replace(V4, protocol=IPPROTO_UDP), ("::", 8080), 0, True, APPLICATION, id="a datagram"),
        pytest.param(V4, ("::", 8080), 0, False, REFUSED, id="without a listener"),
        pytest.param(V4, ("::", 8080), _OPEN, False, APPLICATION, id="open, without a listener"),
        pytest.param(V4, ("::", 8080), _OPEN, True, AGENT, id="open, with a listener"),
        pytest.param(V4, ("::", 8080), _CLOSED, True, REFUSED, id="a port of the agent's alone"),
        pytest.param(replace(V4, remote=V4.local), ("::", 8080), 0, True, APPLICATION, id="to itself"),
        pytest.param(replace(V4, remote="127.0.0.1"), ("::", 8080), 0, True, APPLICATION, id="from loopback"),
        pytest.param(
            replace(V4, remote="169.254.7.127"), ("::", 8080), 0, True, APPLICATION, id="the kubelet"
        ),
    ],
)
def test_what_arrives_where_workloads_share_a_namespace(
    listeners: dict[str, socket.socket],
    arrival: Arrival,
    port: tuple[str, int],
    flags: int,
    listener: bool,
    expected: str,
) -> None:
    require("root", "engine")
    address = bytes(16) if port[0] == "::" else parse_address(port[0])
    with BpfObject("shared") as programs:
        ports, sockets = programs.map("ports", 24, 16), programs.map("listeners", 4, 8)
        ports[struct.pack("=16sH6x", address, port[1])] = struct.pack("=QII", 1, _INBOUND_KEY, flags)
        if listener:
            sockets[struct.pack("=I", _INBOUND_KEY)] = struct.pack("=Q", listeners["dual"].fileno())
        assert ask(programs, "shared_lookup", arrival) == expected
        ports.close()
        sockets.close()


@pytest.mark.parametrize("listener", [True, False])
def test_what_was_sent_to_an_outbound_port_that_is_shared(
    listeners: dict[str, socket.socket], listener: bool
) -> None:
    require("root", "engine")
    with BpfObject("shared") as programs:
        ports, sockets = programs.map("ports", 24, 16), programs.map("listeners", 4, 8)
        ports[struct.pack("=16sH6x", bytes(16), 15203)] = struct.pack("=QII", 1, _OUTBOUND_KEY, _OPEN)
        if listener:
            sockets[struct.pack("=I", _OUTBOUND_KEY)] = struct.pack("=Q", listeners["dual"].fileno())
        assert ask(programs, "shared_lookup", _at(15203)) == (AGENT if listener else REFUSED)
        ports.close()
        sockets.close()


# -- what cannot be asked so -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("outbound", "outbound_connect4"),
        ("outbound", "outbound_getpeername4"),
        ("outbound", "outbound_sockops"),
        ("outbound", "agent_getsockopt"),
        ("datagram", "datagram_sendmsg4"),
        ("direct", "direct_send"),
    ],
)
def test_other_programs_need_real_sockets(name: str, program: str) -> None:
    """Should a kernel learn it, there is more to make tables of."""
    require("root", "engine")
    with BpfObject(name) as programs, pytest.raises(BpfError, match="524"):
        programs.attempt(program, bytes(72))
