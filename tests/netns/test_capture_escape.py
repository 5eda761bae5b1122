"""Ways past capture that a program may try, and awkward but honest programs: in both modes."""

from __future__ import annotations

import contextlib
import ctypes
import re
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import Network, require, scratch_cgroup
from harness.capture_agent import CaptureAgent, Captured
from harness.netns import Namespace
from harness.peer import dial, exchange, peer_server, read_line
from harness.raw_tcp import RAW_PORT, arrivals, syn

pytestmark = pytest.mark.netns

families = pytest.mark.parametrize("family", ["v4", "v6"])
IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _open(namespace: Namespace, address: str, protocol: int = 0) -> socket.socket:
    opened = namespace.run(lambda: socket.socket(_family(address), socket.SOCK_STREAM, protocol))
    opened.settimeout(5)
    return opened


def _is_direct(client: socket.socket) -> bool:
    """Whether a server that tells its client's port is spoken to without an agent in between."""
    return int(read_line(client).split()[1]) == client.getsockname()[1]


# -- slipping past ---------------------------------------------------------------------------------------------


@families
def test_a_raw_socket_is_no_way_out(captured: Captured, family: str) -> None:
    source, target = captured.address(captured.pod, family), captured.address(captured.outside, family)
    opened = captured.pod.run(lambda: socket.socket(_family(source), socket.SOCK_RAW, socket.IPPROTO_TCP))

    def attempt() -> None:
        with contextlib.suppress(PermissionError):
            opened.sendto(syn(source, target, 8080), (target, 0))

    with opened, peer_server(captured.outside, 8080):
        assert RAW_PORT not in arrivals(captured.outside, attempt)
        captured.agent.ask("release", uid="pod")
        assert RAW_PORT in arrivals(captured.outside, attempt), "what is sent is a SYN that arrives"


@families
def test_mptcp_is_captured(captured: Captured, family: str) -> None:
    address = captured.address(captured.outside, family)
    with peer_server(captured.outside, 8080), _open(captured.pod, address, IPPROTO_MPTCP) as client:
        client.connect((address, 8080))
        assert read_line(client)
        assert captured.connections() == 1


@families
def test_fast_open_is_captured(captured: Captured, family: str) -> None:
    address = captured.address(captured.outside, family)
    captured.pod.check(["sysctl", "-qw", "net.ipv4.tcp_fastopen=1027"])
    with peer_server(captured.outside, 8080):
        for _ in range(2):  # the second has a cookie
            with _open(captured.pod, address) as client:
                client.settimeout(None)
                client.sendto(b"hello", MSG_FASTOPEN, (address, 8080))
                assert not _is_direct(client)
                assert client.recv(5) == b"hello"
    assert captured.connections() == 2


@families
def test_a_mapped_address_is_captured(captured: Captured, family: str) -> None:
    target = captured.outside.v6 if family == "v6" else f"::ffff:{captured.outside.v4}"
    with peer_server(captured.outside, 8080), _open(captured.pod, target) as client:
        client.connect((target, 8080))
        assert client.getpeername()[:2] == (target, 8080)
        assert not _is_direct(client)


def test_another_cgroup_is_no_way_out(captured: Captured) -> None:
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 8080), 5); "
        "print(s.recv(100).split()[1] == str(s.getsockname()[1]).encode())"
    )
    with scratch_cgroup("elsewhere") as group, peer_server(captured.outside, 8080):
        command = [sys.executable, "-c", script, captured.outside.v4]
        with captured.pod.start(command, prepare=group.join) as process:
            assert process.popen.wait(10) == 0, process.output
            assert process.output.strip() == "False"
    assert captured.connections() == 1


@families
def test_somebody_else_may_bind_to_a_device(captured: Captured, family: str) -> None:
    """Without rights that the loopback device would ask for."""
    require("setpriv")
    script = (
        "import socket, sys; a = sys.argv[1]; s = socket.socket(socket.AF_INET6 if ':' in a else socket.AF_INET); "
        "s.settimeout(5); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0'); s.connect((a, 8080)); "
        "print(s.recv(100).decode())"
    )
    address = captured.address(captured.outside, family)
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    with peer_server(captured.outside, 8080):
        answer = captured.pod.check([*drop, "/usr/bin/python3", "-c", script, address])
    assert answer.split()[0] == captured.address(captured.pod, family)
    assert captured.connections() == 1


@families
def test_the_dead_agent_is_not_passed_under_load(captured: Captured, family: str) -> None:
    """Killed in the middle of many connections: each is captured, or fails. Clients are known by ports that the agent
    does not choose."""
    address, own = captured.address(captured.outside, family), captured.address(captured.pod, family)
    ports = iter(range(10_000, 30_000))
    seen = {"captured": 0, "direct": 0, "failed": 0}
    stop = threading.Event()

    def connect() -> None:
        while not stop.is_set():
            try:
                with dial(captured.pod, address, 8080, source=(own, next(ports))) as client:
                    port = int(read_line(client).split()[1])
                    seen["direct" if port < 30_000 else "captured"] += 1
            except (OSError, AssertionError):
                seen["failed"] += 1

    with peer_server(captured.outside, 8080):
        threads = [threading.Thread(target=connect) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        captured.agent.kill()
        time.sleep(0.5)
        with scratch_cgroup("next") as group, CaptureAgent(group.join, captured.agent.pins) as agent:
            agent.enrol(captured.pod)
            time.sleep(0.5)
            stop.set()
            for thread in threads:
                thread.join()
            assert agent.ask("counters")["downstream_cx_total"] > 0, "it took over"
    assert seen["captured"] > 0
    assert seen["failed"] > 0
    assert seen["direct"] == 0


@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
def test_an_address_that_stands_for_clients_is_no_way_in(captured: Captured) -> None:
    """As the agent has for its connections to applications: from outside it is refused, before an application's
    listener hears of it."""
    source = "fd16:9254:7127:6::2"
    captured.outside.ip("addr", "add", f"{source}/128", "dev", "eth0", "nodad")
    with peer_server(captured.pod, 8080):
        with pytest.raises(OSError, match="timed out"):
            dial(captured.outside, captured.pod.v6, 8080, source=(source, 20_000), timeout=0.3)
        table = captured.pod.run(lambda: Path("/proc/thread-self/net/tcp6").read_text())
        assert f":{20_000:04X} " not in table, "no handshake has begun"


@families
@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
def test_what_is_forwarded_does_not_get_past(captured: Captured, family: str) -> None:
    """By a device that has just come: whatever gets to the other side is the agent's."""
    inner, source, target = _behind(captured, family)
    captured.pod.check(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    with peer_server(captured.outside, 8080), dial(inner, target, 8080, source=(source, 0)) as client:
        assert read_line(client).split()[0] == captured.address(captured.pod, family)
    assert captured.connections() == 1


def _behind(captured: Captured, family: str) -> tuple[Namespace, str, str]:
    """A namespace behind the pod, its address, and one that it can ask for."""
    pod, inner = captured.pod, captured.network._create(f"{captured.pod.name}-in")
    near, far, length = ("192.168.7.1", "192.168.7.2", 24) if family == "v4" else ("fd07::1", "fd07::2", 64)
    inner.ip("link", "add", "eth0", "type", "veth", "peer", "name", "inner", "netns", pod.name)
    pod.ip("addr", "add", f"{near}/{length}", "dev", "inner", *(["nodad"] if family == "v6" else []))
    inner.ip("addr", "add", f"{far}/{length}", "dev", "eth0", *(["nodad"] if family == "v6" else []))
    inner.ip("link", "set", "eth0", "up")
    pod.ip("link", "set", "inner", "up")
    inner.ip("route", "add", "default", "via", near)
    return inner, far, captured.address(captured.outside, family)


# -- honest, but awkward ---------------------------------------------------------------------------------------


@families
def test_a_socket_may_be_used_for_another_connection(captured: Captured, family: str) -> None:
    """First captured, then (after connect() to AF_UNSPEC) to loopback, then captured again."""
    address = captured.address(captured.outside, family)
    loopback = "::1" if family == "v6" else "127.0.0.1"
    with (
        peer_server(captured.outside, 8080),
        peer_server(captured.pod, 8081),
        _open(captured.pod, address) as client,
    ):
        for target, port in ((address, 8080), (loopback, 8081), (address, 8080)):
            client.connect((target, port))
            assert client.getpeername()[:2] == (target, port)
            assert _is_direct(client) == (target == loopback)
            _dissolve(client)
    assert captured.connections() == 2


def _dissolve(client: socket.socket) -> None:
    """connect(2) to AF_UNSPEC, which Python cannot say."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(client.fileno(), bytes(28), 28) == 0


@families
def test_the_app_keeps_its_own_address(captured: Captured, family: str) -> None:
    address, own = captured.address(captured.outside, family), captured.address(captured.pod, family)
    with peer_server(captured.outside, 8080), dial(captured.pod, address, 8080) as client:
        assert client.getsockname()[0] == own
    with (
        peer_server(captured.outside, 8080),
        dial(captured.pod, address, 8080, source=(own, 12_345)) as client,
    ):
        assert client.getsockname()[:2] == (own, 12_345)


@families
def test_a_nonblocking_connect(captured: Captured, family: str) -> None:
    address = captured.address(captured.outside, family)
    with peer_server(captured.outside, 8080), _open(captured.pod, address) as client:
        client.setblocking(False)
        client.connect_ex((address, 8080))
        assert select.select([], [client], [], 5)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        client.settimeout(5)
        assert not _is_direct(client)


@families
def test_a_client_may_have_the_port_that_the_agent_took(captured: Captured, family: str) -> None:
    """The agent speaks to the app from the client's address and a port of its own choice, which the client may then
    choose as well. Two connections, one tuple: each gets what is its own."""
    target = captured.address(captured.pod, family)
    mine = captured.address(captured.outside, family)
    with peer_server(captured.pod, 8080), dial(captured.outside, target, 8080) as first:
        port = int(read_line(first).split()[1])
        with dial(captured.outside, target, 8080, source=(mine, port)) as second:
            assert read_line(second).split()[0] == mine
            for number in range(20):
                size = 1 + number * 7000
                assert exchange(first, b"1" * size) == b"1" * size
                assert exchange(second, b"2" * size) == b"2" * size
    assert captured.connections() == 2


@families
def test_a_closed_port_is_refused_inbound(captured: Captured, family: str) -> None:
    """At once: the reset of the app's side finds back to the agent."""
    began = time.monotonic()
    with dial(captured.outside, captured.address(captured.pod, family), 9) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionError):
            client.recv(1)
    assert time.monotonic() - began < 2


def test_many_connections_both_ways(captured: Captured) -> None:
    """No connection gets another's bytes."""
    with peer_server(captured.pod, 8080), peer_server(captured.outside, 8080):
        ways = ((captured.pod, captured.outside.v4), (captured.outside, captured.pod.v4))
        clients = [dial(here, there, 8080) for _ in range(100) for here, there in ways]
        for client in clients:
            read_line(client)
        for number, client in enumerate(clients):
            client.sendall(struct.pack("!I", number) * 5000)
        for number, client in enumerate(clients):
            expected = struct.pack("!I", number) * 5000
            received = b""
            while len(received) < len(expected):
                piece = client.recv(65536)
                assert piece
                received += piece
            assert received == expected
            client.close()
    assert captured.connections() == 200


# -- modes -----------------------------------------------------------------------------------------------------


def test_ebpf_translates_nothing(captured: Captured) -> None:
    ruleset = captured.pod.check(["nft", "list", "ruleset"])
    assert ruleset
    assert bool(re.search(r"type nat|\bct ", ruleset)) == (captured.agent.pins is None)


@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
def test_either_mode_takes_over_from_the_other(pins: Path) -> None:
    with Network("over") as network:
        pod, outside = network.add("pod", default_route=True), network.add("out", default_route=True)
        before = pod.state()
        with peer_server(outside, 8080), peer_server(pod, 8080):
            for mode in (None, pins, None):
                with (
                    scratch_cgroup("agent") as group,
                    CaptureAgent(group.join, mode, settle_pins=pins) as agent,
                ):
                    agent.enrol(pod)
                    agent.ask("settle")
                    for here, there in ((pod, outside.v4), (outside, pod.v4)):
                        with dial(here, there, 8080) as client:
                            assert not _is_direct(client)
                    assert agent.ask("counters")["downstream_cx_total"] == 2
                    assert pins.exists() == (mode is not None)
                    agent.kill()
            with scratch_cgroup("last") as group, CaptureAgent(group.join) as agent:
                agent.enrol(pod)
                agent.ask("remove", uid="pod")
        assert pod.state() == before
