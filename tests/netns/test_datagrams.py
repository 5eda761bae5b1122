"""The programs for UDP on real sockets, with what an agent would say said by the test."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import require
from harness.datagram_scene import (
    ALLOW,
    DENY,
    NOBODY,
    PORT,
    TARGET,
    VIP,
    DatagramScene,
    Server,
    bind,
    datagram_scene,
)

from nodeagent.dataplane.datagram_layout import ANY_PORT
from nodeagent.dataplane.ebpf_node import unload

pytestmark = pytest.mark.netns

families = pytest.mark.parametrize("family", VIP)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def scene() -> Iterator[DatagramScene]:
    require("root", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-udp-{os.getpid()}-{next(_numbers)}")
    try:
        with datagram_scene("udp", pins) as scene:
            yield scene
    finally:
        unload(pins)


@pytest.fixture
def near(scene: DatagramScene) -> Server:
    """The only endpoint of the service."""
    scene.say([scene.near])
    return scene.near


@families
def test_a_services_address_leads_to_an_endpoint_and_back(
    scene: DatagramScene, near: Server, family: str
) -> None:
    with scene.socket(family) as client:
        for _ in range(3):
            client.sendto(b"hello", (VIP[family], PORT))
            own = scene.client.v6 if family == "v6" else scene.client.v4
            assert near.answer() == own, "the client's address is kept"
            assert client.recvfrom(10)[1][:2] == (VIP[family], PORT)
    assert scene.counted() == {"allowed": 3}


@families
def test_a_connected_socket_may_send_elsewhere(scene: DatagramScene, near: Server, family: str) -> None:
    """Each datagram is for whom it says, and is judged so; the connection is what it was."""
    scene.say([near], {"far": NOBODY})
    elsewhere = scene.far.address(family), TARGET
    with scene.socket(family) as client:
        client.connect((VIP[family], PORT))
        with pytest.raises(PermissionError):
            client.sendto(b"x", elsewhere)
        client.send(b"x")
        near.answer()
        assert client.recv(10) == b"x"
        scene.say([near])
        client.sendto(b"y", elsewhere)
        scene.far.answer()
        assert client.getpeername()[:2] == (VIP[family], PORT)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("name_length", ctypes.c_uint),
        ("iovec", ctypes.POINTER(_Iovec)),
        ("iovecs", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_long),  # an int, to which msghdr is padded
        ("sent", ctypes.c_uint),
    )


def _send_many(sock: socket.socket, to: list[tuple[str, int]]) -> int:
    """sendmmsg(2) of a datagram to each (IPv4): how many went, or the negative errno of the first."""
    libc = ctypes.CDLL(None, use_errno=True)
    messages = (_Message * len(to))()
    for message, (address, port) in zip(messages, to, strict=True):
        message.name = struct.pack("=H", socket.AF_INET) + struct.pack(
            "!H4s8x", port, socket.inet_aton(address)
        )
        message.name_length = 16
        message.iovec = ctypes.pointer(_Iovec(b"many", 4))
        message.iovecs = 1
    found = libc.sendmmsg(sock.fileno(), messages, len(to), 0)
    return int(found) if found >= 0 else -ctypes.get_errno()


def test_each_of_many_in_one_call_is_judged(scene: DatagramScene, near: Server) -> None:
    scene.say([near], {"far": NOBODY})
    service, refused = (VIP["v4"], PORT), (scene.far.address("v4"), TARGET)
    with scene.socket("v4") as client:
        assert _send_many(client, [service, service, refused, service]) == 2
        assert _send_many(client, [refused, service]) == -errno.EPERM
        for _ in range(2):
            near.answer()
            assert client.recvfrom(10)[1] == service


@families
def test_verdicts_are_by_port(scene: DatagramScene, family: str) -> None:
    scene.say(None, {"near": {TARGET: ALLOW, ANY_PORT: DENY}})
    to = scene.near.address(family)
    with scene.socket(family) as client:
        client.sendto(b"x", (to, TARGET))
        scene.near.answer()
        with pytest.raises(PermissionError):
            client.sendto(b"x", (to, TARGET + 1))
        with pytest.raises(PermissionError):
            client.connect((to, TARGET + 1))
    assert scene.counted() == {"allowed": 1, "denied": 2}
    assert scene.datagrams.denials()["ns/no"] >= 2


def test_what_is_not_known_is_refused(scene: DatagramScene) -> None:
    scene.say(None, {"near": {}})
    with scene.socket("v4") as client, pytest.raises(PermissionError):
        client.sendto(b"x", (scene.near.address("v4"), TARGET))
    assert scene.counted() == {"unknown": 1}


@families
def test_a_service_without_endpoints_refuses(scene: DatagramScene, family: str) -> None:
    scene.say([])
    with scene.socket(family) as client, pytest.raises(PermissionError):
        client.sendto(b"x", (VIP[family], PORT))
    assert scene.counted() == {"no_endpoint": 1}


@families
def test_an_endpoint_that_goes_is_left(scene: DatagramScene, near: Server, family: str) -> None:
    """By sockets that are not connected at once; those that are get to know by an error."""
    with scene.socket(family) as client, scene.socket(family) as connected, scene.socket(family) as other:
        connected.connect((VIP[family], PORT))
        other.connect((near.address(family), TARGET))
        client.sendto(b"x", (VIP[family], PORT))
        near.answer()
        scene.say([scene.far])
        client.sendto(b"x", (VIP[family], PORT))
        scene.far.answer()
        assert scene.end_sockets() == 1
        with pytest.raises(ConnectionAbortedError):
            connected.recv(1)
        other.send(b"x")
        near.answer()


def test_a_connected_socket_ends_when_it_may_send_no_more(scene: DatagramScene, near: Server) -> None:
    with scene.socket("v4") as client, scene.socket("v4") as other:
        client.connect((near.address("v4"), TARGET))
        other.connect((scene.far.address("v4"), TARGET))
        assert not scene.end_sockets()
        scene.say([near], {"near": NOBODY})
        assert scene.revision.tightened
        assert scene.end_sockets() == 1
        with pytest.raises(ConnectionAbortedError):
            client.recv(1)
        assert other.getpeername() == (scene.far.address("v4"), TARGET)


def test_a_change_that_forbids_nothing_is_told_as_such(scene: DatagramScene) -> None:
    scene.say(None, {"near": NOBODY})
    scene.say(None, {"near": {ANY_PORT: ALLOW}})
    assert not scene.revision.tightened
    assert not scene.revision.lost


@families
def test_sockets_without_room_are_given_an_endpoint_again(scene: DatagramScene, family: str) -> None:
    """Under pressure the kernel forgets which one the longest unused had."""
    scene.say([scene.near, scene.far])
    endpoints = scene.datagrams._endpoints
    with scene.socket(family) as client:
        seen = set()
        for _ in range(20):
            client.sendto(b"x", (VIP[family], PORT))
            seen.add(_who_answers(scene))
            assert client.recvfrom(10)[1][:2] == (VIP[family], PORT)
            for key in list(endpoints):
                endpoints.discard(key)
    assert seen == {"near", "far"}


@families
def test_sockets_keep_what_they_have_over_a_restart(scene: DatagramScene, family: str) -> None:
    """Of the agent; unless the endpoint went meanwhile."""
    scene.say([scene.near])
    asked = VIP[family], PORT
    with scene.socket(family) as client, scene.socket(family) as connected:
        connected.connect(asked)
        client.sendto(b"x", asked)
        scene.restart()
        scene.say([scene.near, scene.far])
        scene.near.answer()
        assert client.recvfrom(10)[1][:2] == asked, "the answer to what was sent before"
        assert connected.getpeername()[:2] == asked
        for _ in range(10):
            client.sendto(b"x", asked)
            scene.near.answer()
        assert not scene.end_sockets()
        scene.restart()
        scene.say([scene.far])
        client.sendto(b"x", asked)
        scene.far.answer()
        assert scene.end_sockets() == 1
        with pytest.raises(ConnectionAbortedError):
            connected.recv(1)


def _who_answers(scene: DatagramScene) -> str:
    for name, server in (("near", scene.near), ("far", scene.far)):
        server.socket.setblocking(False)
        try:
            server.answer()
        except BlockingIOError:
            continue
        finally:
            server.socket.settimeout(3)
        return name
    raise AssertionError("nobody has got anything")


@pytest.mark.parametrize("to", ["own", "127.0.0.1", "224.0.0.251", "10.99.0.200"])
def test_what_is_nobodys_business_is_left_alone(scene: DatagramScene, to: str) -> None:
    """To itself, to many, or to who is no workload; even where one would be refused at that address."""
    scene.say([scene.near], {"near": NOBODY})
    address = scene.client.v4 if to == "own" else to
    with scene.socket("v4") as client, bind(scene.client, 5353) as own:
        client.sendto(b"x", (address, 5353))
        if to in ("own", "127.0.0.1"):
            assert own.recv(10) == b"x"
    assert scene.counted() == ({"allowed": 1} if to == "10.99.0.200" else {})


def test_who_is_not_captured_is_left_alone(scene: DatagramScene) -> None:
    scene.say([scene.far], {"near": NOBODY})
    scene.far.socket.sendto(b"x", (f"::ffff:{scene.near.address('v4')}", TARGET))
    assert scene.near.socket.recv(10) == b"x"
    assert scene.counted() == {}


def test_the_agent_is_left_alone(scene: DatagramScene) -> None:
    """By its cgroup; nothing that a program of the workload does makes it one of the agent's."""
    scene.say([scene.far], {"near": NOBODY})
    send = f"import socket; socket.socket(type=2).sendto(b'x', ({scene.near.address('v4')!r}, {TARGET}))"
    with scene.client.start([sys.executable, "-c", send], prepare=scene.group.join):
        assert scene.near.socket.recv(10) == b"x"
    assert scene.counted() == {}
    done = scene.client.exec([sys.executable, "-c", send])
    assert "PermissionError" in done.stderr


def _outcome(server: Server, to: str, own: socket.socket) -> str:
    """What becomes of a datagram of a server to the client's socket at port 7000."""
    with server.namespace.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sender:
        sender.settimeout(3)
        sender.connect((to, 7000))
        sender.send(b"in")
        readable, _, _ = select.select([sender, own], [], [], 3)
        if own in readable:
            assert own.recv(10) == b"in"
            return "in"
        with pytest.raises(ConnectionRefusedError):
            sender.recv(10)
        return "refused"


@pytest.mark.parametrize("family", ["v6", "mapped"])
def test_outsiders_are_let_in_as_policy_says(scene: DatagramScene, family: str) -> None:
    to = scene.client.v6 if family == "v6" else f"::ffff:{scene.client.v4}"
    with bind(scene.client, 7000) as own:
        scene.say(None, closed={7000}, members={"near"})
        assert _outcome(scene.near, to, own) == "in", "its node has judged it"
        assert _outcome(scene.far, to, own) == "refused"
        assert scene.counted() == {"outsider": 1}
        scene.say(None, closed={7001})
        assert _outcome(scene.far, to, own) == "in"
        own.sendto(b"x", (to, 7000))
        assert own.recv(10) == b"x", "to itself"


@pytest.mark.parametrize("family", ["v6", "mapped"])
def test_outsiders_are_told_apart_by_prefixes(scene: DatagramScene, family: str) -> None:
    """The longest one holds; where none does, nobody is let in."""
    v6 = family == "v6"
    to = scene.client.v6 if v6 else f"::ffff:{scene.client.v4}"
    one = f"{scene.near.namespace.v6}/128" if v6 else f"::ffff:{scene.near.namespace.v4}/128"
    everybody = "::/0" if v6 else "::ffff:0:0/96"

    def outcomes() -> tuple[str, str]:
        with bind(scene.client, 7000) as own:
            return _outcome(scene.near, to, own), _outcome(scene.far, to, own)

    scene.say(None, by_address={everybody: DENY, one: ALLOW})
    assert outcomes() == ("in", "refused")
    scene.say(None, by_address={everybody: ALLOW, one: DENY})
    assert outcomes() == ("refused", "in")
    scene.say(None, by_address={one: ALLOW})
    assert outcomes() == ("in", "refused")
    assert next(each.entries for each in scene.datagrams.maps() if each.name == "udp_outsiders") == 1
    assert scene.counted() == {"outsider": 1}


def test_answers_of_outsiders_arrive(scene: DatagramScene) -> None:
    """To a socket that is not connected at a port that services lead to, for whoever it has asked; to others not."""
    scene.say(None, closed={7000})
    to, port = scene.far.address("mapped"), TARGET
    with bind(scene.client, 7000) as own, bind(scene.far.namespace, 7002) as other:
        own.sendto(b"asked", (to, port))
        scene.far.answer()
        assert own.recv(10) == b"asked"
        own.settimeout(0.1)
        for each in (other, scene.near.socket):
            each.sendto(b"x", (f"::ffff:{scene.client.v4}", 7000))
            with pytest.raises(TimeoutError):
                own.recv(10)


def _sends(own: socket.socket, to: tuple[str, int]) -> bool:
    try:
        own.sendto(b"out", to)
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize("family", ["v6", "mapped"])
def test_what_a_workload_of_this_node_sent_past_its_hooks_is_refused(
    scene: DatagramScene, family: str
) -> None:
    """As by a packet socket: the server's own hooks are not there. Answers arrive."""
    to = scene.client.v6 if family == "v6" else f"::ffff:{scene.client.v4}"
    scene.say(None, barred=["near"], members=["near"])
    with bind(scene.client, 7000) as own:
        assert _outcome(scene.near, to, own) == "refused"
        assert scene.counted() == {"past": 1}
        own.sendto(b"asked", (scene.near.address(family), TARGET))
        scene.near.answer()
        assert own.recv(10) == b"asked"


@pytest.mark.parametrize("family", ["v6", "mapped"])
def test_who_was_asked_may_answer(scene: DatagramScene, family: str) -> None:
    """Whoever's policy lets nobody in: it has asked. A socket that it connects for that goes on, too."""
    to = scene.client.v6 if family == "v6" else f"::ffff:{scene.client.v4}"
    scene.say(None, {"near": NOBODY})
    near = scene.near.address(family), TARGET
    with bind(scene.client, 7010) as own:
        assert not _sends(own, near), "nobody asked"
        scene.near.socket.sendto(b"asked", (to, 7010))
        own.recv(10)
        assert _sends(own, near)
        assert scene.near.socket.recv(10) == b"out"
        assert not _sends(own, (near[0], TARGET + 1))
        with bind(scene.client, 7011) as other:
            assert not _sends(other, near)
        own.connect(near)
        assert not scene.end_sockets()
        own.send(b"connected")
        assert scene.near.socket.recv(10) == b"connected"


def test_an_answer_does_not_open_a_port(scene: DatagramScene) -> None:
    """To whom it was given, when policy lets it in no more."""
    to = f"::ffff:{scene.client.v4}"
    with bind(scene.client, 7000) as own, scene.far.namespace.run(lambda: socket.socket(type=2)) as outsider:
        outsider.settimeout(3)
        outsider.connect((scene.client.v4, 7000))
        scene.say(None, closed={7001})
        for number in range(2):
            outsider.send(b"%d" % number)
            data, peer = own.recvfrom(10)
            own.sendto(data, peer)
            assert outsider.recv(10) == data
        scene.say(None, closed={7000})
        outsider.send(b"in")
        with pytest.raises(ConnectionRefusedError):
            outsider.recv(10)
        assert _outcome(scene.far, to, own) == "refused"


def test_what_is_forbidden_is_no_answer(scene: DatagramScene) -> None:
    """Though the other one has sent something before, which then was let in by policy."""
    near = scene.near.address("mapped"), TARGET
    scene.say(None, {"near": {ANY_PORT: ALLOW}})
    with bind(scene.client, 7012) as own:
        scene.near.socket.sendto(b"unasked", (f"::ffff:{scene.client.v4}", 7012))
        own.recv(10)
        assert _sends(own, near)
        scene.near.socket.recv(10)
        scene.say(None, {"near": NOBODY})
        assert not _sends(own, near)


def test_nothing_is_looked_at_where_nobody_is_captured_any_more(scene: DatagramScene) -> None:
    scene.say(None, closed={7000})
    scene.node.forget(scene.cookie)
    try:
        with bind(scene.client, 7000) as own:
            assert _outcome(scene.far, f"::ffff:{scene.client.v4}", own) == "in"
        assert not list(scene.node.folder.glob("netns/*"))
    finally:
        scene.capture()


def test_nothing_is_left_when_udp_is_let_go() -> None:
    """`--udp off` after on: what was refused goes; and the folder goes with capture."""
    require("root", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-udp-{os.getpid()}-{next(_numbers)}")
    try:
        with datagram_scene("udp-off", pins) as scene, scene.socket("v4") as client:
            scene.say([scene.far], {"near": NOBODY})
            to = scene.near.address("v4"), TARGET
            with pytest.raises(PermissionError):
                client.sendto(b"x", to)
            scene.node.end_datagrams()
            assert not list(scene.node.folder.glob("**/datagram*"))
            assert not list(scene.node.folder.glob("maps/udp*"))
            client.sendto(b"x", to)
            scene.near.answer()
    finally:
        unload(pins)
    assert not pins.exists()
