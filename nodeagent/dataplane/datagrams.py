"""UDP of captured workloads (bpf/datagram.bpf.c): services by endpoint, and policy, in the programs alone.

The programs are pinned beside those of a node's capture and outlive the agent, with their maps: what an agent said last
holds until the next one has filled maps of its own. Only then are its programs put in place. What sockets were given is
shared by all lives.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from nodeagent.dataplane.bpf import BpfMap, BpfObject, MapUsage, detach_pinned, possible_cpus
from nodeagent.dataplane.bypass_layout import (
    ACCESS_KEY_SIZE,
    ACCESS_SIZE,
    BACKEND_KEY_SIZE,
    BACKEND_SIZE,
    ENDS_SIZE,
    SERVICE_KEY_SIZE,
    SERVICE_SIZE,
    Access,
    AccessEntry,
    AccessKey,
    ServiceKey,
)
from nodeagent.dataplane.bypass_services import LocalWorkload, Slots
from nodeagent.dataplane.bypass_tables import BoundedTable, ServiceTables
from nodeagent.dataplane.bypass_verdict import Verdict
from nodeagent.dataplane.datagram_answers import ANSWER_MAPS, TIME_SIZE, Answers
from nodeagent.dataplane.datagram_end import Revision, SocketPeer, end_sockets
from nodeagent.dataplane.datagram_layout import (
    COUNTERS,
    DESTINATION_SIZE,
    NUMBER_SIZE,
    OUTSIDER_SIZE,
    PEER_SIZE,
    pack_number,
    pack_outsider,
    unpack_destination,
    unpack_peer,
)
from nodeagent.dataplane.datagram_plan import DatagramPlan
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.tags import TagTable

logger = logging.getLogger(__name__)

_OBJECT: Final = "datagram"
_HOOKS: Final = (
    "datagram_recvmsg4",
    "datagram_recvmsg6",
    "datagram_getpeername4",
    "datagram_getpeername6",
    "datagram_sendmsg4",
    "datagram_sendmsg6",
    "datagram_connect4",
    "datagram_connect6",
)
"""At the root of the cgroup hierarchy, in the order in which they are attached: those that translate come last."""
SOCKET_MAPS: Final = ("udp_endpoints", "udp_asked", "udp_awaited", "udp_owed")
"""What programs keep of sockets."""
_LOOKUP: Final = "datagram_lookup"
_COOKIE: Final = struct.Struct("=Q")
_INDEX: Final = struct.Struct("=I")
K = TypeVar("K")
V = TypeVar("V")
_POLICY_NAMES: Final = 4096
"""As udp_denials has entries."""
NONE_MATCHED: Final = ""
"""As a policy: no ALLOW rule matched."""


@dataclass(frozen=True, slots=True)
class DatagramState:
    """What is in force, for people."""

    services: int = 0
    endpoints: int = 0
    receivers: int = 0
    """Addresses of workloads of which something is asked."""
    verdicts: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)
    """What is not in force for want of room."""


class Datagrams:
    """The owner. Methods are for one thread, but for end_sockets()."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        agents_group: int,
        shared: Mapping[str, Path],
        note_full: Callable[[str, int], None],
    ) -> None:
        """Load the programs, which do nothing yet. `folder` is where the version of the ABI has its pins, `root` the
        cgroup hierarchy's, `agents_group` the id of the agent's cgroup, `shared` has the map of workloads and
        SOCKET_MAPS. BpfError if this kernel cannot."""
        self._folder = folder
        self._root = root
        self._agents_group = agents_group
        self.ended = 0
        """Connected sockets ended because they may not send any more, or their endpoints were gone."""
        self._object = BpfObject(_OBJECT, shared)
        self._in_place = False
        self._policies: TagTable[str] = TagTable()
        names = ("udp_senders", "udp_services", "udp_backends", "udp_classes", "udp_access")
        sizes = (
            (_COOKIE.size, NUMBER_SIZE),
            (SERVICE_KEY_SIZE, SERVICE_SIZE),
            (BACKEND_KEY_SIZE, BACKEND_SIZE),
            (16, NUMBER_SIZE),
            (ACCESS_KEY_SIZE, ACCESS_SIZE),
        )
        self._maps = [self._object.map(name, *size) for name, size in zip(names, sizes, strict=True)]
        senders, services, backends, classes, access = self._maps
        self._senders: BoundedTable[int, int] = BoundedTable(senders, _COOKIE.pack, pack_number, note_full)
        self._services = ServiceTables(services, backends, note_full)
        self._classes: BoundedTable[bytes, int] = BoundedTable(classes, bytes, pack_number, note_full)
        self._access: BoundedTable[AccessKey, Verdict] = BoundedTable(
            access, AccessKey.pack, self._pack_verdict, note_full
        )
        members, here = (
            self._object.map("udp_members", 16, 1),
            self._object.map("udp_locals", 16, NUMBER_SIZE),
        )
        self._maps += (members, here)
        self._locals: BoundedTable[bytes, int] = BoundedTable(here, bytes, pack_number, note_full)
        self._members: BoundedTable[bytes, bool] = BoundedTable(members, bytes, lambda _: b"\1", note_full)
        self._trie = self._object.map("udp_outsiders", OUTSIDER_SIZE, ACCESS_SIZE)
        self._outsiders: BoundedTable[bytes, Verdict] = BoundedTable(
            self._trie, bytes, self._pack_verdict, note_full
        )
        self._guarded: set[int] = set()
        self._endpoints = self._object.map("udp_endpoints", PEER_SIZE, DESTINATION_SIZE)
        self._answers = Answers(*(self._object.map(name, ENDS_SIZE, TIME_SIZE) for name in ANSWER_MAPS))
        self._counters = self._object.map("udp_counters", _INDEX.size, 8 * possible_cpus())
        self._denials = self._object.map("udp_denials", _INDEX.size, 8)

    def _pack_verdict(self, verdict: Verdict) -> bytes:
        return AccessEntry(verdict.access, self._number(verdict)).pack()

    def _number(self, verdict: Verdict) -> int:
        if verdict.access is not Access.DENY or not verdict.policy:
            return 0
        known = self._policies.tag_of(verdict.policy)
        if known or len(self._policies) >= _POLICY_NAMES:
            return known
        return self._policies.assign(verdict.policy, verdict.policy)[0]

    # -- changes --

    def apply(self, services: Mapping[ServiceKey, Slots | None], plan: DatagramPlan) -> Revision:
        """Put changed services (None: gone) and a plan in force; returns what end_sockets() is to be told. BpfError
        where the kernel refuses; what was in force is then so at least in part, and never more open than either."""
        tightened = self._tighten(plan)
        gone = {key for key, slots in services.items() if slots is None}
        changed = {key: slots for key, slots in services.items() if slots is not None}
        lost = self._forget_endpoints(services)
        self._services.remove(gone)
        self._services.withdraw(changed)
        self._services.put(changed)
        self._loosen(plan)
        if not self._in_place:
            self._put_in_place()
            self._answers.forget_all()
        self._answers.go_by(plan, tightened=tightened)
        return Revision(tightened, frozenset(lost))

    def guard(self, namespaces: Iterable[tuple[int, NetworkNamespace]]) -> None:
        """Have what arrives in these namespaces of workloads, by their cookies, looked at. BpfError where the kernel
        refuses."""
        there = dict(namespaces)
        self._guarded &= there.keys()
        for cookie, namespace in there.items():
            pin = lookup_link(self._folder / "netns" / f"{cookie:x}")
            if cookie not in self._guarded or not pin.exists():
                self._object.attach_pinned(_LOOKUP, namespace.fd, pin)
                self._guarded.add(cookie)

    def end_sockets(
        self,
        plan: DatagramPlan,
        here: Iterable[tuple[LocalWorkload, NetworkNamespace]],
        lost: Set[SocketPeer],
    ) -> int:
        """datagram_end.end_sockets(), counted. Blocks; for any thread, one at a time."""
        ended = end_sockets(plan, here, lost, self._agents_group, self._answers.owes)
        self.ended += ended
        return ended

    def _tighten(self, plan: DatagramPlan) -> bool:
        """Whether somebody may not send to somebody any more."""
        self._members.remove([key for key in _known(self._members) if key not in plan.members])
        self._members.put(_changed(self._members.held, dict.fromkeys(plan.members, True)))
        self._locals.remove([key for key in _known(self._locals) if key not in plan.locals])
        self._locals.put(_changed(self._locals.held, plan.locals))
        access, classes = self._access.held, _changed(self._classes.held, plan.classes)
        tightened = bool(classes) or any(
            (verdict := plan.access.get(key)) is None
            or (verdict != held and verdict.access is not Access.ALLOW)
            for key, held in access.items()
        )
        # Of classes, or ports, that are not in force yet: what is said of those that are stays the same.
        self._outsiders.put(_changed(self._outsiders.held, _outsiders_of(plan)))
        self._senders.remove(
            [key for key in _known(self._senders) if plan.senders.get(key) != self._senders.held.get(key)]
        )
        # New keys are of classes, or senders, that are not in force yet.
        stricter = {
            key: verdict
            for key, verdict in plan.access.items()
            if verdict.access is Access.DENY or key not in self._access.held
        }
        self._access.put(_changed(self._access.held, stricter))
        self._classes.put(classes)
        return tightened

    def _loosen(self, plan: DatagramPlan) -> None:
        self._access.put(_changed(self._access.held, plan.access))
        self._senders.put(_changed(self._senders.held, plan.senders))
        self._classes.remove([key for key in _known(self._classes) if key not in plan.classes])
        self._access.remove([key for key in _known(self._access) if key not in plan.access])
        there = _outsiders_of(plan)
        self._outsiders.remove([key for key in _known(self._outsiders) if key not in there])

    def _forget_endpoints(self, services: Mapping[ServiceKey, Slots | None]) -> set[SocketPeer]:
        """Of sockets that were given an endpoint which is none any more: they are given another one. Returns which."""
        there = _pairs(services.items())
        gone = (
            _pairs((key, held.slots) for key, held in self._services.held.items() if key in services) - there
        )
        # At first there may be some of an earlier agent's.
        first = not self._in_place
        lost: set[SocketPeer] = set()
        for raw_peer, raw in self._endpoints.items() if gone or first else ():
            cookie, *asked = unpack_peer(raw_peer)
            endpoint = unpack_destination(raw)
            pair = (*asked, *endpoint)
            if pair in gone or (first and pair not in there):
                self._endpoints.discard(raw_peer)
                lost.add((cookie, *endpoint))
        return lost

    def _put_in_place(self) -> None:
        top = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for hook in _HOOKS:
                self._object.attach_pinned(hook, top, self._folder / "links" / hook)
        finally:
            os.close(top)
        self._in_place = True

    # -- what is there --

    def counters(self) -> dict[str, int]:
        """What this agent's programs have counted, by COUNTERS."""
        found = {}
        for index, name in enumerate(COUNTERS):
            value = self._counters.get(_INDEX.pack(index)) or b""
            found[name] = sum(struct.unpack(f"={len(value) // 8}Q", value))
        return found

    def denials(self) -> dict[str, int]:
        """How often each policy has denied; NONE_MATCHED for ALLOW policies of which none matched."""
        found: dict[str, int] = {}
        for raw, count in self._denials.items():
            name = self._policies.resolve(_INDEX.unpack(raw)[0]) or NONE_MATCHED
            found[name] = found.get(name, 0) + _COOKIE.unpack(count)[0]
        return found

    def state(self) -> DatagramState:
        """How much is in force."""
        waiting = {
            "senders": len(self._senders.waiting),
            "services": len(self._services.waiting),
            "receivers": len(self._classes.waiting),
            "verdicts": len(self._access.waiting),
            "members": len(self._members.waiting),
            "outsiders": len(self._outsiders.waiting),
            "locals": len(self._locals.waiting),
        }
        return DatagramState(
            len(self._services.held),
            self._services.used,
            len(self._classes.held),
            len(self._access.held),
            {name: count for name, count in waiting.items() if count},
        )

    def maps(self) -> list[MapUsage]:
        """What the maps take."""
        found = []
        for each in (*self._maps, self._endpoints):
            memory, limit = each.memory_and_limit()
            found.append(MapUsage(each.name, memory, each.count(), limit))
        memory, limit = self._trie.memory_and_limit()
        found.append(MapUsage(self._trie.name, memory, len(self._outsiders.held), limit))
        return found

    def close(self) -> None:
        """Let go; what is in place stays."""
        held: Iterable[BpfMap] = (*self._maps, self._trie, self._endpoints, self._counters, self._denials)
        for each in held:
            each.close()
        self._answers.close()
        self._object.close()


def _known(table: BoundedTable[K, V]) -> list[K]:
    return [*table.held, *table.waiting]


def _pairs(services: Iterable[tuple[ServiceKey, Slots | None]]) -> set[tuple[bytes, int, bytes, int]]:
    """What may be asked for, and an endpoint that it means."""
    return {
        (key.address, key.port, each.address, each.port)
        for key, slots in services
        for each in slots or ()
        if each is not None
    }


def _outsiders_of(plan: DatagramPlan) -> dict[bytes, Verdict]:
    """As entries of the trie."""
    return {
        pack_outsider(number, port, prefix.address, prefix.length): verdict
        for (number, port), verdicts in plan.outsiders.items()
        for prefix, verdict in verdicts.items()
    }


def _changed(held: Mapping[K, V], wanted: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in wanted.items() if held.get(key) != value}


def detach_datagrams(folder: Path) -> None:
    """End what is pinned below the folder of a version; nothing happens if there is nothing."""
    for hook in reversed(_HOOKS):
        detach_pinned(folder / "links" / hook)
    for each in (folder / "netns").glob("*"):
        detach_pinned(lookup_link(each))
    for name in SOCKET_MAPS:
        (folder / "maps" / name).unlink(missing_ok=True)


def lookup_link(folder: Path) -> Path:
    """Where a namespace's attachment is pinned, in the folder of its own."""
    return folder / "datagram"
