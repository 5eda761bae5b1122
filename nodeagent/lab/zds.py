"""The CNI side of ZDS: tells a node's agent of the node's pods over a SOCK_SEQPACKET socket.

The protocol has one packet a message and one outstanding request: each is acknowledged within five seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from nodeagent.errors import LabError
from nodeagent.proto import zds_pb2

_PACKET: Final = 1024
_ACK_SECONDS: Final = 5.0
_RETRY_FIRST: Final = 0.5
_RETRY_LAST: Final = 10.0


@dataclass(slots=True)
class Enrolment:
    """A pod to be captured, and how far that is. `uid` is opaque to the agent."""

    uid: str
    name: str
    namespace: str
    service_account: str
    netns: Path
    enrolled: bool = False
    captured: bool = False
    """Whether it has been enrolled once: it stays captured, also while the agent is away."""
    error: str = ""


class ZdsServer:
    """One node's listening socket. The newest connection is the agent; an older one may finish."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._pods: dict[str, Enrolment] = {}
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: _Session | None = None
        self.last_error = ""

    @property
    def connected(self) -> bool:
        """Whether an agent is connected and has been told of all pods."""
        return self._session is not None and self._session.snapshot_sent

    def enrolment(self, uid: str) -> Enrolment | None:
        """Return a pod's enrolment, or None when it is not to be captured."""
        return self._pods.get(uid)

    def start(self) -> None:
        """Listen; the agent may come and go."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(8)
        self._listener = listener
        self._spawn(self._accept(listener))

    async def close(self) -> None:
        """Stop listening and drop the agent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def add(self, pod: Enrolment) -> None:
        """Have a pod captured."""
        self._pods[pod.uid] = pod
        if self._session is not None:
            self._session.wake()

    def remove(self, uid: str) -> None:
        """Let a pod go."""
        if self._pods.pop(uid, None) is not None and self._session is not None:
            self._session.wake()
        self._changed()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        session = _Session(connection, self._pods, self._changed)
        try:
            await session.hello()
            self._session = session
            await session.run()
        except (OSError, LabError, DecodeError, TimeoutError) as error:
            self.last_error = str(error) or "the agent did not answer in time"
        finally:
            connection.close()
            if self._session is session:
                self._session = None
                for pod in self._pods.values():
                    pod.enrolled = False
            self._changed()


class _Session:
    """One connection of an agent: brings what it knows to what the node has, and keeps it there."""

    def __init__(
        self, connection: socket.socket, pods: dict[str, Enrolment], changed: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._pods = pods
        self._changed = changed
        self._known: dict[str, Enrolment] = {}
        self._wake = asyncio.Event()
        self.snapshot_sent = False

    def wake(self) -> None:
        """Have a look at the pods again."""
        self._wake.set()

    async def hello(self) -> None:
        """Read the agent's first packet."""
        packet = await asyncio.wait_for(self._receive(), _ACK_SECONDS)
        version = zds_pb2.ZdsHello.FromString(packet).version
        if version != zds_pb2.V1:
            raise LabError(f"the agent speaks ZDS version {version}, the lab speaks {zds_pb2.V1}")

    async def run(self) -> None:
        """Send all pods, the end of the snapshot, then changes, until the agent leaves."""
        for pod in list(self._pods.values()):
            await self._add(pod)
        await self._exchange(zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()))
        self.snapshot_sent = True
        self._changed()
        delay = _RETRY_FIRST
        while True:
            failed = not await self._reconcile()
            delay = min(delay * 2, _RETRY_LAST) if failed else _RETRY_FIRST
            await self._pause(delay if failed else None)

    async def _reconcile(self) -> bool:
        """Tell of pods that came, went or failed before; True when all stand as they should."""
        for uid in [uid for uid in self._known if self._pods.get(uid) is not self._known[uid]]:
            request = zds_pb2.WorkloadRequest()
            getattr(request, "del").uid = uid  # a keyword of Python
            await self._exchange(request)
            del self._known[uid]
        results = [await self._add(pod) for pod in list(self._pods.values()) if pod.uid not in self._known]
        return all(results)

    async def _pause(self, seconds: float | None) -> None:
        """Wait for a change, for `seconds`, or for the agent to close (then raises)."""
        loop = asyncio.get_running_loop()
        closed = asyncio.ensure_future(loop.sock_recv(self._connection, _PACKET))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            done, _ = await asyncio.wait(
                {closed, woken}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (closed, woken):
                task.cancel()
            await asyncio.gather(closed, woken, return_exceptions=True)
        self._wake.clear()
        if closed in done:
            problem = (
                "spoke out of turn" if not closed.exception() and closed.result() else "closed the connection"
            )
            raise LabError(f"the agent {problem}")

    async def _add(self, pod: Enrolment) -> bool:
        request = zds_pb2.WorkloadRequest(
            add=zds_pb2.AddWorkload(
                uid=pod.uid,
                workload_info=zds_pb2.WorkloadInfo(
                    name=pod.name, namespace=pod.namespace, service_account=pod.service_account
                ),
            )
        )
        try:
            descriptor = os.open(pod.netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            pod.error = f"network namespace {pod.netns}: {error.strerror}"
            return False
        try:
            pod.error = await self._exchange(request, descriptor)
        finally:
            os.close(descriptor)
        pod.enrolled = not pod.error
        pod.captured = pod.captured or pod.enrolled
        if pod.enrolled:
            self._known[pod.uid] = pod
        self._changed()
        return pod.enrolled

    async def _exchange(self, request: zds_pb2.WorkloadRequest, descriptor: int | None = None) -> str:
        """Send a request and return the error text of its acknowledgement (empty: done)."""
        packet = request.SerializeToString()
        assert len(packet) <= _PACKET, "names are bounded by the lab file"
        socket.send_fds(self._connection, [packet], [descriptor] if descriptor is not None else [])
        reply = await asyncio.wait_for(self._receive(), _ACK_SECONDS)
        return str(zds_pb2.WorkloadResponse.FromString(reply).ack.error)

    async def _receive(self) -> bytes:
        packet = await asyncio.get_running_loop().sock_recv(self._connection, _PACKET)
        if not packet:
            raise LabError("the agent closed the connection")
        return packet
