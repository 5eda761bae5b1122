"""Connections past the engine when agents come and go: those that live go on, and nothing stale is acted on."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Namespace, scratch_cgroup
from harness.bypass_scene import CLIENT, LIFE, SERVER, BypassScene, PinnedMaps, bypass_scene
from harness.capture_agent import CaptureAgent
from harness.peer import dial, exchange, peer_server, read_line
from harness.processes import wait_until

from nodeagent.dataplane.bpf import pinned_map_of_any_size
from nodeagent.dataplane.bypass_layout import NO_BYPASS, Ends, EventKind, Flow, Life
from nodeagent.dataplane.ebpf_node import ABI, netns_cookie
from nodeagent.snapshot.address import parse_address

pytestmark = [pytest.mark.netns, pytest.mark.parametrize("pins", ["ebpf"], indirect=True)]

PORT = 25_000


@pytest.fixture
def scene(pins: Path) -> Iterator[BypassScene]:
    """The client passes to the server by the server's own address, as the engine would take it there, too."""
    with bypass_scene("over", pins) as scene, peer_server(scene.server, 8080):
        scene.permit("v4", scene.server.v4, 8080)
        yield scene


@contextlib.contextmanager
def _next_agent(scene: BypassScene) -> Iterator[tuple[CaptureAgent, PinnedMaps]]:
    """One that has taken over and enrolled nobody yet."""
    assert scene.agent.pins is not None
    with scratch_cgroup("next") as group, CaptureAgent(group.join, scene.agent.pins) as agent:
        agent.ask("counters")
        maps = PinnedMaps(scene.agent.pins)
        try:
            yield agent, maps
        finally:
            maps.close()


def _enrol(scene: BypassScene, agent: CaptureAgent) -> None:
    agent.enrol(scene.client, "client")
    agent.enrol(scene.server, "server")


def _is_direct(scene: BypassScene) -> bool:
    with dial(scene.client, scene.server.v4, 8080) as client:
        return int(read_line(client).split()[1]) == client.getsockname()[1]


def test_live_connections_outlive_the_agent(scene: BypassScene) -> None:
    """And are told of to the next one, which had nothing to do with them."""
    with dial(scene.client, scene.server.v4, 8080) as live:
        greeting = len(read_line(live)) + 1
        scene.agent.kill()
        assert exchange(live, b"without") == b"without"
        with _next_agent(scene) as (agent, maps):
            assert exchange(live, b"with another") == b"with another"
            _enrol(scene, agent)
            assert exchange(live, b"enrolled") == b"enrolled"
            assert [flow.life for flow in maps.flows().values()] == [LIFE]
            live.close()
            wait_until(lambda: not maps.flows(), "the flow to go")
            opened, closed = maps.events()
            assert (opened.kind, closed.kind) == (EventKind.OPENED, EventKind.CLOSED)
            assert (closed.flow.life, closed.flow.source, closed.flow.destination) == (LIFE, CLIENT, SERVER)
            assert (closed.sent, closed.received) == (27, 27 + greeting)


def test_without_an_agent_nothing_passes(scene: BypassScene) -> None:
    """At once, at connect() and where it arrives; the next agent begins with nothing."""
    assert _is_direct(scene)
    _forge(scene)
    scene.agent.kill()
    with pytest.raises(ConnectionRefusedError):
        dial(scene.client, scene.server.v4, 8080)
    with pytest.raises(ConnectionRefusedError):
        dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, PORT))
    with _next_agent(scene) as (agent, maps):
        assert not any(list(each) for each in (maps.sources, maps.services, maps.backends, maps.access))
        for life in (scene.maps.life, maps.life):
            assert Life.unpack(life.get(bytes(4)) or b"") == Life(NO_BYPASS)
        _forge(scene)
        with pytest.raises(ConnectionRefusedError):
            dial(scene.outside, scene.server.v4, 8080, source=(scene.outside.v4, PORT))
        _enrol(scene, agent)
        assert not _is_direct(scene), "the engine's"
        scene.maps = maps
        scene.permit("v4", scene.server.v4, 8080)
        assert _is_direct(scene)


def test_an_agent_with_another_abi_opens_nothing(scene: BypassScene) -> None:
    """What the one before has captured stays refused until the next one has taken it on."""
    pins = scene.agent.pins
    assert pins is not None
    scene.agent.kill()
    (pins / f"v{ABI}").rename(pins / "v1")
    with _next_agent(scene) as (agent, _):
        for namespace in (scene.client, scene.outside):
            with pytest.raises(ConnectionRefusedError):
                dial(namespace, scene.server.v4, 8080)
        _enrol(scene, agent)
        assert not _is_direct(scene), "the engine's"
        agent.ask("settle")
        assert [each.name for each in pins.glob("v*")] == [f"v{ABI}"]
        assert not _is_direct(scene), "the engine's"


def test_what_an_agent_with_another_abi_has_left_is_known(scene: BypassScene) -> None:
    """Connections past the engine, which nobody would judge, end; sysctls that it had set return to what they were."""
    pins = scene.agent.pins
    assert pins is not None
    with dial(scene.client, scene.server.v4, 8080) as live:
        read_line(live)
        scene.agent.kill()
        (pins / f"v{ABI}").rename(pins / "v1")
        scene.server.check(["sysctl", "-qw", "net.ipv4.fwmark_reflect=1"])
        _add_flag(pins / "v1", scene.server, 0x200)
        with _next_agent(scene) as (agent, _):
            assert exchange(live, b"before") == b"before"
            agent.enrol(scene.server, "server")
            with pytest.raises(ConnectionError):
                live.recv(1)
            assert scene.server.check(["sysctl", "-n", "net.ipv4.fwmark_reflect"]).strip() == "0"


def _add_flag(version: Path, namespace: Namespace, flag: int) -> None:
    workloads = pinned_map_of_any_size(version / "maps" / "workloads")
    assert workloads is not None
    key = struct.pack("=Q", netns_cookie(namespace.handle))
    entry = workloads.get(key)
    assert entry is not None
    cgroup, level, flags = struct.unpack_from("=QII", entry)
    workloads[key] = struct.pack("=QII", cgroup, level, flags | flag) + entry[16:]
    workloads.close()


@pytest.mark.parametrize("mode", ["ebpf", "nft"])
def test_an_agent_without_bypass_ends_what_has_passed(scene: BypassScene, mode: str) -> None:
    """It would not judge such connections when policy changes."""
    with dial(scene.client, scene.server.v4, 8080) as live:
        read_line(live)
        scene.agent.kill()
        pins = {"pins" if mode == "ebpf" else "settle_pins": scene.agent.pins}
        with scratch_cgroup("next") as group, CaptureAgent(group.join, **pins) as agent:
            _enrol(scene, agent)
            assert exchange(live, b"before") == b"before"
            agent.ask("settle")
            with pytest.raises(ConnectionAbortedError):
                live.recv(1)


def _forge(scene: BypassScene) -> None:
    """An entry of the client's for a connection from outside, of the life that ends."""
    ends = Ends(parse_address(scene.outside.v4), parse_address(scene.server.v4), PORT, 8080)
    netns = netns_cookie(scene.client.handle)
    scene.maps.bypassed[ends.pack()] = Flow(bytes(16), 0, netns, 0, 0, LIFE, CLIENT, SERVER, 0).pack()


def _numbers(kind: str) -> set[int]:
    listed = subprocess.run(
        ["bpftool", "-j", kind, "list"], capture_output=True, text=True, check=True
    ).stdout
    return {each["id"] for each in json.loads(listed)}


def test_unloading_leaves_nothing(scene: BypassScene) -> None:
    """Neither maps nor programs, but what a socket still holds that lives on."""
    maps = scene.maps.numbers()
    assert maps <= _numbers("map")
    with dial(scene.client, scene.server.v4, 8080) as live:
        read_line(live)
        for uid in ("client", "server"):
            scene.agent.ask("remove", uid=uid)
        scene.agent.close()
        assert scene.agent.pins is not None
        assert not scene.agent.pins.exists()
        scene.maps.close()
        assert exchange(live, b"on") == b"on"
        wait_until(lambda: not maps & _numbers("map"), "the maps to go")
    with dial(scene.client, scene.server.v4, 8080) as plain:
        assert int(read_line(plain).split()[1]) == plain.getsockname()[1]


@dataclass(frozen=True)
class Attempt:
    began: float
    ended: float
    outcome: str


class Load:
    """250 connections a second from each of four threads, as far as the machine is that fast."""

    def __init__(self, scene: BypassScene) -> None:
        self.attempts: list[Attempt] = []
        self._scene = scene
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def _run(self, interval: float = 0.004) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            try:
                outcome = "direct" if _is_direct(self._scene) else "engine"
            except (OSError, AssertionError):
                outcome = "failed"
            self.attempts.append(Attempt(began, time.monotonic(), outcome))
            due += interval

    def wait_for(self, outcome: str, count: int) -> None:
        """Until that many more attempts have ended so."""
        seen = len(self.attempts)
        wait_until(
            lambda: sum(each.outcome == outcome for each in self.attempts[seen:]) >= count,
            f"{count} connections more that are {outcome}",
        )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_the_agent_is_killed_under_load(scene: BypassScene) -> None:
    """None of 1,000 connections a second passes without an agent, or by what an earlier one has said; and those that
    live are not disturbed."""
    with contextlib.ExitStack() as stack:
        live = [stack.enter_context(dial(scene.client, scene.server.v4, 8080)) for _ in range(20)]
        for each in live:
            read_line(each)
        with Load(scene) as load:
            load.wait_for("direct", 200)
            before = time.monotonic()
            scene.agent.kill()
            killed = time.monotonic()
            for each in live:
                assert exchange(each, b"x" * 1000) == b"x" * 1000
            load.wait_for("failed", 100)
            agent, scene.maps = stack.enter_context(_next_agent(scene))
            _enrol(scene, agent)
            load.wait_for("engine", 50)
            permitted = time.monotonic()
            scene.permit("v4", scene.server.v4, 8080)
            load.wait_for("direct", 100)
        for each in live:
            assert exchange(each, b"y" * 1000) == b"y" * 1000
        wait_until(lambda: len(scene.maps.flows()) == len(live), "the others' flows to go")
    assert {each.outcome for each in load.attempts if each.ended < before} == {"direct"}
    between = {each.outcome for each in load.attempts if each.began > killed and each.ended < permitted}
    assert between == {"failed", "engine"}
