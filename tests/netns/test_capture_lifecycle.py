"""Enrolment, death of the agent, release and removal: what stays, what goes, and who can get in between."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pytest
from harness import Network, require, scratch_cgroup
from harness.capture_agent import CaptureAgent, Captured
from harness.peer import dial, exchange, peer_server, read_line
from harness.processes import wait_until

from nodeagent.dataplane.capture import Capture
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.nft import read_rules
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.errors import NetnsError, NftError

pytestmark = pytest.mark.netns


def test_a_namespace_is_left_as_it_was_found(pins: Path | None) -> None:
    with (
        Network("found") as network,
        scratch_cgroup("agent") as group,
        CaptureAgent(group.join, pins) as agent,
    ):
        pod = network.add("pod", default_route=True)
        before = pod.state()
        agent.enrol(pod)
        assert pod.state() != before
        assert {key: text for key, text in pod.state().items() if "sysctl" in key} == {
            key: text for key, text in before.items() if "sysctl" in key
        }
        agent.ask("remove", uid="pod")
        assert pod.state() == before
        agent.ask("drain", uid="pod", drain_ms=0)
        agent.enrol(pod)
        agent.ask("remove", uid="pod")
        assert pod.state() == before


def test_rp_filter_does_not_matter(captured: Captured) -> None:
    for name in ("all", "default", "lo", "eth0"):
        captured.pod.check(["sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=1"])
    with peer_server(captured.pod, 8080), dial(captured.outside, captured.pod.v4, 8080) as client:
        assert read_line(client).split()[0] == captured.outside.v4
    assert captured.connections() == 1


def test_connections_from_before_enrolment_go_on(pins: Path | None) -> None:
    with (
        Network("live") as network,
        scratch_cgroup("agent") as group,
        CaptureAgent(group.join, pins) as agent,
    ):
        pod, outside = network.add("pod"), network.add("out")
        with (
            peer_server(outside, 8080),
            peer_server(pod, 8080),
            dial(pod, outside.v4, 8080) as out,
            dial(outside, pod.v4, 8080) as back,
        ):
            read_line(out), read_line(back)
            agent.enrol(pod)
            assert exchange(out, b"still") == b"still"
            assert exchange(back, b"here") == b"here"
        assert agent.ask("counters")["downstream_cx_total"] == 0


def test_applying_again_disturbs_nobody(captured: Captured) -> None:
    with (
        peer_server(captured.outside, 8080),
        peer_server(captured.pod, 8080),
        dial(captured.pod, captured.outside.v4, 8080) as out,
        dial(captured.outside, captured.pod.v4, 8080) as back,
    ):
        read_line(out), read_line(back)
        before = captured.pod.state()
        for _ in range(3):
            assert captured.agent.ask("reapply", uid="pod") is True
            assert exchange(out, b"still") == b"still"
            assert exchange(back, b"here") == b"here"
        after = captured.pod.state()
    assert after == before


def test_released_connections_go_on_and_new_ones_are_plain(captured: Captured) -> None:
    with peer_server(captured.outside, 8080), peer_server(captured.pod, 8080):
        with (
            dial(captured.pod, captured.outside.v4, 8080) as out,
            dial(captured.outside, captured.pod.v4, 8080) as back,
        ):
            read_line(out), read_line(back)
            assert captured.connections() == 2
            captured.agent.ask("release", uid="pod")
            with dial(captured.pod, captured.outside.v4, 8080) as plain:
                read_line(plain)
            with dial(captured.outside, captured.pod.v4, 8080) as plain:
                read_line(plain)
            assert captured.connections() == 2
            assert exchange(out, b"still" * 1000) == b"still" * 1000
            assert exchange(back, b"here" * 1000) == b"here" * 1000
        captured.agent.ask("drain", uid="pod", drain_ms=1000)
        captured.agent.ask("remove", uid="pod")
        with dial(captured.pod, captured.outside.v4, 8080) as plain:
            read_line(plain)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_dead_agent_means_refused_and_a_new_one_recovers(captured: Captured, family: str) -> None:
    outside, pod = captured.address(captured.outside, family), captured.address(captured.pod, family)
    with peer_server(captured.outside, 8080), peer_server(captured.pod, 8080):
        rules = read_rules(captured.pod.handle)
        captured.agent.kill()
        assert read_rules(captured.pod.handle) == rules
        with pytest.raises(ConnectionRefusedError):
            dial(captured.pod, outside, 8080)
        with pytest.raises(ConnectionRefusedError):
            dial(captured.outside, pod, 8080)
        with dial(captured.pod, pod, 8080) as client:
            assert read_line(client), "the pod can still talk to itself"
        with (
            scratch_cgroup("second") as group,
            CaptureAgent(group.join, captured.agent.pins) as agent,
        ):
            agent.enrol(captured.pod)
            with dial(captured.pod, outside, 8080) as out, dial(captured.outside, pod, 8080) as back:
                assert read_line(out).split()[0] == pod
                assert read_line(back).split()[0] == outside
            assert agent.ask("counters")["downstream_cx_total"] == 2


@pytest.mark.parametrize("address", ["::", "specific"])
def test_nobody_takes_the_place_of_a_dead_agent(captured: Captured, address: str) -> None:
    """A program of the pod that listens on the agent's ports gets no connection that policy has not seen."""
    captured.agent.kill()
    bind = "::ffff:" + captured.pod.v4 if address == "specific" else address
    with peer_server(captured.pod, 15006, address=bind), peer_server(captured.pod, 15001, address=bind):
        with pytest.raises(ConnectionRefusedError):
            dial(captured.outside, captured.pod.v4, 8080)
        with pytest.raises(ConnectionRefusedError):
            dial(captured.pod, captured.outside.v4, 8080)


@pytest.mark.parametrize("address", ["::", "::ffff:127.0.0.1", "specific"])
def test_nobody_listens_beside_the_agent(captured: Captured, address: str) -> None:
    """Not even with SO_REUSEPORT and the agent's own user id."""
    bind = "::ffff:" + captured.pod.v4 if address == "specific" else address
    with (
        pytest.raises(OSError, match="in use"),
        peer_server(captured.pod, 15006, address=bind, reuse_port=True),
    ):
        pass


def test_talking_to_the_listeners_is_no_loop(captured: Captured) -> None:
    for port in (15001, 15006):
        for namespace in (captured.pod, captured.outside):
            with contextlib.suppress(ConnectionError), dial(namespace, captured.pod.v4, port) as client:
                assert client.recv(1) == b""
    # The client may hear of the end before the engine has counted it.
    wait_until(lambda: captured.agent.ask("counters")["downstream_cx_active"] == 0, "no connection is left")


def test_an_agent_port_that_is_taken_is_named(pins: Path | None) -> None:
    with (
        Network("taken") as network,
        scratch_cgroup("agent") as group,
        CaptureAgent(group.join, pins) as agent,
    ):
        pod = network.add("pod")
        before = pod.state()
        with (
            peer_server(pod, 15006),
            pytest.raises(AssertionError, match=r"15006.*in use; a program in the pod listens there"),
        ):
            agent.enrol(pod)
        assert pod.state() == before
        agent.enrol(pod)


def test_a_pod_without_ipv6(captured: Captured) -> None:
    pod = captured.network.add("v4only", ipv6=False)
    pod.check(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"])
    before = pod.state()
    captured.agent.enrol(pod, "v4only")
    with peer_server(captured.outside, 8080), dial(pod, captured.outside.v4, 8080) as client:
        assert read_line(client).split()[0] == pod.v4
    assert captured.connections() == 1
    captured.agent.ask("remove", uid="v4only")
    assert pod.state() == before


def test_changes_by_others_are_noticed_and_mended(captured: Captured) -> None:
    chain = "output_capture" if captured.agent.pins is None else "forward_past"
    subprocess.run(captured.pod.command(["nft", "flush", "chain", "inet", "nodeagent", chain]), check=True)
    rules = read_rules(captured.pod.handle)
    assert rules is not None
    assert not [rule for rule in rules if rule[0] == chain]
    assert captured.agent.ask("reapply", uid="pod") is True


def test_a_ruleset_that_is_refused_leaves_the_old_one() -> None:
    require("root", "nft")
    with Network("refused") as network, scratch_cgroup("agent") as group:
        pod = network.add("pod")
        good = Capture(pod.handle, CaptureRules.for_agent(group.group))
        good.apply()
        gone = Cgroup(group.group.directory, f"{group.group.nft_path}-gone", 1)
        with pytest.raises(NftError, match="the agent's cgroup must exist below /sys/fs/cgroup"):
            Capture(pod.handle, CaptureRules.for_agent(gone)).apply()
        assert good.in_force()
        good.remove()
        good.remove()
        assert read_rules(pod.handle) is None


def test_a_namespace_without_loopback_is_named() -> None:
    require("root", "nft")
    with Network("lo") as network, scratch_cgroup("agent") as group:
        pod = network.add("pod")
        pod.ip("link", "set", "lo", "down")
        with pytest.raises(NetnsError, match="ip link set lo up"):
            Capture(pod.handle, CaptureRules.for_agent(group.group)).apply()


def test_an_agent_with_many_connections_takes_on_another_pod(captured: Captured) -> None:
    """More than FD_SETSIZE descriptors, which libnftables would not survive."""
    other = captured.network.add("other", default_route=True)
    captured.agent.ask("hold", count=1100)
    captured.agent.enrol(other, "other")
    with peer_server(captured.outside, 8080), dial(other, captured.outside.v4, 8080) as client:
        assert read_line(client)
    captured.agent.ask("remove", uid="other")


@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
def test_after_the_last_workload_nothing_of_ebpf_is_left(pins: Path) -> None:
    require("bpftool")

    def programs() -> set[int]:
        """Ids of the programs whose links or maps are pinned by this test."""
        found = set()
        for path in pins.glob("v*/**/link*"):
            for pin in [path] if path.is_file() else path.iterdir():
                shown = subprocess.run(
                    ["bpftool", "-j", "link", "show", "pinned", str(pin)], capture_output=True
                )
                if shown.returncode == 0:
                    found.add(json.loads(shown.stdout)["prog_id"])
        return found

    def exists(program: int) -> bool:
        command = ["bpftool", "prog", "show", "id", str(program)]
        return subprocess.run(command, capture_output=True).returncode == 0

    with (
        Network("left") as network,
        scratch_cgroup("agent") as group,
        CaptureAgent(group.join, pins) as agent,
    ):
        agent.enrol(network.add("pod"))
        loaded = programs()
        assert len(loaded) == 6
        assert all(map(exists, loaded))
        agent.ask("remove", uid="pod")
    assert not pins.exists()
    wait_until(lambda: not any(map(exists, loaded)), "the kernel has freed the programs")


@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_an_open_workload_goes_on_without_the_agent(captured: Captured, family: str) -> None:
    outside, pod = captured.address(captured.outside, family), captured.address(captured.pod, family)

    def both() -> None:
        with dial(captured.pod, outside, 8080) as out, dial(captured.outside, pod, 8080) as back:
            assert read_line(out).split()[0] == pod
            assert read_line(back).split()[0] == outside

    with peer_server(captured.outside, 8080), peer_server(captured.pod, 8080):
        captured.agent.ask("let_pass", uid="pod", passes=True)
        both()
        assert captured.connections() == 2, "while there is an agent nothing is different"
        captured.agent.kill()
        both()
        with peer_server(captured.pod, 15001), peer_server(captured.pod, 15006):
            both()
        with scratch_cgroup("second") as group, CaptureAgent(group.join, captured.agent.pins) as agent:
            both()
            agent.enrol(captured.pod)
            both()
            assert agent.ask("counters")["downstream_cx_total"] == 2, "from its enrolment on"
            agent.kill()  # closed unless it is said again
            with pytest.raises(ConnectionRefusedError):
                dial(captured.pod, outside, 8080)
            with pytest.raises(ConnectionRefusedError):
                dial(captured.outside, pod, 8080)


def test_by_nft_no_workload_is_open(captured: Captured) -> None:
    if captured.agent.pins is None:
        with pytest.raises(AssertionError, match="needs capture by eBPF"):
            captured.agent.ask("let_pass", uid="pod", passes=True)
    captured.agent.ask("let_pass", uid="pod", passes=False)
