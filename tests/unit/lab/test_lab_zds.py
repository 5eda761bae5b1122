"""The CNI side of ZDS, against an agent's side made of a bare socket."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nodeagent.lab.zds import Enrolment, ZdsServer
from nodeagent.proto import zds_pb2


class Proxy:
    """What an agent does on the socket, one packet at a time."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.socket.connect(str(path))

    async def hello(self, version: int = zds_pb2.V1) -> None:
        await self._send(zds_pb2.ZdsHello(version=version).SerializeToString())

    async def receive(self) -> tuple[zds_pb2.WorkloadRequest, list[int]]:
        loop = asyncio.get_running_loop()
        for _ in range(500):
            with contextlib.suppress(BlockingIOError):
                data, descriptors, _, _ = socket.recv_fds(self.socket, 1024, 4)
                return zds_pb2.WorkloadRequest.FromString(data), descriptors
            await asyncio.sleep(0.01)
        raise AssertionError(f"no packet in time at {loop.time()}")

    async def ack(self, error: str = "") -> None:
        await self._send(zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=error)).SerializeToString())

    async def _send(self, packet: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, packet)

    async def snapshot(self) -> list[str]:
        """Read and acknowledge all up to the end of the snapshot; the names of the pods."""
        names = []
        while True:
            request, descriptors = await self.receive()
            for descriptor in descriptors:
                os.close(descriptor)
            await self.ack()
            if request.WhichOneof("payload") == "snapshot_sent":
                return names
            names.append(request.add.workload_info.name)


Connect = Callable[[], Proxy]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    agents: list[Proxy] = []

    def new() -> Proxy:
        agents.append(Proxy(tmp_path / "zds.sock"))
        return agents[-1]

    yield new
    for agent in agents:
        agent.socket.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ZdsServer]:
    server = ZdsServer(tmp_path / "zds.sock", lambda: None)
    server.start()
    yield server
    await server.close()


def pod(name: str, netns: Path = Path("/proc/self/ns/net")) -> Enrolment:
    return Enrolment(f"uid-{name}", name, "default", "account", netns)


async def until(condition: object) -> None:
    for _ in range(300):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not in time")


async def test_a_pod_comes_with_its_namespace(server: ZdsServer, connect: Connect) -> None:
    enrolment = pod("a")
    server.add(enrolment)
    agent = connect()
    await agent.hello()
    request, (descriptor,) = await agent.receive()
    info = request.add.workload_info
    assert (request.add.uid, info.name, info.namespace, info.service_account) == (
        "uid-a", "a", "default", "account",
    )  # fmt: skip
    assert os.fstat(descriptor).st_ino == Path("/proc/self/ns/net").stat().st_ino
    os.close(descriptor)
    assert not enrolment.enrolled, "not before the acknowledgement"
    await agent.ack()
    end, _ = await agent.receive()
    assert end.WhichOneof("payload") == "snapshot_sent"
    assert enrolment.enrolled
    assert not server.connected
    await agent.ack()
    await until(lambda: server.connected)


async def test_pods_come_and_go_while_connected(server: ZdsServer, connect: Connect) -> None:
    agent = connect()
    await agent.hello()
    assert await agent.snapshot() == []
    server.add(pod("a"))
    request, (descriptor,) = await agent.receive()
    os.close(descriptor)
    assert request.add.uid == "uid-a"
    await agent.ack()
    await until(lambda: server.enrolment("uid-a").enrolled)  # type: ignore[union-attr]
    server.remove("uid-a")
    request, _ = await agent.receive()
    assert getattr(request, "del").uid == "uid-a"
    await agent.ack()
    assert server.enrolment("uid-a") is None


async def test_a_refusal_is_shown_and_tried_again(server: ZdsServer, connect: Connect) -> None:
    enrolment = pod("a")
    server.add(enrolment)
    agent = connect()
    await agent.hello()
    _, (descriptor,) = await agent.receive()
    os.close(descriptor)
    await agent.ack("no room")
    await until(lambda: enrolment.error == "no room")
    assert not enrolment.enrolled
    await agent.receive()
    await agent.ack()
    request, (descriptor,) = await agent.receive()
    os.close(descriptor)
    assert request.add.uid == "uid-a"
    await agent.ack()
    await until(lambda: enrolment.enrolled)
    assert enrolment.error == ""


async def test_a_new_agent_gets_the_whole_snapshot(server: ZdsServer, connect: Connect) -> None:
    for name in ("a", "b"):
        server.add(pod(name))
    first = connect()
    await first.hello()
    assert await first.snapshot() == ["a", "b"]
    await until(lambda: server.connected)
    first.socket.close()
    await until(lambda: not server.connected)
    assert not server.enrolment("uid-a").enrolled  # type: ignore[union-attr]
    second = connect()
    await second.hello()
    assert await second.snapshot() == ["a", "b"]


async def test_a_new_agent_takes_over_from_a_living_one(server: ZdsServer, connect: Connect) -> None:
    server.add(pod("a"))
    first, second = connect(), connect()
    await first.hello()
    await first.snapshot()
    await second.hello()
    assert await second.snapshot() == ["a"]
    await until(lambda: server.connected)
    first.socket.close()
    await asyncio.sleep(0.05)
    assert server.enrolment("uid-a").enrolled, "the older one's end changes nothing"  # type: ignore[union-attr]


@pytest.mark.parametrize("version", [0, 7])
async def test_another_version_is_refused(server: ZdsServer, connect: Connect, version: int) -> None:
    agent = connect()
    await agent.hello(version) if version else await agent._send(b"")
    await until(lambda: server.last_error)
    assert "version 7" in server.last_error or "closed" in server.last_error


async def test_packets_out_of_turn_end_the_session(server: ZdsServer, connect: Connect) -> None:
    agent = connect()
    await agent.hello()
    await agent.snapshot()
    await until(lambda: server.connected)
    await agent.ack()
    await until(lambda: not server.connected)
    assert "out of turn" in server.last_error


async def test_a_pod_whose_namespace_is_gone_does_not_stop_the_others(
    server: ZdsServer, connect: Connect, tmp_path: Path
) -> None:
    gone, good = pod("gone", tmp_path / "nothing"), pod("good")
    server.add(gone)
    server.add(good)
    agent = connect()
    await agent.hello()
    assert await agent.snapshot() == ["good"]
    assert good.enrolled
    assert "nothing" in gone.error


async def test_a_pod_stays_captured_while_the_agent_is_away(server: ZdsServer, connect: Connect) -> None:
    enrolment = pod("a")
    server.add(enrolment)
    assert not enrolment.captured
    agent = connect()
    await agent.hello()
    await agent.snapshot()
    await until(lambda: server.connected)
    agent.socket.close()
    await until(lambda: not enrolment.enrolled)
    assert enrolment.captured
