"""connect() past the engine, on real sockets, by maps that are filled by hand: who gets where, and who does not."""

from __future__ import annotations

import errno
import itertools
import select
import socket
from collections.abc import Callable, Iterator

import pytest
from harness.bypass_scene import CLIENT, FAMILIES, LIFE, OTHER, SERVER, SERVICE, VIEW, BypassScene, address_of
from harness.peer import dial, exchange, peer_server, read_line

from nodeagent.dataplane.bypass_layout import Access, Ends, EventKind, Flow
from nodeagent.dataplane.ebpf_node import netns_cookie
from nodeagent.snapshot.address import parse_address

pytestmark = pytest.mark.netns

SO_COOKIE = 57  # asm-generic/socket.h
_ports = itertools.count(20_000)


@pytest.fixture
def scene(bypass: BypassScene) -> Iterator[BypassScene]:
    """A server that listens on 8080, and nothing that anybody may pass the engine by."""
    with peer_server(bypass.server, 8080):
        yield bypass


def _is_direct(client: socket.socket) -> bool:
    """Whether the server sees the client's own port."""
    return int(read_line(client).split()[1]) == client.getsockname()[1]


# -- past the engine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_endpoint_is_reached_without_the_engine(scene: BypassScene, family: str) -> None:
    target, before, passed = scene.permit(family), scene.captured(), scene.maps.count("bypassed")
    with dial(scene.client, target, 80) as client:
        own, port = client.getsockname()[:2]
        assert client.getpeername()[:2] == (target, 80), "as asked for"
        assert read_line(client) == f"{own.removeprefix('::ffff:')} {port}"
        assert own == address_of(scene.client, family), "the client's own address"
        cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
        ((ends, flow),) = scene.maps.flows().items()
        assert exchange(client, b"x" * 100_000) == b"x" * 100_000
    there = parse_address(address_of(scene.server, family))
    assert ends == Ends(parse_address(own), there, port, 8080)
    netns = netns_cookie(scene.client.handle)
    assert flow == Flow(
        parse_address(target), 80, netns, cookie, flow.started_ns, LIFE, CLIENT, SERVER, SERVICE
    )
    assert scene.captured() == before
    assert scene.maps.count("bypassed") == passed + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_denied_connect_fails_and_is_told(scene: BypassScene, family: str) -> None:
    target, before = scene.permit(family), scene.captured()
    scene.maps.verdict(Access.DENY, policy=33)
    denied = scene.maps.count("denied")
    with pytest.raises(PermissionError):
        dial(scene.client, target, 80)
    (event,) = scene.maps.events()
    assert (event.kind, event.policy) == (EventKind.DENIED, 33)
    assert event.ends.source == parse_address(address_of(scene.client, family))
    assert event.ends.destination == parse_address(address_of(scene.server, family))
    assert (event.ends.destination_port, event.flow.asked_port) == (8080, 80)
    assert (event.flow.source, event.flow.destination, event.flow.service) == (CLIENT, SERVER, SERVICE)
    assert scene.maps.count("denied") == denied + 1
    assert scene.captured() == before


def test_a_nonblocking_connect(scene: BypassScene) -> None:
    target = scene.permit()
    client = scene.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    with client:
        client.setblocking(False)
        assert client.connect_ex((target, 80)) == errno.EINPROGRESS
        assert select.select([], [client], [], 5)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        client.settimeout(5)
        assert _is_direct(client)


def test_a_source_of_the_clients_choice(scene: BypassScene) -> None:
    target, port = scene.permit(), next(_ports)
    with dial(scene.client, target, 80, source=(scene.client.v4, port)) as client:
        assert read_line(client) == f"{scene.client.v4} {port}"


def test_a_verdict_on_everybody(scene: BypassScene) -> None:
    """Counts for those who have none of their own."""
    target = scene.permit()
    scene.maps.verdict(Access.ALLOW, source=0)
    scene.maps.verdict(Access.DENY)
    with pytest.raises(PermissionError):
        dial(scene.client, target, 80)
    scene.maps.source(scene.client, OTHER)
    with dial(scene.client, target, 80) as client:
        assert _is_direct(client)


def test_all_slots_are_drawn(scene: BypassScene) -> None:
    """An endpoint in one, none in the other: those go to the engine."""
    scene.permit("v4", scene.server.v4)
    scene.maps.service(scene.server.v4, 8080, slots=2)
    drawn = set()
    for _ in range(64):
        with dial(scene.client, scene.server.v4, 8080) as client:
            drawn.add(_is_direct(client))
        if len(drawn) == 2:
            return
    pytest.fail(f"64 connections were all the same: direct {drawn}")


def _dual(scene: BypassScene, *, v6_only: bool = False, source: str = "") -> socket.socket:
    """A socket of IPv6 that has asked for the server's address of that family."""

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        client.settimeout(5)
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        if source:
            client.bind((source, 0))
        client.connect((scene.server.v6, 8080))
        return client

    return scene.client.run(connect)


def test_an_endpoint_of_the_other_family(scene: BypassScene) -> None:
    """A service has addresses of both, and its endpoints may have one."""
    scene.permit("v4", scene.server.v6)
    scene.maps.service(scene.server.v6, 8080)
    with _dual(scene) as client:
        assert client.getpeername()[:2] == (scene.server.v6, 8080), "as asked for"
        assert read_line(client) == f"{scene.client.v4} {client.getsockname()[1]}"
        assert exchange(client, b"hello") == b"hello"
        ((ends, flow),) = scene.maps.flows().items()
    assert (ends.source, ends.destination) == (
        parse_address(scene.client.v4),
        parse_address(scene.server.v4),
    )
    assert flow.asked == parse_address(scene.server.v6)


@pytest.mark.parametrize("bound", [False, True])
def test_a_socket_of_ipv6_alone_gets_to_no_endpoint_of_ipv4(scene: BypassScene, bound: bool) -> None:
    scene.permit("v4", scene.server.v6)
    scene.maps.service(scene.server.v6, 8080)
    before = scene.captured()
    with _dual(scene, source=scene.client.v6) if bound else _dual(scene, v6_only=True) as client:
        assert not _is_direct(client)
    assert scene.captured() > before


# -- to the engine ---------------------------------------------------------------------------------------------


def _other_life(scene: BypassScene) -> None:
    scene.maps.begin(LIFE + 1)


def _no_life(scene: BypassScene) -> None:
    scene.maps.begin(0)


def _no_source(scene: BypassScene) -> None:
    for key in list(scene.maps.sources):
        scene.maps.sources.discard(key)


def _other_view(scene: BypassScene) -> None:
    scene.maps.source(scene.client, CLIENT, VIEW + 1)


def _no_verdict(scene: BypassScene) -> None:
    for key in list(scene.maps.access):
        scene.maps.access.discard(key)


def _undecided(scene: BypassScene) -> None:
    scene.maps.verdict(Access.ALLOW, source=0)
    scene.maps.verdict(Access.ENGINE)


def _no_slots(scene: BypassScene) -> None:
    scene.maps.service(scene.server.v4, 8080, slots=0)


def _empty_slot(scene: BypassScene) -> None:
    for key in list(scene.maps.backends):
        scene.maps.backends.discard(key)


def _itself(scene: BypassScene) -> None:
    scene.maps.backend(0, scene.client.v4, 8080, CLIENT)
    scene.maps.verdict(Access.ALLOW, server=CLIENT)


def _other_family(scene: BypassScene) -> None:
    scene.maps.backend(0, scene.server.v6, 8080)


def _not_named(scene: BypassScene) -> None:
    scene.maps.name(scene.server, 0)


def _named_otherwise(scene: BypassScene) -> None:
    scene.maps.name(scene.server, OTHER)


def _named_before(scene: BypassScene) -> None:
    scene.maps.name(scene.server, SERVER, LIFE - 1)


@pytest.mark.parametrize(
    "change",
    [
        _no_life,
        _no_source,
        _other_view,
        _no_verdict,
        _undecided,
        _no_slots,
        _empty_slot,
        _itself,
        _other_family,
    ],
)
def test_what_cannot_be_decided_is_the_engines(
    scene: BypassScene, change: Callable[[BypassScene], None]
) -> None:
    scene.permit("v4", scene.server.v4)
    scene.maps.service(scene.server.v4, 8080)
    with dial(scene.client, scene.server.v4, 8080) as client:
        assert _is_direct(client), "but for the change"
    change(scene)
    before = scene.captured()
    with dial(scene.client, scene.server.v4, 8080) as client:
        assert not _is_direct(client)
    assert scene.captured() > before


@pytest.mark.parametrize("port", [8081, 8080])
def test_a_socket_that_is_bound_to_a_device_is_the_engines(scene: BypassScene, port: int) -> None:
    scene.permit("v4", scene.server.v4)
    scene.maps.service(scene.server.v4, port)
    device = ((socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0"),) if port == 8080 else ()
    with dial(scene.client, scene.server.v4, port, options=device) as client:
        assert _is_direct(client) == (not device)


def test_a_full_table_of_flows_leaves_them_to_the_engine(scene: BypassScene) -> None:
    """Which judges them where they arrive."""
    target, full = scene.permit(), scene.maps.count("no_bypass")
    there, flow = parse_address("192.0.2.1"), Flow(bytes(16), 1, 1, 1, 1, 1, 1, 1, 1).pack()
    limit = scene.maps.bypassed.memory_and_limit()[1]
    scene.maps.bypassed.update(
        {Ends(there, there, number & 0xFFFF, number >> 16).pack(): flow for number in range(limit)}
    )
    before = scene.captured()
    with dial(scene.client, target, 80) as client:
        assert not _is_direct(client)
    assert scene.captured() == before + 1
    assert scene.maps.count("no_bypass") == full + 1
    assert scene.maps.events() == [], "it is no connection past the engine"


# -- asked again where it arrives ------------------------------------------------------------------------------


def _forge(scene: BypassScene, port: int, life: int = LIFE, to: int = SERVER) -> None:
    """What no program of an application can do: make an entry of the client's for a connection from outside."""
    ends = Ends(parse_address(scene.outside.v4), parse_address(scene.server.v4), port, 8080)
    netns = netns_cookie(scene.client.handle)
    scene.maps.bypassed[ends.pack()] = Flow(bytes(16), 0, netns, 0, 0, life, CLIENT, to, 0).pack()


@pytest.mark.parametrize(
    "case", ["allowed", "denied", "withdrawn", "other life", "other workload", "other port"]
)
def test_the_verdict_is_asked_again(scene: BypassScene, case: str) -> None:
    """What is not allowed any more is refused: to the engine it would be a connection of nobody in particular."""
    scene.permit()
    port = next(_ports)
    _forge(
        scene,
        port + (case == "other port"),
        LIFE + (case == "other life"),
        SERVER + (case == "other workload"),
    )
    if case == "denied":
        scene.maps.verdict(Access.DENY)
    elif case == "withdrawn":
        _no_verdict(scene)
    withdrawn = scene.maps.count("withdrawn")
    if case in ("allowed", "other port"):
        with dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, port)) as client:
            assert _is_direct(client) == (case == "allowed")
        assert scene.maps.count("withdrawn") == withdrawn
    else:
        with pytest.raises(ConnectionRefusedError):
            dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, port))
        assert scene.maps.count("withdrawn") == withdrawn + 1


@pytest.mark.parametrize("change", [_other_life, _not_named, _named_otherwise, _named_before])
def test_a_namespace_takes_only_what_is_for_it(
    scene: BypassScene, change: Callable[[BypassScene], None]
) -> None:
    """An address may have passed to another workload since."""
    target = scene.permit()
    change(scene)
    with pytest.raises(ConnectionRefusedError):
        dial(scene.client, target, 80)
    assert [event.kind for event in scene.maps.events()] == [EventKind.FAILED]


@pytest.mark.parametrize("now", ["nobody", "another workload", "the client"])
def test_the_client_must_be_one_still(scene: BypassScene, now: str) -> None:
    """A socket that a workload has left behind without a process keeps its entry, while its address, and so the ends of
    the connection, may be somebody else's already."""
    scene.permit()
    port = next(_ports)
    _forge(scene, port)
    _no_source(scene)
    if now != "nobody":
        scene.maps.verdict(Access.ALLOW, source=OTHER)
        scene.maps.source(scene.client, OTHER if now == "another workload" else CLIENT)
    withdrawn = scene.maps.count("withdrawn")
    if now == "the client":
        with dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, port)) as client:
            assert _is_direct(client), "but for the change"
        return
    with pytest.raises(ConnectionRefusedError):
        dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, port))
    assert scene.maps.count("withdrawn") == withdrawn + 1
