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


async def main(wanted: str, pins: Path, *, dns: bool) -> None:
    """Serve the verbs until standard input ends."""
    # Not at the top: the test process does not need the extension.
    from nodeagent.dataplane.capture_mode import choose_mode
    from nodeagent.dataplane.cgroup import own_group
    from nodeagent.dataplane.engine import EngineOwner, EngineSettings
    from nodeagent.dataplane.netns import NetworkNamespace
    from nodeagent.dataplane.routing import read_addresses
    from nodeagent.dataplane.share import NamespaceShare, Share
    from nodeagent.errors import NodeagentError
    from nodeagent.snapshot.address import parse_address, widen_address
    from nodeagent.snapshot.values import Inbound

    mode, _ = choose_mode(wanted, own_group(), pins, dns=dns)
    engine = EngineOwner(EngineSettings(workers=2, dns_flows=mode.dns_flows), mode.opener)
    engine.start()
    pods: dict[str, tuple[NetworkNamespace, Any]] = {}

    async def enrol(uid: str, netns: str) -> None:
        take_on(uid, NetworkNamespace.open(netns))

    async def share(uid: str, cgroup: str, ports: list[int], identity: str) -> None:
        take_on(uid, NamespaceShare.of_own(Share(uid, cgroup, tuple(ports))), identity)

    def take_on(uid: str, namespace: NetworkNamespace, identity: str = "") -> None:
        addresses = [widen_address(raw) for raw in read_addresses(namespace)]
        search = SEARCH if dns else ""
        engine.add_workload(uid, namespace, "view", addresses, identity=identity, search=search)
        engine.apply(replace(engine.applied, inbound={**engine.applied.inbound, uid: Inbound()}))
        capture = mode.capture(namespace)
        capture.apply()
        pods[uid] = (namespace, capture)

    async def know(names: dict[str, list[str]]) -> None:
        """Answer these names, and no others."""
        known = {name: tuple(map(parse_address, texts)) for name, texts in names.items()}
        engine.apply(replace(engine.applied, names=known))

    async def let_pass(uid: str, passes: bool) -> None:
        pods[uid][1].set_open(passes)

    async def release(uid: str) -> None:
        pods[uid][1].release()

    async def drain(uid: str, drain_ms: int) -> None:
        await engine.remove_workload(uid, drain_ms)

    async def remove(uid: str) -> None:
        namespace, capture = pods.pop(uid)
        capture.remove()
        namespace.close()

    async def reapply(uid: str) -> bool:
        pods[uid][1].apply()
        return pods[uid][1].in_force()

    async def settle() -> None:
        mode.settle([namespace for namespace, _ in pods.values()])

    async def stats() -> list[dict[str, Any]]:
        return [asdict(row) | {"peer": row.peer.hex()} for row in engine.drain_stats()]

    async def maps() -> dict[str, Any]:
        return {usage.name: asdict(usage) for usage in mode.maps()}

    async def counters() -> dict[str, int]:
        return {counter.name: counter.value for counter in engine.counters()}

    async def connections() -> list[str]:
        return [str(connection) for connection in engine.connections(100)]

    async def dial_as(uid: str, source: list[Any], target: list[Any]) -> str:
        """Connect as the engine does inbound, but from a port of the test's choice; what the server says
        first."""
        client = pods[uid][0].run(lambda: transparent_client(tuple(source), tuple(target)))
        kept.append(client)
        return client.recv(1000).decode()

    async def hold(count: int) -> None:
        """Have that many descriptors in use."""
        held.extend(os.dup(0) for _ in range(count))

    held: list[int] = []
    kept: list[socket.socket] = []
    verbs: dict[str, Any] = {
        verb.__name__: verb
        for verb in (
            enrol,
            know,
            share,
            let_pass,
            release,
            drain,
            remove,
            reapply,
            settle,
            hold,
            stats,
            counters,
            maps,
            connections,
            dial_as,
        )
    }
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        try:
            answer = {"result": await verbs[request.pop("verb")](**request)}
        except (NodeagentError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    for client in kept:
        client.close()
    await engine.stop(0)
    engine.close()
    mode.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), dns="dns" in sys.argv[3:]))
