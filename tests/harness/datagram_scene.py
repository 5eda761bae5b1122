"""A captured namespace with the programs for UDP, and two servers; what an agent would say comes from the test."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.cgroups import ScratchCgroup, scratch_cgroup
from harness.netns import Namespace, Network
from nodeagent.dataplane.bpffs import make_folder
from nodeagent.dataplane.bypass_layout import Access, AccessKey, Backend, ServiceKey
from nodeagent.dataplane.bypass_services import LocalWorkload, Slots
from nodeagent.dataplane.bypass_verdict import ENGINE, Verdict
from nodeagent.dataplane.datagram_end import Revision
from nodeagent.dataplane.datagram_layout import ANY_PORT, OUTSIDERS
from nodeagent.dataplane.datagram_outsiders import Prefix
from nodeagent.dataplane.datagram_plan import UDP, DatagramPlan
from nodeagent.dataplane.datagrams import Datagrams
from nodeagent.dataplane.ebpf_node import EbpfNode, WorkloadEntry, netns_cookie
from nodeagent.dataplane.routing import read_addresses
from nodeagent.snapshot.address import parse_address, widen_address

VIP: Final = {"v4": "10.96.0.10", "v6": "fd00:96::10", "mapped": "::ffff:10.96.0.10"}
PORT, TARGET = 99, 9999
"""Of the service, and of its endpoints."""
CLIENT, OWN_CLASS = 1, 99
ALLOW = Verdict(Access.ALLOW)
DENY = Verdict(Access.DENY, "ns/no")


def bind(namespace: Namespace, port: int = TARGET) -> socket.socket:
    """A UDP socket of both families."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("::", port))
        made.settimeout(3)
        return made

    return namespace.run(make)


@dataclass
class Server:
    """Where datagrams arrive."""

    namespace: Namespace
    socket: socket.socket

    def address(self, family: str) -> str:
        both = {"v4": self.namespace.v4, "v6": self.namespace.v6, "mapped": f"::ffff:{self.namespace.v4}"}
        return both[family]

    def answer(self) -> str:
        """Take a datagram and send it back; where it came from."""
        data, peer = self.socket.recvfrom(1000)
        self.socket.sendto(data, peer)
        return str(peer[0]).removeprefix("::ffff:")


@dataclass
class DatagramScene:
    """`client` is captured, the servers are not."""

    client: Namespace
    cookie: int
    group: ScratchCgroup
    node: EbpfNode
    datagrams: Datagrams
    near: Server
    far: Server
    revision: Revision = field(default_factory=Revision)
    plan: DatagramPlan = field(default_factory=DatagramPlan)
    counts: Mapping[str, int] = field(default_factory=dict)

    def socket(self, family: str) -> socket.socket:
        """The client's; of IPv6 alone for "v6"."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET if family == "v4" else socket.AF_INET6, socket.SOCK_DGRAM)
            if family != "v4":
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, family == "v6")
            made.settimeout(3)
            return made

        return self.client.run(make)

    def capture(self) -> None:
        """Have the client captured, as far as UDP is concerned."""
        make_folder(self.node.namespace_folder(self.cookie))
        own = tuple(widen_address(raw) for raw in read_addresses(self.client.handle))
        entry = WorkloadEntry(self.node.group_id, self.node.group_level, 0, own).pack()
        self.node.put(self.node.workloads, self.cookie.to_bytes(8, "little"), entry)

    def restart(self) -> None:
        """Another life of the agent, to which say() comes next."""
        self.datagrams.close()
        self.datagrams = self.node.datagrams()

    def say(
        self,
        endpoints: list[Server] | None,
        asked: Mapping[str, Mapping[int, Verdict]] | None = None,
        *,
        closed: Collection[int] = (),
        members: Collection[str] = (),
        barred: Collection[str] = (),
        by_address: Mapping[str, Verdict] | None = None,
    ) -> None:
        """Which servers the service has (None: there is no service), and what is asked: verdicts on the client by
        server and port. At `closed` ports the client lets nobody in but the servers that are `members`. Those that are
        `barred` are workloads of this node that may send nothing to the client. `by_address`: what outsiders are told
        at port 7000 of the client by prefix, of 128 bits."""
        services: dict[ServiceKey, Slots | None] = {}
        for family in ("v4", "v6"):
            key = ServiceKey(parse_address(VIP[family]), 0, PORT, UDP)
            found = [Backend(parse_address(each.address(family)), 0, TARGET) for each in endpoints or ()]
            services[key] = None if endpoints is None else tuple(found)
        plan = DatagramPlan({self.cookie: CLIENT})
        for number, (name, verdicts) in enumerate((asked or {}).items(), 1):
            plan.classes |= dict.fromkeys(self._addresses(name), number)
            plan.access |= {AccessKey(CLIENT, number, port, UDP): each for port, each in verdicts.items()}
        plan.locals = dict.fromkeys(self._addresses("client"), CLIENT)
        for number, name in enumerate(barred, CLIENT + 1):
            plan.locals |= dict.fromkeys(self._addresses(name), number)
            plan.access[AccessKey(number, OWN_CLASS, ANY_PORT, UDP)] = DENY
        if closed or barred:
            plan.classes |= dict.fromkeys(self._addresses("client"), OWN_CLASS)
            plan.access |= {AccessKey(OUTSIDERS, OWN_CLASS, port, UDP): DENY for port in closed}
        if by_address:
            plan.classes |= dict.fromkeys(self._addresses("client"), OWN_CLASS)
            plan.access[AccessKey(OUTSIDERS, OWN_CLASS, 7000, UDP)] = ENGINE
            plan.outsiders[OWN_CLASS, 7000] = {_prefix(text): each for text, each in by_address.items()}
        plan.members = frozenset(address for name in members for address in self._addresses(name))
        self.plan = plan
        self.revision = self.datagrams.apply(services, plan)
        self.datagrams.guard([(self.cookie, self.client.handle)])
        self.counts = self.datagrams.counters()

    def _addresses(self, name: str) -> list[bytes]:
        where = {"client": self.client, "near": self.near.namespace, "far": self.far.namespace}[name]
        return [parse_address(where.v4), parse_address(where.v6)]

    def counted(self) -> dict[str, int]:
        """What was decided since the last say()."""
        now = self.datagrams.counters()
        return {name: now[name] - self.counts[name] for name in now if now[name] != self.counts[name]}

    def end_sockets(self) -> int:
        """As an agent does after a change."""
        own = tuple(parse_address(each) for each in (self.client.v4, self.client.v6))
        here = LocalWorkload("client", CLIENT, "view", own, self.cookie)
        return self.datagrams.end_sockets(self.plan, [(here, self.client.handle)], self.revision.lost)


NOBODY: Final[Mapping[int, Verdict]] = {ANY_PORT: DENY}


@contextlib.contextmanager
def datagram_scene(name: str, pins: Path) -> Iterator[DatagramScene]:
    """The scene, with pins that are the caller's to remove."""
    with contextlib.ExitStack() as closing:
        network = closing.enter_context(Network(name))
        group = closing.enter_context(scratch_cgroup(name))
        client, near, far = (network.add(each, default_route=True) for each in ("client", "near", "far"))
        # Each refusal is told, however many there are.
        client.check(["sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"])
        node = EbpfNode(pins, group.group)
        closing.callback(node.close)
        node.start()
        cookie = netns_cookie(client.handle)
        servers = [Server(each, closing.enter_context(bind(each))) for each in (near, far)]
        scene = DatagramScene(client, cookie, group, node, node.datagrams(), *servers)
        closing.callback(lambda: scene.datagrams.close())
        scene.capture()
        yield scene


def _prefix(text: str) -> Prefix:
    address, _, bits = text.partition("/")
    return Prefix(int.from_bytes(parse_address(address)), int(bits))
