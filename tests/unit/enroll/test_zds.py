"""The ZDS client against a CNI side that the test plays by hand over a real SOCK_SEQPACKET socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.enroll.zds import ZdsClient
from nodeagent.errors import NftError
from nodeagent.proto import zds_pb2
from nodeagent.xds.backoff import Backoff


class Recorder:
    """An enroller that notes what it is told."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[EnrolledPod, NetworkNamespace]] = {}
        self.calls: list[str] = []
        self.fail: Exception | None = None
        self.add_delay = 0.0
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def add(self, pod: EnrolledPod, netns: NetworkNamespace) -> None:
        self.calls.append(f"add {pod.uid}")
        await asyncio.sleep(self.add_delay)
        if self.fail is not None:
            raise self.fail
        self.pods[pod.uid] = (pod, netns)

    async def remove(self, uid: str) -> None:
        self.calls.append(f"remove {uid}")
        await self.may_go.wait()
        self.pods.pop(uid)[1].close()

    def synced(self) -> None:
        self.calls.append("synced")


class Plugin:
    """The CNI side: a listening socket and the connection of the client."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.connection: socket.socket | None = None

    async def accept(self) -> None:
        loop = asyncio.get_running_loop()
        self.connection, _ = await asyncio.wait_for(loop.sock_accept(self.listener), 5)
        self.connection.setblocking(False)
        hello = await asyncio.wait_for(loop.sock_recv(self.connection, 1024), 5)
        assert zds_pb2.ZdsHello.FromString(hello).version == zds_pb2.V1

    async def raw(self, data: bytes, descriptors: list[int] | None = None) -> str:
        """Send a packet; the error text of the answer."""
        assert self.connection is not None
        socket.send_fds(self.connection, [data], descriptors or [])
        loop = asyncio.get_running_loop()
        answer = await asyncio.wait_for(loop.sock_recv(self.connection, 1024), 5)
        assert answer, "the client hung up"
        return str(zds_pb2.WorkloadResponse.FromString(answer).ack.error)

    async def add(self, uid: str, fd: int, name: str = "web") -> str:
        info = zds_pb2.WorkloadInfo(name=name, namespace="shop", service_account="sa")
        request = zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid=uid, workload_info=info))
        return await self.raw(request.SerializeToString(), [fd])

    async def delete(self, uid: str) -> str:
        return await self.raw(zds_pb2.WorkloadRequest(**{"del": {"uid": uid}}).SerializeToString())

    async def keep(self, uid: str) -> str:
        return await self.raw(zds_pb2.WorkloadRequest(keep={"uid": uid}).SerializeToString())

    async def snapshot_sent(self) -> str:
        return await self.raw(zds_pb2.WorkloadRequest(snapshot_sent={}).SerializeToString())

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()
        self.connection = None

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.listener.close()
        self.path.unlink(missing_ok=True)


@asynccontextmanager
async def session(tmp_path: Path, **options: object) -> AsyncIterator[tuple[Plugin, Recorder, ZdsClient]]:
    plugin = Plugin(tmp_path / "zds.sock")
    recorder = Recorder()
    client = ZdsClient(str(plugin.path), recorder, backoff=Backoff(0.001, 0.01), **options)  # type: ignore[arg-type]
    task = asyncio.create_task(client.run())
    try:
        await plugin.accept()
        yield plugin, recorder, client
    finally:
        recorder.may_go.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        plugin.close()
        for _, netns in recorder.pods.values():
            netns.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def netns_fd() -> object:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def other_fd() -> object:
    """Something with another inode; the client does not enter namespaces itself."""
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
    yield fd
    os.close(fd)


async def test_adds_what_is_named_and_tells_when_all_is_there(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, client):
        assert await plugin.add("u1", netns_fd) == ""
        pod, netns = recorder.pods["u1"]
        assert pod == EnrolledPod("u1", "web", "shop", "sa")
        assert netns.inode == os.fstat(netns_fd).st_ino
        assert not client.synced
        assert await plugin.snapshot_sent() == ""
        assert client.synced
        assert recorder.calls == ["add u1", "synced"]
        assert client.pods == [pod]


async def test_deletes_and_closes_the_descriptor(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, _):
        before = descriptors()
        await plugin.add("u1", netns_fd)
        assert descriptors() == before + 1
        assert await plugin.delete("u1") == ""
        assert recorder.calls == ["add u1", "remove u1"]
        assert descriptors() == before
        assert await plugin.delete("u1") == "", "deleting what is not there is done"


async def test_a_refused_pod_is_answered_with_the_reason_and_leaves_nothing(
    tmp_path: Path, netns_fd: int
) -> None:
    async with session(tmp_path) as (plugin, recorder, client):
        recorder.fail = NftError("nftables refused the capture ruleset: no")
        before = descriptors()
        assert await plugin.add("u1", netns_fd) == "u1: nftables refused the capture ruleset: no"
        recorder.fail = ZeroDivisionError("oops")
        assert await plugin.add("u1", netns_fd) == "u1: ZeroDivisionError: oops"
        assert descriptors() == before
        assert client.counters.add_failures == 2
        recorder.fail = None
        assert await plugin.add("u2", netns_fd) == "", "the next one is served"


async def test_answers_in_time_when_enrolling_hangs(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path, answer_seconds=0.05) as (plugin, recorder, _):
        recorder.add_delay = 60
        before = descriptors()
        assert "not enrolled within" in await plugin.add("u1", netns_fd)
        assert descriptors() == before


async def test_answers_a_deletion_in_time_while_connections_drain(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path, answer_seconds=0.05) as (plugin, recorder, _):
        await plugin.add("u1", netns_fd)
        recorder.may_go.clear()
        assert await plugin.delete("u1") == ""
        assert "still drain" in await plugin.add("u1", netns_fd)
        recorder.may_go.set()
        await asyncio.sleep(0.01)
        assert await plugin.add("u1", netns_fd) == ""


async def test_the_same_pod_again_changes_nothing(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, _):
        await plugin.add("u1", netns_fd)
        before = descriptors()
        assert await plugin.add("u1", netns_fd) == ""
        assert recorder.calls == ["add u1"]
        assert descriptors() == before


async def test_a_pod_with_a_new_namespace_or_name_is_enrolled_anew(
    tmp_path: Path, netns_fd: int, other_fd: int
) -> None:
    async with session(tmp_path) as (plugin, recorder, _):
        await plugin.add("u1", netns_fd)
        assert await plugin.add("u1", other_fd) == ""
        assert await plugin.add("u1", other_fd, name="renamed") == ""
        assert recorder.calls == ["add u1", "remove u1", "add u1", "remove u1", "add u1"]


async def test_a_reconnection_lets_go_of_what_is_not_named_again(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, client):
        for uid in ("stays", "kept", "goes"):
            await plugin.add(uid, netns_fd)
        await plugin.snapshot_sent()
        plugin.hang_up()
        await plugin.accept()
        assert {pod.uid for pod in client.pods} == {"stays", "kept", "goes"}, (
            "served while the plugin is away"
        )
        await plugin.add("stays", netns_fd)
        assert await plugin.keep("kept") == ""
        assert "goes" in recorder.pods
        await plugin.snapshot_sent()
        assert set(recorder.pods) == {"stays", "kept"}
        assert recorder.calls.count("add stays") == 1


async def test_keeping_an_unknown_pod_asks_for_its_namespace(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, _):
        assert "add it with its network namespace" in await plugin.keep("unknown")
        await plugin.snapshot_sent()
        assert recorder.calls == ["synced"]


async def test_the_number_of_workloads_is_limited(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path, max_workloads=1) as (plugin, _, client):
        assert await plugin.add("u1", netns_fd) == ""
        assert "its limit" in await plugin.add("u2", netns_fd)
        assert client.counters.over_limit == 1
        await plugin.delete("u1")
        assert await plugin.add("u2", netns_fd) == ""


async def test_malformed_packets_are_counted_answered_and_survived(tmp_path: Path, netns_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, client):
        before = descriptors()
        assert "undecodable" in await plugin.raw(b"\xff\xff\xff", [netns_fd])
        assert "none that this agent knows" in await plugin.raw(b"\x30\x01")
        assert "longer than 1024" in await plugin.raw(b"\x0a" * 2000, [netns_fd, netns_fd])
        nameless = zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload()).SerializeToString()
        assert "lacks its uid" in await plugin.raw(nameless, [netns_fd])
        bare = zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid="u1")).SerializeToString()
        assert "descriptor" in await plugin.raw(bare)
        assert client.counters.malformed == 5
        assert descriptors() == before, "descriptors of refused packets are closed"
        assert recorder.calls == []
        assert await plugin.add("u1", netns_fd) == ""


async def test_surplus_descriptors_are_closed(tmp_path: Path, netns_fd: int, other_fd: int) -> None:
    async with session(tmp_path) as (plugin, recorder, _):
        before = descriptors()
        request = zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid="u1")).SerializeToString()
        assert await plugin.raw(request, [netns_fd, other_fd, other_fd]) == ""
        assert descriptors() == before + 1
        assert recorder.pods["u1"][1].inode == os.fstat(netns_fd).st_ino


async def test_waits_for_a_plugin_that_is_not_there_yet(tmp_path: Path, netns_fd: int) -> None:
    recorder = Recorder()
    client = ZdsClient(str(tmp_path / "zds.sock"), recorder, backoff=Backoff(0.001, 0.01))
    task = asyncio.create_task(client.run())
    await asyncio.sleep(0.05)
    assert not client.connected
    assert "No such file" in client.last_error
    plugin = Plugin(tmp_path / "zds.sock")
    try:
        await plugin.accept()
        assert await plugin.snapshot_sent() == ""
        assert client.connected
        assert client.last_error == ""
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        plugin.close()
