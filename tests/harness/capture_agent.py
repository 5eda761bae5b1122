"""The data plane alone, as a process in a cgroup of its own: engine and capture (nft or ebpf), with no control
plane.

`CaptureAgent` starts this file and tells it what to do, a line of JSON each way. What it captures passes
through unless a test applies more; inbound ports are detected.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.asked_process import AskedProcess
from harness.netns import Namespace, Network

UID = "pod"
SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local"
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h


class CaptureAgent(AskedProcess):
    """Starts the process in the cgroup that `join` moves it into. With `pins`, a folder on a bpf filesystem, it
    captures by eBPF; `settle_pins` is where, without, it looks for what another has left. `dns`: DNS is captured,
    too."""

    def __init__(
        self,
        join: Callable[[], None],
        pins: Path | None = None,
        *,
        settle_pins: Path | None = None,
        dns: bool = False,
    ) -> None:
        self.pins = pins
        arguments = ["ebpf" if pins else "nft", str(pins or settle_pins or "/sys/fs/bpf/nodeagent-none")]
        arguments += ["dns"] if dns else []
        super().__init__("harness.capture_agent", *arguments, join=join)

    def enrol(self, namespace: Namespace, uid: str = UID) -> None:
        """Serve and capture the namespace."""
        self.ask("enrol", uid=uid, netns=str(namespace.path))

    def share(self, uid: str, cgroup: str, *, ports: Sequence[int] = (), identity: str = "") -> None:
        """Serve and capture a cgroup of the namespace that the agent is in. With an `identity` it takes tunnels, though
        there is no certificate."""
        self.ask("share", uid=uid, cgroup=cgroup, ports=list(ports), identity=identity)


@dataclass
class Captured:
    """`pod` is captured by `agent`; `outside` is not."""

    network: Network
    pod: Namespace
    outside: Namespace
    agent: CaptureAgent
    earlier: int = 0
    """Connections that the agent had got before the test."""

    def connections(self) -> int:
        """How many connections the agent has got in this test so far."""
        return int(self.agent.ask("counters")["downstream_cx_total"]) - self.earlier

    def address(self, namespace: Namespace, family: str) -> str:
        return namespace.v4 if family == "v4" else namespace.v6


def transparent_client(source: tuple[str, int], target: tuple[str, int]) -> socket.socket:
    """A connection from a foreign address (IP_TRANSPARENT)."""
    v6 = ":" in source[0]
    client = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(2)
    level, option = (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if v6 else (socket.IPPROTO_IP, IP_TRANSPARENT)
    client.setsockopt(level, option, 1)
    client.bind(source)
    client.connect(target)
    return client


class Service:
    """The process's side: a verb a method."""

    def __init__(self, wanted: str, pins: Path, *, dns: bool) -> None:
        # Not at the top: the test process does not need the extension.
        from nodeagent.dataplane.capture_mode import choose_mode
        from nodeagent.dataplane.cgroup import own_group
        from nodeagent.dataplane.engine import EngineOwner, EngineSettings

        self._mode, _ = choose_mode(wanted, own_group(), pins, dns=dns)
        settings = EngineSettings(workers=2, dns_flows=self._mode.dns_flows)
        self._engine = EngineOwner(settings, self._mode.opener, self._mode.dns_opener)
        self._engine.start()
        self._search = SEARCH if dns else ""
        self._pods: dict[str, tuple[Any, Any]] = {}
        """By UID: namespace and capture."""
        self._held: list[int] = []
        self._clients: list[socket.socket] = []

    # -- workloads --

    async def enrol(self, uid: str, netns: str) -> None:
        from nodeagent.dataplane.netns import NetworkNamespace

        self._take_on(uid, NetworkNamespace.open(netns))

    async def share(self, uid: str, cgroup: str, ports: list[int], identity: str) -> None:
        from nodeagent.dataplane.share import NamespaceShare, Share

        self._take_on(uid, NamespaceShare.of_own(Share(uid, cgroup, tuple(ports))), identity)

    def _take_on(self, uid: str, namespace: Any, identity: str = "") -> None:
        from nodeagent.dataplane.routing import read_addresses
        from nodeagent.snapshot.address import widen_address
        from nodeagent.snapshot.values import Inbound

        addresses = [widen_address(raw) for raw in read_addresses(namespace)]
        self._engine.add_workload(uid, namespace, "view", addresses, identity=identity, search=self._search)
        applied = self._engine.applied
        self._engine.apply(replace(applied, inbound={**applied.inbound, uid: Inbound()}))
        capture = self._mode.capture(namespace)
        capture.apply()
        self._pods[uid] = (namespace, capture)

    async def let_pass(self, uid: str, passes: bool) -> None:
        self._pods[uid][1].set_open(passes)

    async def release(self, uid: str) -> None:
        self._pods[uid][1].release()

    async def drain(self, uid: str, drain_ms: int) -> None:
        await self._engine.remove_workload(uid, drain_ms)

    async def remove(self, uid: str) -> None:
        namespace, capture = self._pods.pop(uid)
        capture.remove()
        namespace.close()

    async def reapply(self, uid: str) -> bool:
        self._pods[uid][1].apply()
        return bool(self._pods[uid][1].in_force())

    async def settle(self) -> None:
        self._mode.settle([namespace for namespace, _ in self._pods.values()])

    # -- what it does --

    async def know(self, names: dict[str, list[str]]) -> None:
        """Answer these names, and no others."""
        from nodeagent.snapshot.address import parse_address

        known = {name: tuple(map(parse_address, texts)) for name, texts in names.items()}
        self._engine.apply(replace(self._engine.applied, names=known))

    async def dial_as(self, uid: str, source: list[Any], target: list[Any]) -> str:
        """Connect as the engine does inbound, but from a port of the test's choice; what the server says
        first."""
        client = self._pods[uid][0].run(lambda: transparent_client(tuple(source), tuple(target)))
        self._clients.append(client)
        return str(client.recv(1000).decode())

    async def hold(self, count: int) -> None:
        """Have that many descriptors in use."""
        self._held.extend(os.dup(0) for _ in range(count))

    # -- what it tells --

    async def stats(self) -> list[dict[str, Any]]:
        return [asdict(row) | {"peer": row.peer.hex()} for row in self._engine.drain_stats()]

    async def maps(self) -> dict[str, Any]:
        return {usage.name: asdict(usage) for usage in self._mode.maps()}

    async def counters(self) -> dict[str, int]:
        return {counter.name: counter.value for counter in self._engine.counters()}

    async def connections(self) -> list[str]:
        return [str(connection) for connection in self._engine.connections(100)]

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await self._engine.stop(0)
        self._engine.close()
        self._mode.close()


async def main(wanted: str, pins: Path, *, dns: bool) -> None:
    """Serve the verbs until standard input ends."""
    from nodeagent.errors import NodeagentError

    service = Service(wanted, pins, dns=dns)
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        try:
            answer = {"result": await getattr(service, request.pop("verb"))(**request)}
        except (NodeagentError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    await service.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), dns="dns" in sys.argv[3:]))
