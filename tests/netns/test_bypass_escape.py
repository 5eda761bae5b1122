"""Ways by which a program may try to pass the engine where it may not."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from harness.bypass_scene import FAMILIES, BypassScene, address_of
from harness.capture_agent import IP_TRANSPARENT
from harness.peer import dial, peer_server, read_line
from harness.raw_tcp import family_of, syn

from nodeagent.dataplane.bypass_layout import Access, EventKind

pytestmark = pytest.mark.netns

VIP = "10.96.0.10"
PORT = 23_456
TAKEN = "10.99.0.77"


@pytest.fixture
def scene(bypass: BypassScene) -> Iterator[BypassScene]:
    """The client may pass to the server at the VIP."""
    bypass.permit()
    with peer_server(bypass.server, 8080):
        yield bypass


def _is_direct(client: socket.socket) -> bool:
    return int(read_line(client).split()[1]) == client.getsockname()[1]


def test_the_address_of_an_endpoint_is_no_way(scene: BypassScene) -> None:
    """Only what the agent knows as a service is, which may be the same address."""
    with dial(scene.client, scene.server.v4, 8080) as client:
        assert not _is_direct(client)
    assert not scene.maps.flows()


def _say(scene: BypassScene, target: str) -> None:
    with dial(scene.client, target, 80) as client:
        client.sendall(b"for the workload alone")
        client.recv(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_whoever_has_an_endpoints_address_hears_nothing(scene: BypassScene, family: str) -> None:
    """A pod outside the mesh took it, or was given it before the agent heard of the workload's end."""
    maps = scene.maps
    target = scene.permit(family)
    maps.backend(0, address_of(scene.outside, family), 8080)
    maps.events()
    astray = maps.count("astray")
    with scene.outside.run(
        lambda: socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    ) as server:
        # By IPv6 there is no way at all from the loopback device, which connect() may be told already.
        with pytest.raises(OSError) as failure:
            _say(scene, target)
        assert failure.value.errno in (errno.ETIMEDOUT, errno.ENETUNREACH), "the kernel has ended it"
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()
    assert maps.count("astray") == astray + 1
    assert not maps.flows()
    assert [event.kind for event in maps.events()] == [EventKind.FAILED]


def test_somebody_elses_connection_is_of_no_use(scene: BypassScene) -> None:
    """From outside, with the very port of a connection that has passed."""
    with dial(scene.client, VIP, 80, source=(scene.client.v4, PORT)) as passed:
        assert _is_direct(passed)
        with dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, PORT)) as client:
            assert not _is_direct(client)


def test_a_foreign_source_is_no_way(scene: BypassScene) -> None:
    """IP_TRANSPARENT lets a program bind to any address."""
    passed = scene.maps.count("bypassed")
    transparent = ((socket.IPPROTO_IP, IP_TRANSPARENT, 1),)
    with contextlib.suppress(OSError):
        dial(scene.client, VIP, 80, options=transparent, source=(scene.outside.v4, PORT), timeout=0.2).close()
    assert scene.maps.count("bypassed") == passed
    assert not scene.maps.flows()


@pytest.fixture
def taken(scene: BypassScene) -> Iterator[str]:
    """An address that the workload has given itself."""
    scene.client.ip("address", "add", f"{TAKEN}/24", "dev", "eth0")
    try:
        yield TAKEN
    finally:
        scene.client.ip("address", "del", f"{TAKEN}/24", "dev", "eth0")


def test_an_address_that_the_workload_took_is_no_way(scene: BypassScene, taken: str) -> None:
    """Verdicts are for those that it had."""
    passed = scene.maps.count("bypassed")
    with dial(scene.client, VIP, 80, source=(taken, 0)):
        assert scene.maps.count("bypassed") == passed
        assert not scene.maps.flows()


def test_a_route_with_such_a_source_is_no_way(scene: BypassScene, taken: str) -> None:
    """The kernel chooses it after connect() was judged."""
    route = (f"{scene.server.v4}/32", "dev", "eth0", "src", taken)
    scene.client.ip("route", "add", *route)
    try:
        with dial(scene.client, VIP, 80) as client:
            assert client.getsockname()[0] == taken
            assert not scene.maps.flows()
            assert not _is_direct(client), "the engine has it where it arrives"
    finally:
        scene.client.ip("route", "del", *route)


def test_a_route_that_the_packet_names_is_no_way(scene: BypassScene) -> None:
    """Loose source routing (RFC 791, 3.1) sends packets elsewhere first, whatever connect() was told."""
    through = bytes([131, 7, 4]) + socket.inet_aton(scene.outside.v4)
    refused = scene.maps.count("raw")
    for target, port in ((VIP, 80), (scene.outside.v4, 8080)):
        options = ((socket.IPPROTO_IP, socket.IP_OPTIONS, through),)
        with pytest.raises(TimeoutError):
            dial(scene.client, target, port, options=options, timeout=0.1)
    assert scene.maps.count("raw") >= refused + 2


@pytest.mark.parametrize("mark", [1, 0x6E61])
def test_a_mark_is_no_way(scene: BypassScene, mark: int) -> None:
    scene.maps.verdict(Access.DENY)
    marked = ((socket.SOL_SOCKET, socket.SO_MARK, mark),)
    with pytest.raises(PermissionError):
        dial(scene.client, VIP, 80, options=marked)


def test_another_namespace_is_no_way(scene: BypassScene) -> None:
    """A socket stays the workload's that made it, whoever has it."""
    made = scene.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    scene.maps.verdict(Access.DENY)
    with made, pytest.raises(PermissionError):
        scene.outside.run(lambda: made.connect((VIP, 80)))


# -- raw sockets -----------------------------------------------------------------------------------------------


def _header4(source: str, target: str, size: int, fragment: int = 0, options: bytes = b"") -> bytes:
    length = (20 + len(options)) // 4
    fields = (4 << 4 | length, 0, size + 4 * length, 1, fragment, 64, socket.IPPROTO_TCP, 0)
    return struct.pack("!BBHHHBBH", *fields) + socket.inet_aton(source) + socket.inet_aton(target) + options


def _header6(source: str, target: str, size: int, following: int) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return struct.pack("!IHBB", 6 << 28, size, following, 64) + addresses


def _attempts(source: str, target: str) -> dict[str, tuple[int, list[bytes]]]:
    """SYNs by the protocol of the socket that sends them, in one or more packets."""
    segment = syn(source, target, 8080)
    if ":" in source:
        extensions = bytes([43, 0, 1, 4, 0, 0, 0, 0]) + bytes([6, 0, 1, 4, 0, 0, 0, 0])
        first, rest = (bytes([6, 0, *struct.pack("!H", field), 0, 0, 0, 1]) for field in (1, 8))
        return {
            "header by the kernel": (socket.IPPROTO_TCP, [segment]),
            "own header": (socket.IPPROTO_RAW, [_header6(source, target, len(segment), 6) + segment]),
            "extensions": (socket.IPPROTO_RAW, [_header6(source, target, 36, 60) + extensions + segment]),
            "fragments": (
                socket.IPPROTO_RAW,
                [
                    _header6(source, target, 16, 44) + first + segment[:8],
                    _header6(source, target, 20, 44) + rest + segment[8:],
                ],
            ),
            "cut": (socket.IPPROTO_RAW, [_header6(source, target, 8, 6) + segment[:8]]),
        }
    return {
        "header by the kernel": (socket.IPPROTO_TCP, [segment]),
        "own header": (socket.IPPROTO_RAW, [_header4(source, target, 20) + segment]),
        "options": (socket.IPPROTO_RAW, [_header4(source, target, 20, options=b"\1" * 8) + segment]),
        "fragments": (
            socket.IPPROTO_RAW,
            [
                _header4(source, target, 8, fragment=0x2000) + segment[:8],
                _header4(source, target, 12, fragment=1) + segment[8:],
            ],
        ),
        "cut": (socket.IPPROTO_RAW, [_header4(source, target, 8) + segment[:8]]),
    }


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_raw_socket_is_no_way(scene: BypassScene, family: str) -> None:
    """However it makes its SYN, even where connect() would pass."""
    source, target = (getattr(each, family) for each in (scene.client, scene.server))
    for name, (protocol, packets) in _attempts(source, target).items():
        refused = scene.maps.count("raw")
        opened = scene.client.run(lambda: socket.socket(family_of(source), socket.SOCK_RAW, protocol))  # noqa: B023
        with opened, contextlib.suppress(PermissionError):
            for packet in packets:
                opened.sendto(packet, (target, 0))
        assert scene.maps.count("raw") == refused + 1, name
    assert not scene.maps.flows()


def test_other_protocols_are_nobodys_business(scene: BypassScene) -> None:
    refused = scene.maps.count("raw")
    opened = scene.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with opened:
        opened.settimeout(5)
        opened.sendto(bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0]), (scene.server.v4, 0))
        assert opened.recv(100)[20] == 0, "an echo reply"
    assert scene.maps.count("raw") == refused
