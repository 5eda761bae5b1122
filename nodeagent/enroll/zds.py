"""The ZDS client: how a CNI plugin (istio-cni, ours, the lab) hands this node's workloads to the agent.

The plugin listens on a SOCK_SEQPACKET socket. After our hello it sends one request at a time and awaits its
acknowledgement within five seconds: add (with the network namespace's descriptor), keep (as add, where the
plugin has no descriptor any more), del, and snapshot_sent once all workloads that were there at the hello
have been named.

The agent serves on while the plugin is away. After a reconnection what the new snapshot does not name is let
go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.enroll.enroller import EnrolledPod, Enroller
from nodeagent.enroll.packet_socket import Packet, PacketSocket
from nodeagent.errors import EnrollError, NodeagentError
from nodeagent.proto import zds_pb2
from nodeagent.xds.backoff import Backoff

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 4.5
"""The plugin gives up after 5 s and connects again."""
MAX_WORKLOADS: Final = 4096
"""More than any kubelet runs (its own default limit is 110)."""


@dataclass(slots=True)
class ZdsCounters:
    """What has happened since the start."""

    connections: int = 0
    added: int = 0
    add_failures: int = 0
    removed: int = 0
    malformed: int = 0
    over_limit: int = 0


class _Disconnected(Exception):
    """The plugin closed the connection."""


class ZdsClient:
    """Keeps a connection to the plugin's socket and tells the enroller. run() until cancelled."""

    def __init__(
        self,
        path: str,
        enroller: Enroller,
        *,
        max_workloads: int = MAX_WORKLOADS,
        answer_seconds: float = ANSWER_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self._path = path
        self._enroller = enroller
        self._max_workloads = max_workloads
        self._answer_seconds = answer_seconds
        self._backoff = backoff or Backoff(initial=0.1, limit=10.0)
        self._pods: dict[str, tuple[EnrolledPod, int]] = {}
        """By uid: the pod and the inode of its namespace."""
        self._named: set[str] | None = None
        """Those named since the hello; None once the snapshot is complete."""
        self._removals: dict[str, asyncio.Task[None]] = {}
        self.counters = ZdsCounters()
        self.connected = False
        self.synced = False
        """Whether a snapshot has ever been complete."""
        self.last_error = ""

    @property
    def path(self) -> str:
        """The plugin's socket."""
        return self._path

    @property
    def pods(self) -> list[EnrolledPod]:
        """The workloads that are enrolled."""
        return [pod for pod, _ in self._pods.values()]

    async def run(self) -> None:
        """Connect, serve, and connect again; returns only by cancellation. Enrolled workloads stay
        enrolled."""
        while True:
            try:
                await self._session()
            except (_Disconnected, OSError) as error:
                self._note(f"{self._path}: {getattr(error, 'strerror', None) or error}")
            self.connected = False
            await asyncio.sleep(self._backoff.next())

    def _note(self, error: str) -> None:
        """Log once per kind of failure, not once per attempt."""
        if error != self.last_error:
            log.warning("no enrolment from %s", error)
        self.last_error = error

    async def _session(self) -> None:
        connection = PacketSocket.connect(self._path)
        try:
            await connection.send(zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString())
            self.counters.connections += 1
            self.connected, self._named = True, set()
            log.info("connected to %s", self._path)
            while True:
                await self._serve_one(connection)
        finally:
            connection.close()

    async def _serve_one(self, connection: PacketSocket) -> None:
        packet = await connection.receive()
        try:
            if not packet.data:
                raise _Disconnected("the CNI side closed the connection")
            # Only now: a plugin that hangs up at once is not to be tried without pause.
            self._backoff.reset()
            error = await self._answer(packet)
        finally:
            packet.close()
        await connection.send(_acknowledgement(error))

    async def _answer(self, packet: Packet) -> str:
        """Do what the packet asks; the text of what went wrong, or nothing."""
        try:
            if packet.cut:
                raise EnrollError("the packet is longer than 1024 bytes or has too many descriptors")
            request = zds_pb2.WorkloadRequest.FromString(packet.data)
            await self._handle(request, packet)
        except (DecodeError, EnrollError) as error:
            self.counters.malformed += isinstance(error, DecodeError) or packet.cut
            self.last_error = f"{error}" if isinstance(error, EnrollError) else f"undecodable packet: {error}"
            log.warning("ZDS request refused: %s", self.last_error)
            return self.last_error
        self.last_error = ""
        return ""

    async def _handle(self, request: zds_pb2.WorkloadRequest, packet: Packet) -> None:
        match request.WhichOneof("payload"):
            case "add":
                await self._add(request.add, packet)
            case "keep":
                self._keep(request.keep.uid)
            case "del":
                await self._delete(getattr(request, "del").uid)
            case "snapshot_sent":
                await self._snapshot_sent()
            case _:
                self.counters.malformed += 1
                raise EnrollError("the request is none that this agent knows (add, keep, del, snapshot_sent)")

    # -- requests --

    async def _add(self, request: zds_pb2.AddWorkload, packet: Packet) -> None:
        if not request.uid or not packet.descriptors:
            self.counters.malformed += 1
            raise EnrollError(
                f"add of workload {request.uid!r} lacks its uid or the descriptor of its namespace"
            )
        info = request.workload_info
        pod = EnrolledPod(request.uid, info.name, info.namespace, info.service_account)
        with contextlib.ExitStack() as closing:
            netns = closing.enter_context(NetworkNamespace(packet.take()))
            if self._named is not None:
                self._named.add(pod.uid)
            if await self._is_as_before(pod, netns.inode):
                return
            await self._take_on(pod, netns)
            # It is the enroller's now.
            closing.pop_all()

    async def _is_as_before(self, pod: EnrolledPod, inode: int) -> bool:
        """Whether the pod is enrolled already; if it has another namespace or identity now, the old one is
        let go."""
        known = self._pods.get(pod.uid)
        if known is None:
            return False
        if known == (pod, inode):
            return True
        await self._delete(pod.uid)
        return False

    async def _take_on(self, pod: EnrolledPod, netns: NetworkNamespace) -> None:
        if len(self._pods) >= self._max_workloads:
            self.counters.over_limit += 1
            raise EnrollError(
                f"{pod.uid}: this agent serves {self._max_workloads} workloads already, its limit"
            )
        if pod.uid in self._removals:
            raise EnrollError(f"{pod.uid}: connections of its former self still drain; try again")
        inode = netns.inode
        try:
            await asyncio.wait_for(self._enroller.add(pod, netns), self._answer_seconds)
        except TimeoutError:
            self.counters.add_failures += 1
            raise EnrollError(f"{pod.uid}: not enrolled within {self._answer_seconds} s; try again") from None
        except NodeagentError as error:
            self.counters.add_failures += 1
            raise EnrollError(f"{pod.uid}: {error}") from error
        except Exception as error:
            # One pod that cannot be taken on is not to take the others down.
            self.counters.add_failures += 1
            log.exception("enrolling %s failed", pod)
            raise EnrollError(f"{pod.uid}: {type(error).__name__}: {error}") from error
        self._pods[pod.uid] = (pod, inode)
        self.counters.added += 1

    def _keep(self, uid: str) -> None:
        if uid not in self._pods:
            raise EnrollError(f"workload {uid} is not enrolled; add it with its network namespace")
        if self._named is not None:
            self._named.add(uid)

    async def _delete(self, uid: str) -> None:
        """Let a workload go; the answer does not wait for its connections longer than the plugin does."""
        if self._pods.pop(uid, None) is None:
            return
        self.counters.removed += 1
        removal = self._removals[uid] = asyncio.create_task(self._remove(uid))
        await asyncio.wait({removal}, timeout=self._answer_seconds)

    async def _remove(self, uid: str) -> None:
        try:
            await self._enroller.remove(uid)
        except Exception:
            log.exception("letting go of workload %s failed", uid)
        finally:
            del self._removals[uid]

    async def _snapshot_sent(self) -> None:
        named, self._named = self._named, None
        if named is not None:
            gone = [uid for uid in self._pods if uid not in named]
            await asyncio.gather(*(self._delete(uid) for uid in gone))
        self.synced = True
        self._enroller.synced()


def _acknowledgement(error: str) -> bytes:
    # Cut, so that the packet fits.
    text = error.encode()[:900].decode(errors="ignore")
    return zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=text)).SerializeToString()
