"""DNS of a captured pod: what the agent answers, what goes on to the name server that was asked, and that the answer
seems to come from there; the real engine, real programs, real sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dnslib import QTYPE, RR, A, DNSRecord
from harness import Network, require, scratch_cgroup
from harness.capture_agent import CaptureAgent, Captured
from harness.peer import dial, peer_server

from nodeagent.dataplane.ebpf_dns import detach_dns
from nodeagent.dataplane.ebpf_node import ABI, unload

pytestmark = pytest.mark.netns

KNOWN, ELSEWHERE = "web.default.svc.cluster.local", "elsewhere.example.org"
VIP, FROM_SERVER = "10.96.0.7", "192.0.2.1"
IP_PKTINFO = 8  # linux/in.h
families = pytest.mark.parametrize("family", ["v4", "v6"])
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["nft", "ebpf"])
def asking(request: pytest.FixtureRequest) -> Iterator[Captured]:
    """A pod whose DNS is captured, and a name server outside that answers whatever it is asked with FROM_SERVER."""
    require("root", "nft", "engine")
    pins = (
        Path(f"/sys/fs/bpf/nodeagent-dns-{os.getpid()}-{next(_numbers)}") if request.param == "ebpf" else None
    )
    try:
        with scene(pins) as captured:
            yield captured
    finally:
        if pins is not None:
            unload(pins)


@contextlib.contextmanager
def scene(pins: Path | None) -> Iterator[Captured]:
    with (
        Network("dns") as network,
        scratch_cgroup("agent") as group,
        CaptureAgent(group.join, pins, dns=True) as agent,
    ):
        pod, outside = network.add("pod", default_route=True), network.add("out", default_route=True)
        agent.enrol(pod)
        agent.ask("know", names={KNOWN: [VIP]})
        with name_server(outside.run):
            yield Captured(network, pod, outside, agent)


@contextlib.contextmanager
def name_server(run: Callable[[Callable[[], socket.socket]], socket.socket]) -> Iterator[None]:
    """Answers at port 53 of all addresses of a namespace, by datagrams and connections."""

    def bind(kind: socket.SocketKind) -> socket.socket:
        made = socket.socket(socket.AF_INET6, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("::", 53))
        if kind is socket.SOCK_STREAM:
            made.listen()
        return made

    datagrams = run(lambda: bind(socket.SOCK_DGRAM))
    stream = run(lambda: bind(socket.SOCK_STREAM))

    def serve_datagrams() -> None:
        with contextlib.suppress(OSError):
            while True:
                message, client = datagrams.recvfrom(4096)
                if not message:
                    return
                datagrams.sendto(_answer(message), client)

    def serve_connections() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = stream.accept()
                with connection:
                    while length := connection.recv(2, socket.MSG_WAITALL):
                        reply = _answer(connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
                        connection.sendall(len(reply).to_bytes(2, "big") + reply)

    threads = [threading.Thread(target=serve, daemon=True) for serve in (serve_datagrams, serve_connections)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in (datagrams, stream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in threads:
            thread.join(2)


def _answer(message: bytes) -> bytes:
    query = DNSRecord.parse(message)
    reply = query.reply()
    reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(FROM_SERVER), ttl=5))
    packed: bytes = reply.pack()
    return packed


def query(name: str, type_: str = "A") -> bytes:
    packed: bytes = DNSRecord.question(name, type_).pack()
    return packed


def addresses(message: bytes) -> list[str]:
    return [str(record.rdata) for record in DNSRecord.parse(message).rr]


def client(captured: Captured, family: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    version = socket.AF_INET if family == "v4" else socket.AF_INET6
    made = captured.pod.run(lambda: socket.socket(version, kind))
    made.settimeout(2)
    return made


def server_of(captured: Captured, family: str) -> tuple[str, int]:
    if family == "mapped":
        return f"::ffff:{captured.outside.v4}", 53
    return captured.address(captured.outside, family), 53


@pytest.mark.parametrize("family", ["v4", "v6", "mapped"])
@pytest.mark.parametrize(("name", "expected"), [(KNOWN, VIP), (ELSEWHERE, FROM_SERVER)])
def test_a_datagram_is_answered_in_the_name_server_s_name(
    asking: Captured, family: str, name: str, expected: str
) -> None:
    server = server_of(asking, family)
    with client(asking, family) as sock:
        sock.sendto(query(name), server)
        reply, source = sock.recvfrom(4096)
        assert source[:2] == server
        assert addresses(reply) == [expected]


@pytest.mark.parametrize("family", ["v4", "v6", "mapped"])
@pytest.mark.parametrize(("name", "expected"), [(KNOWN, VIP), (ELSEWHERE, FROM_SERVER)])
def test_a_connected_socket_has_the_name_server_as_its_peer(
    asking: Captured, family: str, name: str, expected: str
) -> None:
    server = server_of(asking, family)
    with client(asking, family) as sock:
        sock.connect(server)
        assert sock.getpeername()[:2] == server
        for _ in range(2):
            sock.send(query(name))
            assert addresses(sock.recv(4096)) == [expected]


@pytest.mark.parametrize("family", ["v4", "v6", "mapped"])
def test_connections_are_answered_too(asking: Captured, family: str) -> None:
    server = server_of(asking, family)
    with client(asking, family, socket.SOCK_STREAM) as sock:
        sock.connect(server)
        assert sock.getpeername()[:2] == server
        for name, expected in ((KNOWN, VIP), (ELSEWHERE, FROM_SERVER), (KNOWN, VIP)):
            message = query(name)
            sock.sendall(len(message).to_bytes(2, "big") + message)
            length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
            assert addresses(sock.recv(length, socket.MSG_WAITALL)) == [expected]


@families
def test_one_socket_may_ask_several_name_servers(asking: Captured, family: str) -> None:
    """Each answer names the one that was asked; unconnected sockets, such as musl's, ask all of them."""
    first = server_of(asking, family)
    second = ("169.254.20.10", 53) if family == "v4" else ("fd99::53", 53)
    with client(asking, family) as sock:
        for server in (first, second):
            sock.sendto(query(KNOWN), server)
            reply, source = sock.recvfrom(4096)
            assert (source[:2], addresses(reply)) == (server, [VIP])


@families
def test_a_datagram_may_name_its_device(asking: Captured, family: str) -> None:
    """By ancillary data, as systemd-resolved does; it is led to loopback all the same."""
    index = asking.pod.run(lambda: socket.if_nametoindex("eth0"))
    with client(asking, family) as sock:
        if family == "v4":
            info = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i8x", index))
        else:
            info = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16xi", index))
        sock.sendmsg([query(KNOWN)], [info], 0, server_of(asking, family))
        assert addresses(sock.recv(4096)) == [VIP]


@families
def test_a_name_server_of_the_pod_s_own_is_left_alone(asking: Captured, family: str) -> None:
    before = asking.agent.ask("counters")["dns_requests_total"]
    own = asking.address(asking.pod, family)
    with name_server(asking.pod.run):
        for server in (own, "127.0.0.1" if family == "v4" else "::1"):
            with client(asking, family) as sock:
                sock.sendto(query(KNOWN), (server, 53))
                reply, source = sock.recvfrom(4096)
                assert (source[0], addresses(reply)) == (server, [FROM_SERVER])
    assert asking.agent.ask("counters")["dns_requests_total"] == before


@families
def test_other_datagrams_are_left_alone(asking: Captured, family: str) -> None:
    with client(asking, family) as sock:
        peer = asking.outside.run(lambda: socket.socket(sock.family, socket.SOCK_DGRAM))
        with peer:
            peer.bind((asking.address(asking.outside, family), 5353))
            peer.settimeout(2)
            sock.sendto(b"hello", peer.getsockname()[:2])
            data, source = peer.recvfrom(100)
            assert (data, source[0]) == (b"hello", asking.address(asking.pod, family))


@families
def test_the_agent_may_ask_from_a_port_that_a_client_had(asking: Captured, family: str) -> None:
    """Translation of the client's datagrams lingers; the agent's own question must not be taken for one of them."""
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = asking.pod.run(ports.read_text)
    asking.pod.run(lambda: ports.write_text("40000 40003"))
    try:
        for _ in range(12):
            with client(asking, family) as sock:
                sock.sendto(query(ELSEWHERE), server_of(asking, family))
                assert addresses(sock.recv(4096)) == [FROM_SERVER]
    finally:
        asking.pod.run(lambda: ports.write_text(before))


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_nobody_outside_can_ask_the_agent(asking: Captured, kind: socket.SocketKind) -> None:
    def ask() -> bytes:
        with asking.outside.run(lambda: socket.socket(socket.AF_INET, kind)) as sock:
            sock.settimeout(1)
            sock.connect((asking.pod.v4, 15053))
            sock.send(query(KNOWN))
            return sock.recv(100)

    with contextlib.suppress(ConnectionError):
        assert ask() == b"", "a connection that was captured inbound ends there"


def test_released_pods_ask_for_themselves(asking: Captured) -> None:
    asking.agent.ask("release", uid="pod")
    try:
        with client(asking, "v4") as sock:
            sock.sendto(query(KNOWN), server_of(asking, "v4"))
            assert addresses(sock.recv(4096)) == [FROM_SERVER]
    finally:
        assert asking.agent.ask("reapply", uid="pod")


def test_while_the_agent_does_not_listen_it_is_as_without_one(asking: Captured) -> None:
    """Such as when a new one has not taken the pod on yet."""
    asking.agent.ask("drain", uid="pod", drain_ms=0)
    for family in ("v4", "v6"):
        with client(asking, family) as sock:
            sock.connect(server_of(asking, family))
            sock.send(query(KNOWN))
            if asking.agent.pins is None:
                with pytest.raises(ConnectionRefusedError):
                    sock.recv(4096)
            else:
                assert addresses(sock.recv(4096)) == [FROM_SERVER]


def test_without_an_agent_ebpf_lets_datagrams_pass_and_nft_has_them_refused(asking: Captured) -> None:
    """Last, for this agent does not come back."""
    asking.agent.kill()
    with client(asking, "v4") as sock:
        sock.connect(server_of(asking, "v4"))
        sock.send(query(KNOWN))
        if asking.agent.pins is None:
            with pytest.raises(ConnectionRefusedError):
                sock.recv(4096)
        else:
            assert addresses(sock.recv(4096)) == [FROM_SERVER]


def test_nobody_answers_in_a_dead_agents_place(asking: Captured) -> None:
    """Of those who ask by TCP: a program of the pod that listens where the agent did gets no connection."""
    asking.agent.kill()
    with peer_server(asking.pod, 15053), pytest.raises(ConnectionRefusedError):
        dial(asking.pod, asking.outside.v4, 53)


def test_the_next_agent_may_leave_dns_alone() -> None:
    """What an agent pins for DNS ends with one that does not capture it; the rest goes on."""
    require("root", "nft", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-dns-{os.getpid()}-{next(_numbers)}")
    links = pins / f"v{ABI}" / "links"
    try:
        with Network("dnx") as network, scratch_cgroup("agent") as group:
            pod = network.add("pod", default_route=True)
            with CaptureAgent(group.join, pins, dns=True) as first:
                first.enrol(pod)
                assert (links / "dns_connect4").exists()
                first.kill()
            with CaptureAgent(group.join, pins) as second:
                second.enrol(pod)
                assert not any(link.name.startswith("dns_") for link in links.iterdir())
                assert (links / "outbound_connect4").exists()
                detach_dns(links.parent)
    finally:
        unload(pins)
