"""What is captured, what is not, and that captured traffic arrives: the real engine, real programs."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest
from harness import require
from harness.capture_agent import Captured
from harness.peer import END, dial, exchange, peer_server, read_line
from harness.processes import wait_until

from nodeagent.dataplane.bpf import pinned_map
from nodeagent.dataplane.ebpf_node import ABI

pytestmark = pytest.mark.netns

families = pytest.mark.parametrize("family", ["v4", "v6"])
SO_MARK = 36
IPPROTO_MPTCP = 262


@families
def test_outbound_is_captured(shared: Captured, family: str) -> None:
    address = shared.address(shared.outside, family)
    with peer_server(shared.outside, 8080), dial(shared.pod, address, 8080) as client:
        assert read_line(client).split()[0] == shared.address(shared.pod, family)
        assert client.getpeername()[:2] == (address, 8080), "the app sees whom it asked for"
        assert shared.connections() == 1


@families
def test_inbound_is_captured_and_keeps_the_source_address(shared: Captured, family: str) -> None:
    with peer_server(shared.pod, 8080):
        with dial(shared.outside, shared.address(shared.pod, family), 8080) as client:
            assert read_line(client).split()[0] == shared.address(shared.outside, family)
            assert exchange(client, b"x" * 300_000) == b"x" * 300_000
        assert shared.connections() == 1


@families
@pytest.mark.parametrize("protocol", [0, IPPROTO_MPTCP], ids=["TCP", "MPTCP"])
def test_an_app_hears_of_its_client_however_it_asks(shared: Captured, family: str, protocol: int) -> None:
    version = socket.AF_INET if family == "v4" else socket.AF_INET6
    with shared.pod.run(lambda: socket.socket(version, socket.SOCK_STREAM, protocol)) as listener:
        listener.bind((shared.address(shared.pod, family), 0))
        listener.listen()
        listener.settimeout(5)
        target, port = listener.getsockname()[:2]
        with dial(shared.outside, target, port) as client:
            client.sendall(b"hello")
            connection, peer = listener.accept()
            with connection:
                assert peer[0] == shared.address(shared.outside, family)
                assert connection.getpeername() == peer
                assert connection.recv(5) == b"hello"


@families
def test_a_client_may_use_any_source_port(captured: Captured, family: str) -> None:
    """The engine connects with the client's address from ports of its own choice. Clients in the same range,
    and connections that follow each other on one port, are kept apart."""
    target = captured.address(captured.pod, family)
    mine = captured.address(captured.outside, family)
    with peer_server(captured.pod, 8080):
        for port in range(10_000, 10_050):
            for _ in range(2):
                with dial(captured.outside, target, 8080, source=(mine, port)) as client:
                    # The first to speak, so that the engine need not wait to find out what it is.
                    client.sendall(b"\0")
                    assert read_line(client).split()[0] == mine
                    # Closed from this side at once, so that the port is free again.
                    linger = b"\x01\0\0\0\0\0\0\0"
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@families
@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_a_port_may_be_used_again_at_once(captured: Captured, family: str, direction: str) -> None:
    """When the server ends first, what the agent accepted stays in TIME_WAIT for a minute: at some hundred
    connections a second the client's ports come round before that."""
    here, there = captured.pod, captured.outside
    if direction == "inbound":
        here, there = there, here
    mine, target = captured.address(here, family), captured.address(there, family)
    with peer_server(there, 8080):
        for _ in range(3):
            with dial(here, target, 8080, source=(mine, 10_000)) as client:
                read_line(client)
                client.sendall(END)
                assert client.recv(1) == b""


@families
def test_both_legs_may_have_the_same_addresses_and_ports(captured: Captured, family: str) -> None:
    """The client's connection to the pod and the engine's to the app in its name: one tuple, two
    connections."""
    pod, client_address = captured.address(captured.pod, family), captured.address(captured.outside, family)
    with peer_server(captured.pod, 8080), dial(captured.outside, pod, 8080) as client:
        read_line(client)
        port = client.getsockname()[1]
        seen = captured.agent.ask("dial_as", uid="pod", source=[client_address, port], target=[pod, 8080])
        assert seen == f"{client_address} {port}\n"
        assert exchange(client, b"x" * 100_000) == b"x" * 100_000


@families
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(((socket.SOL_SOCKET, SO_MARK, 0x539),), id="istio's mark"),
        pytest.param(((socket.SOL_SOCKET, SO_MARK, 0x111),), id="istio's connmark"),
        pytest.param(((socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0"),), id="device"),
        pytest.param(((socket.SOL_SOCKET, socket.SO_PRIORITY, 6),), id="priority"),
    ],
)
@pytest.mark.parametrize("bound", [False, True], ids=["", "bound source"])
def test_an_app_cannot_slip_past(
    shared: Captured, family: str, options: tuple[tuple[int, int, int | bytes], ...], bound: bool
) -> None:
    address = shared.address(shared.outside, family)
    source = (shared.address(shared.pod, family), 0) if bound else None
    with peer_server(shared.outside, 8080):
        with dial(shared.pod, address, 8080, options=options, source=source) as client:
            assert read_line(client).split()[0] == shared.address(shared.pod, family)
        assert shared.connections() == 1


@families
def test_another_user_is_captured(shared: Captured, family: str) -> None:
    require("setpriv", "curl")
    address = shared.address(shared.outside, family)
    host = f"[{address}]" if ":" in address else address
    with shared.outside.start([sys.executable, "-m", "http.server", "8080", "--bind", "::"]) as server:
        server.wait_for_port(8080)
        command = [
            "setpriv",
            "--reuid=1337",
            "--regid=1337",
            "--clear-groups",
            "curl",
            "-sf",
            f"http://{host}:8080/",
        ]
        assert "<html" in shared.pod.check(command)
        assert shared.connections() == 1


@families
def test_the_return_mark_is_no_way_out(shared: Captured, family: str) -> None:
    """An app that sets the very mark that leads answers back may harm its own connection; it does not get
    past."""
    address = shared.address(shared.outside, family)
    mark = ((socket.SOL_SOCKET, SO_MARK, 0x6E61),)
    with peer_server(shared.outside, 8080):
        try:
            with dial(shared.pod, address, 8080, options=mark, timeout=1) as client:
                read_line(client)
        except OSError:
            return
        assert shared.connections() == 1


@families
def test_the_pod_to_itself_and_loopback_are_left_alone(shared: Captured, family: str) -> None:
    own = shared.address(shared.pod, family)
    loopback = "127.0.0.1" if family == "v4" else "::1"
    with peer_server(shared.pod, 8080):
        for address in (own, loopback):
            with dial(shared.pod, address, 8080) as client:
                assert read_line(client).split()[0] == address
    assert shared.connections() == 0


def test_hbone_port_is_left_alone(shared: Captured) -> None:
    with peer_server(shared.pod, 15008), dial(shared.outside, shared.pod.v4, 15008) as client:
        assert read_line(client).split()[0] == shared.outside.v4
    assert shared.connections() == 0


@pytest.mark.parametrize(
    ("probe", "family"), [("169.254.7.127", "v4"), ("fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "v6")]
)
def test_kubelet_probes_are_left_alone(captured: Captured, probe: str, family: str) -> None:
    length = "32" if family == "v4" else "128"
    captured.outside.ip(
        "addr", "add", f"{probe}/{length}", "dev", "eth0", *(["nodad"] if family == "v6" else [])
    )
    via = captured.outside.v4 if family == "v4" else captured.outside.v6
    captured.pod.ip("route", "add", f"{probe}/{length}", "via", via)
    target = captured.address(captured.pod, family)
    with peer_server(captured.pod, 8080), dial(captured.outside, target, 8080, source=(probe, 0)) as client:
        assert read_line(client).split()[0] == probe
    assert captured.connections() == 0


def test_udp_is_left_alone(shared: Captured) -> None:
    def udp() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with shared.outside.run(udp) as server, shared.pod.run(udp) as client:
        server.bind((shared.outside.v4, 5353))
        server.settimeout(5)
        client.sendto(b"ping", (shared.outside.v4, 5353))
        data, peer = server.recvfrom(100)
        assert (data, peer[0]) == (b"ping", shared.pod.v4)


def test_what_comes_from_behind_the_pod_is_its_outbound(captured: Captured) -> None:
    """A program in a namespace of its own inside the pod has no way around."""
    inner = captured.network._create(f"{captured.pod.name}-in")
    inner.ip("link", "add", "eth0", "type", "veth", "peer", "name", "inner", "netns", captured.pod.name)
    inner.ip("link", "set", "eth0", "up")
    inner.ip("addr", "add", "192.168.7.2/24", "dev", "eth0")
    inner.ip("route", "add", "default", "via", "192.168.7.1")
    captured.pod.ip("link", "set", "inner", "up")
    captured.pod.ip("addr", "add", "192.168.7.1/24", "dev", "inner")
    with peer_server(captured.outside, 8080), dial(inner, captured.outside.v4, 8080) as client:
        assert read_line(client).split()[0] == captured.pod.v4, "the engine connects as the pod"
    assert captured.connections() == 1
    assert captured.agent.ask("stats")[0]["inbound"] is False


def _is_stopped(pid: int) -> bool:
    """All of its threads: a signal takes a while to get to them."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


@families
@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
def test_destinations_of_reset_connections_do_not_stay(captured: Captured, family: str) -> None:
    """A socket that was reset before it was accepted has no port any more by which to know what captured it."""
    target = captured.address(captured.outside, family)
    os.kill(captured.agent.pid, signal.SIGSTOP)
    wait_until(lambda: _is_stopped(captured.agent.pid), "the agent accepts nothing")
    try:
        for _ in range(20):
            with dial(captured.pod, target, 8080) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        os.kill(captured.agent.pid, signal.SIGCONT)
    assert captured.agent.pins is not None
    pin = captured.agent.pins / f"v{ABI}" / "maps" / "destinations"
    destinations = pinned_map(pin, 32, 24)
    assert destinations is not None
    deadline = time.monotonic() + 5
    while captured.connections() < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert captured.connections() == 20
    assert list(destinations) == []
    destinations.close()


def test_a_closed_port_is_seen_as_a_reset(shared: Captured) -> None:
    with pytest.raises(ConnectionResetError), dial(shared.pod, shared.outside.v4, 9) as client:
        client.recv(1)


@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_unmodified_programs_and_whole_bodies(shared: Captured, direction: str, tmp_path: Path) -> None:
    require("curl", "nginx", "nc")
    body = hashlib.sha256(b"seed").digest() * (1 << 15)
    (tmp_path / "body").write_bytes(body)
    server, client = (shared.outside, shared.pod) if direction == "outbound" else (shared.pod, shared.outside)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path};\n"
        f"fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};\n"
        f"server {{ listen [::]:8080 ipv6only=off; root {tmp_path}; }} }}\n"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    with server.start(["nginx", "-e", "stderr", "-c", str(configuration)]) as nginx:
        nginx.wait_for_port(8080)
        for address in (server.v4, f"[{server.v6}]"):
            out = tmp_path / "got"
            client.check(["curl", "-sf", "-o", str(out), f"http://{address}:8080/body"])
            assert out.read_bytes() == body
    with peer_server(server, 8081):
        assert client.v4 in client.check(["nc", "-N", server.v4, "8081"], stdin="hello")
