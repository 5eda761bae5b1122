"""Workloads that share a namespace: services of a machine, each a cgroup."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import require
from harness.machine import Machine, machine
from harness.peer import dial, exchange, peer_server, read_line
from harness.processes import wait_until
from harness.raw_tcp import RAW_PORT, arrivals, syn

from nodeagent.dataplane.ebpf_node import unload

pytestmark = pytest.mark.netns

families = pytest.mark.parametrize("family", ["v4", "v6"])
PORT = 8080
UNDECLARED = 2222
HBONE = 15008
OUTBOUND, INBOUND = 15200, 15328  # of the first slot
_numbers = itertools.count()


@contextlib.contextmanager
def _machine() -> Iterator[Machine]:
    """`web` serves PORT, `api` serves 9090; both are captured."""
    require("root", "nft", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-test-shared-{os.getpid()}-{next(_numbers)}")
    try:
        with machine(pins) as made:
            made.agent.share("web", made.web.path, ports=[PORT])
            made.agent.share("api", made.api.path, ports=[9090])
            yield made
    finally:
        unload(pins)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Machine]:
    with _machine() as made:
        yield made


@pytest.fixture
def vm(lasting: Machine) -> Iterator[Machine]:
    """For tests that leave it as it was."""
    with lasting.test():
        yield lasting


@pytest.fixture
def fresh() -> Iterator[Machine]:
    """For tests after which it is another one."""
    with _machine() as made:
        yield made


def _address(vm: Machine, of: str, family: str) -> str:
    namespace = vm.here if of == "here" else vm.outside
    return namespace.v4 if family == "v4" else namespace.v6


def _by_workload(vm: Machine) -> dict[str, int]:
    """How many connections ended for each workload since it was last asked."""
    wait_until(lambda: vm.agent.ask("counters")["downstream_cx_active"] == 0, "all connections ended")
    found: dict[str, int] = {}
    for row in vm.agent.ask("stats"):
        if row["kind"] == 2:  # closed TCP connections
            found[row["workload"]] = found.get(row["workload"], 0) + row["count"]
    return found


@families
def test_each_group_is_a_workload_of_its_own(vm: Machine, family: str) -> None:
    target = _address(vm, "outside", family)
    with peer_server(vm.outside, PORT):
        with (
            vm.web.dial(target, PORT) as web,
            vm.api.dial(target, PORT) as api,
            vm.api.dial(target, PORT) as more,
        ):
            for client in (web, api, more):
                assert read_line(client).split()[0] == _address(vm, "here", family)
                assert exchange(client, b"hello" * 1000) == b"hello" * 1000
                assert client.getpeername()[:2] == (target, PORT), "the application sees whom it asked for"
        assert vm.connections() == 3
        assert _by_workload(vm) == {"web": 1, "api": 2}
        with dial(vm.here, target, PORT) as other:
            read_line(other)
        assert vm.connections() == 3, "who is in no group is nobody's workload"


@families
def test_only_declared_ports_are_captured(vm: Machine, family: str) -> None:
    target = _address(vm, "here", family)
    with peer_server(vm.here, PORT), peer_server(vm.here, UNDECLARED), peer_server(vm.here, 9090):
        with dial(vm.outside, target, UNDECLARED) as client:
            assert read_line(client).split()[0] == _address(vm, "outside", family)
        assert vm.connections() == 0, "ports that nobody declared are nobody's business"
        for port in (PORT, 9090, 9090):
            with dial(vm.outside, target, port) as client:
                assert read_line(client).split()[0] == target, "the agent asks from the machine's own address"
                assert exchange(client, b"hello" * 1000) == b"hello" * 1000
                assert client.getpeername()[:2] == (target, port)
        assert _by_workload(vm) == {"web": 1, "api": 2}
        for address in (target, "127.0.0.1" if family == "v4" else "::1"):
            with dial(vm.here, address, PORT) as client, vm.api.dial(address, PORT) as other:
                read_line(client), read_line(other)
        assert vm.connections() == 3, "what the machine says to itself stays its own"


def test_the_innermost_group_counts(vm: Machine) -> None:
    inner = vm.inner(vm.web, "inner")
    with peer_server(vm.outside, PORT):
        with inner.dial(vm.outside.v4, PORT) as client:
            read_line(client)
        assert _by_workload(vm) == {"web": 1}
        vm.share("inner", inner.path)
        with inner.dial(vm.outside.v4, PORT) as client, vm.web.dial(vm.outside.v4, PORT) as other:
            read_line(client), read_line(other)
        assert _by_workload(vm) == {"inner": 1, "web": 1}


@pytest.mark.parametrize(
    "option", [(socket.SOL_SOCKET, 36, 0x6E61), (socket.SOL_SOCKET, 25, b"eth0")], ids=["mark", "device"]
)
@families
def test_nothing_that_a_socket_may_have_lets_it_past(
    vm: Machine, family: str, option: tuple[int, int, int | bytes]
) -> None:
    target = _address(vm, "outside", family)
    with peer_server(vm.outside, PORT), vm.web.dial(target, PORT, options=(option,)) as client:
        assert read_line(client)
        assert exchange(client, b"hello") == b"hello"
    assert _by_workload(vm) == {"web": 1}


def test_a_raw_socket_is_no_way_out(vm: Machine) -> None:
    def attempt(opened: socket.socket) -> None:
        with contextlib.suppress(PermissionError):
            opened.sendto(syn(vm.here.v4, vm.outside.v4, PORT), (vm.outside.v4, 0))

    with vm.web.process.raw() as web, vm.bystander().raw() as other, peer_server(vm.outside, PORT):
        assert RAW_PORT not in arrivals(vm.outside, lambda: attempt(web))
        assert RAW_PORT in arrivals(vm.outside, lambda: attempt(other)), (
            "others may, and it would have arrived"
        )


def test_nobody_speaks_to_the_agents_ports(vm: Machine) -> None:
    for port in (OUTBOUND, INBOUND, INBOUND + 1):
        for namespace in (vm.here, vm.outside):
            with contextlib.suppress(ConnectionError), dial(namespace, vm.here.v4, port) as client:
                assert client.recv(1) == b""
    wait_until(lambda: vm.agent.ask("counters")["downstream_cx_active"] == 0, "no connection is left")
    with peer_server(vm.here, OUTBOUND + 100), dial(vm.outside, vm.here.v4, OUTBOUND + 100) as client:
        assert read_line(client), "ports of slots that nobody has are free"


@families
def test_a_dead_agent_means_refused_and_a_new_one_recovers(fresh: Machine, family: str) -> None:
    outside, here = _address(fresh, "outside", family), _address(fresh, "here", family)
    with peer_server(fresh.outside, PORT), peer_server(fresh.here, PORT), peer_server(fresh.here, UNDECLARED):
        fresh.agent.kill()
        with pytest.raises(ConnectionRefusedError):
            fresh.web.dial(outside, PORT)
        with pytest.raises(ConnectionRefusedError):
            dial(fresh.outside, here, PORT)
        for namespace, address, port in ((fresh.here, outside, PORT), (fresh.outside, here, UNDECLARED)):
            with dial(namespace, address, port) as client:
                assert read_line(client), "the rest of the machine goes on"
        with peer_server(fresh.here, OUTBOUND), peer_server(fresh.here, INBOUND):
            with pytest.raises(ConnectionRefusedError):
                fresh.web.dial(outside, PORT)
            with pytest.raises(ConnectionRefusedError):
                dial(fresh.outside, here, PORT)
        agent = fresh.start_agent()
        agent.share("api", fresh.api.path, ports=[9090])
        with pytest.raises(ConnectionRefusedError):
            fresh.web.dial(outside, PORT)
        with pytest.raises(ConnectionRefusedError):
            dial(fresh.outside, here, PORT)
        agent.share("web", fresh.web.path, ports=[PORT])
        with fresh.web.dial(outside, PORT) as out, dial(fresh.outside, here, PORT) as back:
            read_line(out), read_line(back)
        assert _by_workload(fresh) == {"web": 2}


def test_the_last_one_may_have_gone_while_no_agent_ran(fresh: Machine) -> None:
    assert fresh.pins is not None
    fresh.agent.kill()
    fresh.start_agent().ask("settle")
    assert not fresh.here.state()["nft"]
    assert not list(fresh.pins.glob("v*/netns/*"))
    with peer_server(fresh.outside, PORT), fresh.web.dial(fresh.outside.v4, PORT) as client:
        read_line(client)
    assert fresh.connections() == 0


def test_at_one_address_one_workload_takes_tunnels(vm: Machine) -> None:
    """A tunnel's server says who it is before it is asked for a port."""
    inner, other = vm.inner(vm.web, "inner"), vm.inner(vm.api, "inner")
    with peer_server(vm.here, HBONE), dial(vm.outside, vm.here.v4, HBONE) as client:
        assert read_line(client), "while nobody takes tunnels the port is free"
    vm.share("first", inner.path, identity="spiffe://cluster.local/ns/x/sa/first")
    vm.share("second", other.path, identity="spiffe://cluster.local/ns/x/sa/second")
    with peer_server(vm.here, HBONE):
        # Without a certificate it resets.
        with contextlib.suppress(ConnectionError), dial(vm.outside, vm.here.v4, HBONE) as client:
            assert client.recv(1000) == b""
        assert vm.connections() == 0
        vm.agent.ask("release", uid="first")
        with dial(vm.outside, vm.here.v4, HBONE) as client:
            assert read_line(client), "the second one has none"


def test_what_went_while_no_agent_ran_is_forgotten(fresh: Machine) -> None:
    fresh.agent.kill()
    fresh.start_agent().share("web", fresh.web.path, ports=[PORT])
    with peer_server(fresh.outside, PORT), peer_server(fresh.here, 9090):
        with pytest.raises(ConnectionRefusedError):
            fresh.api.dial(fresh.outside.v4, PORT)
        fresh.agent.ask("settle")
        with fresh.api.dial(fresh.outside.v4, PORT) as out, dial(fresh.outside, fresh.here.v4, 9090) as back:
            read_line(out), read_line(back)
        assert fresh.connections() == 0


@families
def test_an_open_workload_goes_on_without_the_agent(fresh: Machine, family: str) -> None:
    outside, here = _address(fresh, "outside", family), _address(fresh, "here", family)

    def both(expected: int) -> None:
        with fresh.web.dial(outside, PORT) as out, dial(fresh.outside, here, PORT) as back:
            for client in (out, back):
                assert exchange(client, b"hello")
        assert fresh.connections() == expected

    with peer_server(fresh.outside, PORT), peer_server(fresh.here, PORT), peer_server(fresh.here, 9090):
        fresh.agent.ask("let_pass", uid="web", passes=True)
        both(2)
        fresh.agent.kill()
        with fresh.web.dial(outside, PORT) as out, dial(fresh.outside, here, PORT) as back:
            assert read_line(out).split() == [here, str(out.getsockname()[1])], "nobody is in between"
            assert read_line(back).split()[0] == _address(fresh, "outside", family)
        with pytest.raises(ConnectionRefusedError):
            fresh.api.dial(outside, PORT)
        with pytest.raises(ConnectionRefusedError):
            dial(fresh.outside, here, 9090)
        agent = fresh.start_agent()
        both(0)
        agent.share("web", fresh.web.path, ports=[PORT])
        both(2)
        agent.kill()
        with pytest.raises(ConnectionRefusedError):
            fresh.web.dial(outside, PORT), "closed unless it was said again"


def test_a_group_that_is_made_anew_is_captured_again(vm: Machine) -> None:
    vm.share("unit", "nodeagent-test-none.slice/none.service", ports=[7070])
    inner = vm.inner(vm.web, "unit.service")
    vm.share("again", inner.path)
    inner = vm.made_anew(inner)
    with peer_server(vm.outside, PORT):
        assert vm.agent.ask("reapply", uid="again") is True
        with inner.dial(vm.outside.v4, PORT) as client:
            read_line(client)
        assert _by_workload(vm) == {"again": 1}


def test_a_released_workload_is_left_alone(fresh: Machine) -> None:
    with (
        peer_server(fresh.outside, PORT),
        peer_server(fresh.here, PORT),
        fresh.web.dial(fresh.outside.v4, PORT) as out,
        dial(fresh.outside, fresh.here.v4, PORT) as back,
    ):
        read_line(out), read_line(back)
        fresh.agent.ask("release", uid="web")
        with (
            fresh.web.dial(fresh.outside.v4, PORT) as plain,
            dial(fresh.outside, fresh.here.v4, PORT) as plain_back,
        ):
            read_line(plain), read_line(plain_back)
        assert fresh.connections() == 2
        assert exchange(out, b"still") == b"still"
        assert exchange(back, b"here") == b"here"


def test_nothing_is_left_after_the_last_workload(fresh: Machine) -> None:
    assert fresh.pins is not None
    assert "nodeagent" in fresh.here.state()["nft"]
    for uid in ("web", "api"):
        fresh.agent.ask("drain", uid=uid, drain_ms=0)
        fresh.agent.ask("remove", uid=uid)
    assert fresh.here.state() == fresh.network.add("fresh", default_route=True).state() | {
        key: text for key, text in fresh.here.state().items() if "routes" in key
    }
    assert not list(fresh.pins.glob("v*/netns/*"))
    with (
        peer_server(fresh.here, INBOUND),
        peer_server(fresh.here, OUTBOUND),
        dial(fresh.outside, fresh.here.v4, INBOUND) as client,
    ):
        assert read_line(client), "the ports are free again"
    fresh.agent.share("web", fresh.web.path, ports=[PORT])


def test_what_the_maps_hold_is_told(vm: Machine) -> None:
    maps = vm.agent.ask("maps")
    assert (maps["groups"]["entries"], maps["groups"]["limit"]) == (2, 1024)
    assert maps["ports"]["entries"] == 2 * (1 + 3), "one that is declared, three that are the agent's"
    assert (maps["ports"]["limit"], maps["ports"]["full"]) == (8192, 0)
    assert maps["listeners"]["memory"] > 0


def test_what_cannot_be_is_named(vm: Machine) -> None:
    for arguments, why in (
        (("more", vm.api.path, [PORT]), f"port {PORT} is web's already"),
        (("root", "/", []), "root cgroup holds everyone"),
        (("self", vm.agent_group, []), "is the agent's own"),
        (("deep", "/".join("abcdefghijklmnopq"), []), "deeper than 16 levels"),
    ):
        uid, cgroup, ports = arguments
        with pytest.raises(AssertionError, match=why):
            vm.agent.share(uid, cgroup, ports=ports)
    with peer_server(vm.here, PORT), dial(vm.outside, vm.here.v4, PORT) as client:
        read_line(client)
    assert _by_workload(vm) == {"web": 1}


def test_by_nft_it_cannot_be() -> None:
    require("root", "nft", "engine")
    with machine(None) as vm, pytest.raises(AssertionError, match="needs capture by eBPF"):
        vm.agent.share("web", vm.web.path, ports=[PORT])
