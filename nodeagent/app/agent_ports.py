"""What the agent needs of the data plane, as Protocols: tests put doubles in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.report import AccessRecord, Connection, Counter, Decision, LineFormat, Lines, StatRow
from nodeagent.snapshot.values import DestinationKey, Need, Snapshot, Use, VirtualHost

if TYPE_CHECKING:
    # Importing it loads the extension, which doubles do without.
    from nodeagent.dataplane.access import AccessAnswer, AccessQuestion
    from nodeagent.dataplane.bpf import MapUsage
    from nodeagent.dataplane.builder import Rejection
    from nodeagent.dataplane.bypass_flows import Sample
    from nodeagent.dataplane.bypass_layout import ServiceKey
    from nodeagent.dataplane.bypass_services import LocalWorkload, Slots
    from nodeagent.dataplane.datagram_end import Revision, SocketPeer
    from nodeagent.dataplane.datagram_plan import DatagramPlan
    from nodeagent.dataplane.datagrams import DatagramState
    from nodeagent.dataplane.direct import DirectState
    from nodeagent.dataplane.node_bypass import BypassState
    from nodeagent.dataplane.route_choice import RouteChoice, RouteQuestion


class Engine(Protocol):
    """The owner of the engine; its methods are those of dataplane.engine.EngineOwner."""

    def start(self) -> None:
        """Start the workers."""

    async def stop(self, drain_ms: int) -> None:
        """Drain and join the workers."""

    def close(self) -> None:
        """Free the engine."""

    def add_workload(
        self,
        uid: str,
        namespace: NetworkNamespace | None,
        view: str,
        addresses: Iterable[bytes],
        *,
        identity: str = "",
        baggage: str = "",
        search: str = "",
    ) -> None:
        """Serve a workload; with an identity, by HBONE too; with a search list, its DNS. `baggage` is what it tells the
        peers of its tunnels."""

    def add_proxy(self, uid: str, view: str, ports: Sequence[int]) -> None:
        """Listen on ports of the agent's own namespace as an explicit proxy."""

    async def remove_workload(self, uid: str, drain_ms: int) -> None:
        """Let a workload go."""

    def keeping_listeners(self, uid: str) -> AbstractContextManager[None]:
        """A workload that is removed and added again within keeps the sockets that it listens on."""

    def number(self, uid: str) -> int | None:
        """By which the engine knows a workload; None if it does not."""

    def set_identity(
        self, name: str, chain_pem: str, key_pem: str, bundle_pem: str, trust_domains: Sequence[str] = ()
    ) -> None:
        """Put a certificate in force. Peers must be of one of the trust domains; none: of its own."""

    def remove_identity(self, name: str) -> None:
        """Take an identity out of force."""

    def apply(self, snapshot: Snapshot) -> Sequence[Rejection]:
        """Put a snapshot in force."""

    def settled(self) -> bool:
        """Whether every worker goes by the last snapshot."""

    def committed(self) -> int:
        """How many changes have been published."""

    def watch(self, loop: asyncio.AbstractEventLoop, on_need: Callable[[Need], None]) -> None:
        """Tell of each thing that traffic waits for."""

    def unwatch(self) -> None:
        """End watch()."""

    def usage(self) -> list[Use]:
        """What was used since the last call."""

    def counters(self) -> Sequence[Counter]:
        """Engine-wide counters and gauges."""

    def connections(self, limit: int) -> Sequence[Connection]:
        """Live downstream connections."""

    def explain_route(self, table: str, question: RouteQuestion) -> RouteChoice | None:
        """Which way a request would take by a route table; None: no route takes it."""

    def explain_access(self, uid: str, question: AccessQuestion) -> AccessAnswer:
        """What the guards of a workload would say."""

    def explain_name(self, question: str, search: str) -> Sequence[bytes]:
        """The addresses that a name is answered with to workloads with a search list; none: others are asked."""

    def drain_stats(self) -> Sequence[StatRow]:
        """Statistics since the last call."""

    def drain_decisions(self) -> Mapping[Decision, int]:
        """What policies decided, of what drain_stats() has read."""

    def drain_access(self) -> Sequence[AccessRecord]:
        """Access records since the last call."""

    def drain_access_lines(self, form: LineFormat) -> Sequence[Lines]:
        """The same, as lines of a log: much cheaper than records."""


class Capture(Protocol):
    """The owner of what captures one workload's traffic (dataplane.capture.Capture). Each call blocks."""

    @property
    def cookie(self) -> int:
        """By which programs know the workload's own network namespace; 0 where none needs to."""

    def apply(self) -> None:
        """Capture."""

    def release(self) -> None:
        """Capture no new connections."""

    def remove(self) -> None:
        """Leave nothing behind."""

    def set_open(self, open_: bool) -> None:
        """Whether connections pass while the agent has no listener; CapabilityError if that cannot be."""


class Accelerator(Protocol):
    """The owner of the acceleration `direct` (dataplane.direct.Direct). Each call but state() blocks; CapabilityError
    or DataplaneError where something cannot be."""

    def admit(self, namespace: NetworkNamespace, addresses: Iterable[bytes]) -> int:
        """Accelerate a workload; returns what it is known by."""

    def withdraw(self, cookie: int) -> None:
        """Accelerate it no more."""

    def settle(self, keep: Iterable[int]) -> None:
        """Withdraw all but these."""

    def tend(self) -> bool:
        """Let go of what is withdrawn; whether something remains."""

    def state(self) -> DirectState:
        """What there is to show."""


class Flows(Protocol):
    """The owner of what is reported of connections past the engine (dataplane.node_flows.NodeFlows)."""

    def begin(self) -> None:
        """Follow them; DataplaneError if that is not possible."""

    def fileno(self) -> int:
        """Readable when there is much to report."""

    def look(self) -> Sample:
        """What live ones have carried. Blocks."""

    def note(self, sample: Sample) -> None:
        """Count it."""

    def counters(self) -> Sequence[Counter]:
        """What was counted of them."""


class Bypass(Protocol):
    """The owner of what passes the engine (dataplane.node_bypass.NodeBypass)."""

    def update(
        self,
        snapshot: Snapshot,
        workloads: Iterable[tuple[LocalWorkload, NetworkNamespace]],
        unusable: Collection[str],
    ) -> bool:
        """Go by these from now on; returns whether live connections are to be judged again."""

    @property
    def pending(self) -> bool:
        """Whether update() has done a part only and is to be called again."""

    def suspend(self, reason: str) -> None:
        """Let nothing pass the engine until the next update()."""

    def revoke(self) -> int:
        """End connections that are not allowed any more. Blocks."""

    def count_of(self, cookie: int, addresses: Collection[bytes]) -> int:
        """How many connections past the engine a workload has, by its namespace and addresses. Blocks."""

    def end_all_of(self, cookie: int, addresses: Collection[bytes], namespace: NetworkNamespace) -> int:
        """End these, and return how many they were. Blocks."""

    def state(self) -> BypassState:
        """How it is doing."""

    def explain(self, uid: str, asked: DestinationKey) -> Sequence[str]:
        """Whether a workload's connections would pass the engine, and why not."""


class Datagrams(Protocol):
    """The owner of UDP (dataplane.datagrams.Datagrams)."""

    @property
    def ended(self) -> int:
        """Connected sockets ended by end_sockets()."""

    def apply(self, services: Mapping[ServiceKey, Slots | None], plan: DatagramPlan) -> Revision:
        """Put changed services (None: gone) and a plan in force; returns what that means to connected sockets."""

    def guard(self, namespaces: Iterable[tuple[int, NetworkNamespace]]) -> None:
        """Have what arrives in namespaces of workloads, by their cookies, looked at."""

    def end_sockets(
        self,
        plan: DatagramPlan,
        here: Iterable[tuple[LocalWorkload, NetworkNamespace]],
        lost: Set[SocketPeer],
    ) -> int:
        """End connected sockets of workloads that may not send any more; returns how many. Blocks."""

    def counters(self) -> Mapping[str, int]:
        """What was decided, by kind."""

    def denials(self) -> Mapping[str, int]:
        """What policies denied, by name."""

    def state(self) -> DatagramState:
        """How much is in force."""


class Dataplane(Protocol):
    """Makes the owners."""

    @property
    def accelerator(self) -> Accelerator:
        """The one of this node."""

    @property
    def mode(self) -> str:
        """How workloads are captured: nft, ebpf or none."""

    @property
    def reason(self) -> str:
        """Why so."""

    def engine(self) -> Engine:
        """The engine, stopped."""

    def capture(self, namespace: NetworkNamespace) -> Capture:
        """The capture of a workload."""

    def bypass(self) -> tuple[Bypass | None, str]:
        """What lets connections within the node pass the engine; None: nothing does, and why."""

    def datagrams(self) -> tuple[Datagrams | None, str]:
        """What decides on UDP; None: nothing does, and why."""

    def flows(self) -> Flows | None:
        """What has the engine report of connections past it; None: there are none. After engine() and bypass()."""

    def settle(self, namespaces: Sequence[NetworkNamespace]) -> None:
        """The CNI side has named all workloads: forget what an earlier agent captured besides these. Blocks."""

    def capture_counters(self) -> Mapping[str, int]:
        """What capture itself counts, by name."""

    def capture_maps(self) -> Sequence[MapUsage]:
        """What the BPF maps of capture take, and how full they are."""

    def close(self) -> None:
        """Let go, at the end. Capture stays."""

    def addresses(self, namespace: NetworkNamespace) -> Iterable[bytes]:
        """Addresses in a namespace, 16 bytes each. Blocks."""

    def check(self, host: VirtualHost) -> None:
        """ValueError if the engine cannot use a virtual host."""
