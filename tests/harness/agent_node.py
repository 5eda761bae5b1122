"""An agent with doubles of the data plane's owners: its control plane is real, its engine only takes note."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import xds_resources as xds
from harness.ads import MeshServer
from nodeagent.app.agent import Agent
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.access import AccessAnswer, AccessQuestion, AccessStep, Step
from nodeagent.dataplane.direct import DirectState
from nodeagent.dataplane.direct_probes import Verdict
from nodeagent.dataplane.direct_programs import Sweep
from nodeagent.dataplane.route_choice import RouteChoice, RouteQuestion
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.errors import CapabilityError, EngineError, NftError
from nodeagent.snapshot.address import format_address, parse_address
from nodeagent.snapshot.values import (
    EMPTY,
    Destination,
    DestinationNeeded,
    HostNeeded,
    Need,
    Snapshot,
    Use,
    View,
    VirtualHost,
)

REVIEWS = xds.fqdn("reviews")
OUTBOUND = f"outbound|9080||{REVIEWS}"
VIP = "10.96.0.7"


class FakeEngine:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.applied: Snapshot = EMPTY
        self.history: list[Snapshot] = []
        self.workloads: dict[str, str] = {}
        self.log: list[str] = []
        self.routed: list[tuple[str, RouteQuestion]] = []
        self.judged: list[AccessQuestion] = []
        self.choice: RouteChoice | None = None
        self.baggage: dict[str, str] = {}
        self.search: dict[str, str] = {}
        self.used: list[Use] = []
        self.refusing = ""
        self.on_need: Callable[[Need], None] | None = None

    def start(self) -> None:
        self.log.append("start")

    async def stop(self, drain_ms: int) -> None:
        self.log.append(f"stop {drain_ms}")

    def close(self) -> None:
        self.log.append("close")

    def add_workload(
        self,
        uid: str,
        namespace: Any,
        view: str,
        addresses: Iterable[bytes],
        *,
        identity: str = "",
        baggage: str = "",
        search: str = "",
    ) -> None:
        self.baggage[uid] = baggage
        self.search[uid] = search
        self.log.append(f"add {uid}")
        self.workloads[uid] = view

    def number(self, uid: str) -> int | None:
        return list(self.workloads).index(uid) + 1 if uid in self.workloads else None

    def set_identity(
        self, name: str, chain_pem: str, key_pem: str, bundle_pem: str, trust_domains: Sequence[str] = ()
    ) -> None:
        self.log.append(f"identity {name}")

    def remove_identity(self, name: str) -> None:
        self.log.append(f"no identity {name}")

    @contextlib.contextmanager
    def keeping_listeners(self, uid: str) -> Iterator[None]:
        self.log.append(f"keep {uid}")
        yield

    async def remove_workload(self, uid: str, drain_ms: int) -> None:
        self.log.append(f"remove {uid} {drain_ms}")
        self.workloads.pop(uid, None)

    def explain_name(self, question: str, search: str) -> Sequence[bytes]:
        return self.applied.names.get(question, ())

    def apply(self, snapshot: Snapshot) -> Sequence[Any]:
        if self.refusing:
            raise EngineError(self.refusing)
        self.applied = snapshot
        self.history.append(snapshot)
        return ()

    def settled(self) -> bool:
        return True

    def committed(self) -> int:
        return len(self.history)

    def watch(self, loop: asyncio.AbstractEventLoop, on_need: Callable[[Need], None]) -> None:
        self.on_need = on_need

    def unwatch(self) -> None:
        self.on_need = None

    def usage(self) -> list[Use]:
        used, self.used = self.used, []
        return used

    def counters(self) -> Sequence[Any]:
        return ()

    def connections(self, limit: int) -> Sequence[Any]:
        return ()

    def explain_route(self, table: str, question: RouteQuestion) -> RouteChoice | None:
        self.routed.append((table, question))
        return self.choice

    def explain_access(self, uid: str, question: AccessQuestion) -> AccessAnswer:
        if uid not in self.applied.inbound:
            raise EngineError("the workload's inbound configuration is not in force")
        self.judged.append(question)
        return AccessAnswer((AccessStep(Step.POLICY, ("p", "matched")),), False, 403, "why")

    def drain_stats(self) -> Sequence[Any]:
        return ()

    def drain_decisions(self) -> dict[Any, int]:
        return {}

    def drain_access_lines(self, form: Any) -> Sequence[Any]:
        return ()


class FakeCapture:
    cookie = 0

    def __init__(self, log: list[str], failing: bool) -> None:
        self._log = log
        self._failing = failing

    def apply(self) -> None:
        if self._failing:
            raise NftError("nft says no")
        self._log.append("capture")

    def release(self) -> None:
        self._log.append("release")

    def remove(self) -> None:
        self._log.append("uncapture")

    def set_open(self, open_: bool) -> None:
        self._log.append("open" if open_ else "not open")


class FakeAccelerator:
    """Tells what it was asked for."""

    def __init__(self) -> None:
        self.admitted: dict[int, tuple[bytes, ...]] = {}
        self.count = 0
        self.kept: list[set[int]] = []
        self.refusal = ""
        self.remaining = 0
        self.events: dict[str, int] = {}

    def admit(self, namespace: Any, addresses: Iterable[bytes]) -> int:
        if self.refusal:
            raise CapabilityError(self.refusal)
        self.count += 1
        cookie = self.count
        self.admitted[cookie] = tuple(addresses)
        return cookie

    def withdraw(self, cookie: int) -> None:
        del self.admitted[cookie]

    def settle(self, keep: Iterable[int]) -> None:
        self.kept.append(set(keep))

    def tend(self) -> bool:
        self.remaining = max(0, self.remaining - 1)
        return self.remaining > 0

    def state(self) -> DirectState:
        return DirectState((Verdict("splice", "differs", "as documented"),), Sweep(4, 100, 0), self.events)


class FakeDataplane:
    mode = "nft"
    reason = "a double"

    def __init__(self) -> None:
        self.accelerator = FakeAccelerator()
        self.settled: list[Any] = []
        self.closed = False
        self.the_engine = FakeEngine()
        self.failing = False

    def engine(self) -> FakeEngine:
        return self.the_engine

    def capture(self, namespace: Any) -> FakeCapture:
        return FakeCapture(self.the_engine.log, self.failing)

    def addresses(self, namespace: Any) -> Iterable[bytes]:
        return [parse_address("10.244.0.5")]

    def bypass(self) -> tuple[None, str]:
        return None, "a double"

    def datagrams(self) -> tuple[None, str]:
        return None, "a double"

    def flows(self) -> None:
        return None

    def settle(self, namespaces: Sequence[Any]) -> None:
        self.settled.append(namespaces)

    def capture_counters(self) -> dict[str, int]:
        return {"captured": 3}

    def capture_maps(self) -> list[Any]:
        return [
            SimpleNamespace(name="workloads", memory=1000, entries=4, limit=5, full=6),
            SimpleNamespace(name="original", memory=2000, entries=None, limit=None, full=0),
        ]

    def close(self) -> None:
        self.closed = True

    def check(self, host: VirtualHost) -> None:
        for route in host.routes:
            if route.path is not None and route.path.value == "(":
                raise ValueError(f"route {route.name}: missing )")


class FakeNamespace:
    closed = False
    fd = 0

    def close(self) -> None:
        self.closed = True


class Node:
    """An agent under test, its server and its engine."""

    def __init__(self, server: MeshServer, agent: Agent, dataplane: FakeDataplane) -> None:
        self.server = server
        self.agent = agent
        self.dataplane = dataplane
        self.engine = dataplane.the_engine

    async def enroll(self, name: str = "productpage-1", uid: str = "uid-1", account: str = "default") -> str:
        pod = EnrolledPod(uid, name, "default", account)
        await self.agent.enrolment.add(pod, FakeNamespace())  # type: ignore[arg-type]
        return self.engine.workloads[uid]

    def view(self, name: str) -> View:
        return self.engine.applied.views.get(name, View(name))

    def connect(self, view: str, address: str = VIP, port: int = 9080) -> None:
        assert self.engine.on_need is not None
        self.engine.on_need(DestinationNeeded("uid-1", view, parse_address(address), port))

    def request(self, view: str, host: str, table: str = "9080") -> None:
        assert self.engine.on_need is not None
        self.engine.on_need(HostNeeded("uid-1", view, f"{view}/{table}", host))

    async def until(self, condition: Callable[[], Any], what: str = "condition", timeout: float = 5) -> Any:
        async with asyncio.timeout(timeout):
            while not (result := condition()):
                await asyncio.sleep(0.005)
        return result

    async def destination(self, view: str, address: str = VIP, port: int = 9080) -> Destination:
        key = (parse_address(address), port)
        found = await self.until(lambda: self.view(view).destinations.get(key), f"{address}:{port}")
        assert isinstance(found, Destination)
        return found

    def endpoints(self, view: str, cluster: str = OUTBOUND) -> list[str]:
        found = self.view(view).endpoints.get(f"{view}/{cluster}", ())
        return [format_address(endpoint.address) for endpoint in found]


def config(server: MeshServer, directory: Path, **fields: Any) -> AgentConfig:
    return AgentConfig(
        node="node-a",
        xds=server.address,
        zds=directory / "zds.sock",
        admin=directory / "admin.sock",
        state=directory / "state",
        metrics="",
        ready="",
        drain=0.1,
        **fields,
    )


@contextlib.asynccontextmanager
async def running(server: MeshServer, directory: Path, **fields: Any) -> AsyncIterator[Node]:
    dataplane = FakeDataplane()
    agent = Agent(config(server, directory, **fields), dataplane)
    task = asyncio.create_task(agent.run())
    try:
        yield Node(server, agent, dataplane)
    finally:
        agent.stop()
        await task
