"""How `direct` begins and ends: opting in and out, agents that crash and follow each other, and that nothing stays."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Namespace, require, scratch_cgroup
from harness.direct import DirectPods, connect, direct_pods
from harness.processes import wait_until

from nodeagent.dataplane import direct as direct_module
from nodeagent.dataplane import direct_programs
from nodeagent.dataplane.direct import Direct
from nodeagent.dataplane.direct_probes import FAILS, Verdict
from nodeagent.dataplane.ebpf_node import netns_cookie
from nodeagent.errors import BpfMapFullError, CapabilityError
from nodeagent.snapshot.address import widen_address

pytestmark = pytest.mark.netns

ADMIT = """
import sys, time
from pathlib import Path
from typing import Any
from nodeagent.dataplane.cgroup import own_group
from nodeagent.dataplane.direct import Direct
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.routing import read_addresses
from nodeagent.snapshot.address import widen_address
direct = Direct(Path(sys.argv[1]), own_group())
for name in sys.argv[2:]:
    namespace = NetworkNamespace.open(name)
    addresses = [widen_address(raw) for raw in read_addresses(namespace)]
    direct.admit(namespace, addresses)
print("admitted", flush=True)
time.sleep(60)
"""


@pytest.fixture
def pods() -> Iterator[DirectPods]:
    require("root", "engine", "bpftool")
    with direct_pods("life") as pods:
        yield pods


def _bytes(pods: DirectPods, client: Namespace, server: Namespace) -> int:
    """How many of five bytes are redirected in a new connection."""
    near, far = connect(client, server)
    before = pods.counted("bytes")
    with near, far:
        near.sendall(b"12345")
        assert far.recv(10) == b"12345"
    return pods.counted("bytes") - before


def _ids(pods: DirectPods) -> set[str]:
    """What is in the kernel of `direct` here: maps and programs by their ids, which are not used again."""
    pinned = pods.pins / "direct" / f"v{direct_programs.ABI}"
    maps = [_bpftool("map", "show", "pinned", str(pin))["id"] for pin in (pinned / "maps").iterdir()]
    links = [_bpftool("link", "show", "pinned", str(pin))["prog_id"] for pin in (pinned / "links").iterdir()]
    return {f"map {number}" for number in maps} | {f"prog {number}" for number in links}


def _all_ids() -> set[str]:
    return {f"{kind} {each['id']}" for kind in ("map", "prog") for each in _bpftool(kind, "list")}


def _bpftool(*arguments: str) -> Any:
    done = subprocess.run(["bpftool", "-j", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_only_connections_between_two_that_opted_in_are_accelerated(pods: DirectPods) -> None:
    assert _bytes(pods, pods.one, pods.two) == 5
    assert _bytes(pods, pods.two, pods.one) == 5
    for client, server in ((pods.one, pods.other), (pods.other, pods.one)):
        joined = pods.counted("joined")
        assert _bytes(pods, client, server) == 0
        assert pods.counted("joined") == joined, "not even in the SOCKHASH"


def test_withdrawing_is_felt_at_once_and_the_last_one_takes_all_away(pods: DirectPods) -> None:
    before = _ids(pods)
    near, far = connect(pods.one, pods.two)
    with near, far:
        near.sendall(b"1")
        redirected = pods.counted("bytes")
        pods.direct.withdraw(netns_cookie(pods.two.handle))
        near.sendall(b"2")
        assert pods.counted("bytes") == redirected
        assert pods.counted("pass_withdrawn") == 1
        assert far.recv(1) + far.recv(1) == b"12"
        wait_until(lambda: not pods.direct.tend(), "the sockets are plain ones")
        assert pods.direct.state().sweep.sockets == 0
        pods.admit(pods.two)
        assert _bytes(pods, pods.one, pods.two) == 5
        near.sendall(b"3")
        assert far.recv(1) == b"3", "and go on as such"
    pods.direct.settle([])
    wait_until(lambda: not pods.direct.tend(), "all is gone")
    assert not pods.pins.exists()
    wait_until(lambda: not _all_ids() & before, "programs and maps are gone")


def test_what_waits_is_read_before_all_is_taken_away(pods: DirectPods) -> None:
    near, far = connect(pods.one, pods.two)
    with near, far:
        near.sendall(b"first ")
        pods.direct.settle([])
        near.sendall(b"second")
        near.close()
        for _ in range(3):
            wait_until(lambda: pods.direct.state().sweep.withdrawn == 1, "it waits for its reader")
        assert pods.direct.tend()
        pods.direct.close()
        assert pods.pins.exists(), "an agent that ends meanwhile leaves the rest to the next one"
        pods.direct.start()
        assert far.recv(100) == b"first "
        assert far.recv(100) == b"second"
        wait_until(lambda: not pods.direct.tend(), "now it is read")
    assert not pods.pins.exists()


def test_a_crash_leaves_it_in_force_and_the_next_agent_takes_over(pods: DirectPods) -> None:
    pods.direct.settle([])
    wait_until(lambda: not pods.direct.tend(), "the fixture's own is gone")
    names = [str(each.path) for each in (pods.one, pods.two)]
    argv = [sys.executable, "-c", ADMIT, str(pods.pins), *names]
    with scratch_cgroup("first") as group:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=group.join)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "admitted\n"
        live = connect(pods.one, pods.two)
        process.kill()
        process.wait()
    with live[0], live[1]:
        live[0].sendall(b"lives on")
        assert live[1].recv(100) == b"lives on"
        connect_meanwhile = connect(pods.one, pods.two)
        pods.direct.start()
        assert pods.counted("bytes") == 8, "the counters are the same ones"
        assert _joined_of_agent(pods) == 1, "of the agent that is there now"
        for near, far in (live, connect_meanwhile):
            before = pods.counted("bytes")
            near.sendall(b"12345")
            assert far.recv(100) == b"12345"
            assert pods.counted("bytes") == before + 5
            near.close()
            far.close()
    pods.admit(pods.one)
    pods.direct.settle([netns_cookie(pods.one.handle)])
    assert _bytes(pods, pods.one, pods.two) == 0, "who did not come again is forgotten"


def _acknowledged(sock: socket.socket) -> int:
    """Bytes that TCP has carried, by struct tcp_info, with the SYN."""
    found: int = struct.unpack_from("=Q", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)[0]
    return found


def test_connections_of_another_version_go_on_by_tcp(pods: DirectPods) -> None:
    """An upgrade, or the way back."""
    near, far = connect(pods.one, pods.two)
    with near, far:
        near.sendall(b"first ")
        assert (pods.counted("bytes"), _acknowledged(near)) == (6, 1)
        before = _ids(pods)
        pods.direct.close()
        folder = pods.pins / "direct"
        (folder / f"v{direct_programs.ABI}").rename(folder / "v0")
        pods.direct.start()
        assert [entry.name for entry in folder.iterdir()] == [f"v{direct_programs.ABI}"]
        near.sendall(b"second")
        wait_until(lambda: _acknowledged(near) == 7, "the second goes by TCP")
        with far.makefile("rb") as whole:
            assert whole.read(12) == b"first second"
        pods.admit(pods.one, pods.two)
        assert _bytes(pods, pods.one, pods.two) == 5
        assert pods.counted("joined") == 2, "the other connection is no matter"
    wait_until(lambda: not _all_ids() & before, "the other version's programs and maps are gone")


def _joined_of_agent(pods: DirectPods) -> int:
    """How many ends of a connection are taken in that the agent makes from one of the pods: the server's is."""
    script = (
        f"import socket; s = socket.create_connection(('{pods.two.v4}', 7000)); s.sendall(b'x'); s.recv(1)"
    )
    group = pods.direct._group  # the one that the fixture made for the agent
    joined, redirected = pods.counted("joined"), pods.counted("redirected")
    with pods.two.run(lambda: socket.create_server(("", 7000))) as listener:
        process = pods.one.start(
            [sys.executable, "-c", script],
            prepare=lambda: (group.directory / "cgroup.procs").write_text("0") and None,
        )
        with listener.accept()[0] as server:
            assert server.recv(1) == b"x"
            server.sendall(b"y")
            process.close()
    assert pods.counted("redirected") == redirected
    return pods.counted("joined") - joined


def test_the_agents_own_sockets_are_left_alone(pods: DirectPods) -> None:
    """Those that were made in its cgroup, in whichever namespace."""
    assert _joined_of_agent(pods) == 1


def test_an_address_of_two_is_nobodys(pods: DirectPods, caplog: pytest.LogCaptureFixture) -> None:
    twin = 1 << 62
    with caplog.at_level(logging.WARNING):
        pods.direct.admit_cookie(twin, [widen_address(socket.inet_aton(pods.two.v4))])
    assert "2 workloads have the address" in caplog.text
    assert _bytes(pods, pods.one, pods.two) == 0
    pods.direct.withdraw(twin)
    assert _bytes(pods, pods.one, pods.two) == 5


def test_more_than_there_is_room_for_is_refused_and_leaves_nothing(pods: DirectPods) -> None:
    mine = [number.to_bytes(16, "big") for number in range(1, 16_390)]
    with pytest.raises(BpfMapFullError):
        pods.direct.admit_cookie(1 << 62, mine)
    usage = {each.name: each.entries for each in pods.direct.maps()}
    assert (usage["direct_workloads"], usage["direct_addresses"]) == (2, 4)


def test_where_a_probe_fails_nobody_is_accelerated(
    pods: DirectPods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_module, "probe_direct", lambda: [Verdict("ordering", FAILS, "they overtook")])
    with scratch_cgroup("refused") as group:
        refused = Direct(pods.pins.with_name(f"{pods.pins.name}-refused"), group.group)
        with contextlib.closing(refused), pytest.raises(CapabilityError, match="ordering: they overtook"):
            refused.admit_cookie(1, [])
        assert not refused.state().sweep.sockets
    assert not pods.pins.with_name(f"{pods.pins.name}-refused").exists()


def test_agents_do_not_share_it(pods: DirectPods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_module, "LOCK_SECONDS", 0.1)
    with (
        scratch_cgroup("second") as group,
        contextlib.closing(Direct(pods.pins, group.group)) as second,
        pytest.raises(CapabilityError, match="another agent"),
    ):
        second.start()
    assert _bytes(pods, pods.one, pods.two) == 5
