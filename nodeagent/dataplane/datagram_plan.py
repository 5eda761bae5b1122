"""Who may send datagrams to whom: workloads of which the same is asked are a class, and each sender of this node has a
verdict on each class, by port where the policies tell ports apart. Outsiders have one on ports that services lead to.

There is nobody behind this to ask: what cannot be said beforehand is refused. Dry runs and rules that only log have no
say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nodeagent.dataplane.bypass_layout import Access, AccessKey
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.dataplane.bypass_verdict import ENGINE, Judge, Peer, Target, Verdict
from nodeagent.dataplane.datagram_layout import ANY_PORT, OUTSIDERS
from nodeagent.dataplane.datagram_outsiders import Verdicts, judge_outsiders, verdict_on
from nodeagent.dataplane.tags import TagTable
from nodeagent.snapshot.address import is_v4, widen_address
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    AnyOf,
    Check,
    Not,
    Place,
    PortCheck,
    RuleAction,
    Rules,
)

UDP: Final = 17
_LISTED_PORTS: Final = 64
"""A range of ports that is not longer has an entry for each."""
_LAST_PORT: Final = 65_535

ClassKey = tuple[tuple[Rules, ...], bool, tuple[bytes, ...]]
"""What is asked, whether of IPv4, and, where it depends on that, by which addresses the workload is known."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A workload, on any node, and what is asked of those that connect to it."""

    addresses: tuple[bytes, ...]
    rules: tuple[Rules, ...]
    ports: tuple[int, ...] = ()
    """Of a workload of this node: those that services lead to."""


@dataclass(slots=True)
class DatagramPlan:
    """What is to be in the maps."""

    senders: dict[int, int] = field(default_factory=dict)
    """By the cookie of the namespace: the engine's number of the workload."""
    classes: dict[bytes, int] = field(default_factory=dict)
    """By address."""
    access: dict[AccessKey, Verdict] = field(default_factory=dict)
    outsiders: dict[tuple[int, int], Verdicts] = field(default_factory=dict)
    """By class and port, where what outsiders are told depends on where they come from; `access` then says ENGINE."""
    locals: dict[bytes, int] = field(default_factory=dict)
    """By address: the engine's numbers of this node's workloads."""
    members: frozenset[bytes] = frozenset()
    """Addresses of workloads whose nodes judge what they send; needed if outsiders are not let in somewhere."""

    @property
    def excludes(self) -> bool:
        """Whether outsiders are not let in somewhere."""
        return any(key.source == OUTSIDERS for key in self.access)

    def lets_in(self, number: int, port: int, address: bytes) -> bool:
        """Whether an outsider may send to a class from an address."""
        verdict = self.access.get(AccessKey(OUTSIDERS, number, port, UDP))
        if verdict is not None and verdict.access is Access.ENGINE:
            verdict = verdict_on(self.outsiders[number, port], address)
        return verdict is None or verdict.access is Access.ALLOW


class DatagramPlanner:
    """Makes plans. Classes keep their numbers while they are in use."""

    def __init__(self, *, identities: bool) -> None:
        """`identities`: the agent has a CA, so that a workload without a certificate in force is nobody."""
        self._identities = identities
        self._numbers: TagTable[ClassKey] = TagTable()
        self._used: set[ClassKey] = set()
        # By class as a number, since a key takes long to be hashed, and by port.
        self._verdicts: dict[LocalWorkload, dict[int, dict[int, Verdict]]] = {}
        self._outsiders: dict[int, dict[int, Verdicts]] = {}

    def plan(self, receivers: Iterable[Receiver], senders: Sequence[LocalWorkload]) -> DatagramPlan:
        """For all workloads of the mesh, and those of this node that send."""
        plan = DatagramPlan()
        known = [sender for sender in senders if sender.in_force or not self._identities]
        plan.senders = {sender.cookie: sender.number for sender in known}
        plan.locals = {address: sender.number for sender in senders for address in sender.addresses}
        used: dict[ClassKey, int] = {}
        # Workloads alike share the very same rules, which take long to be hashed.
        shared: dict[tuple[int, bool], int] = {}
        served: dict[int, set[int]] = {}
        for receiver in receivers:
            for address in receiver.addresses:
                family = is_v4(address)
                number = shared.get((id(receiver.rules), family))
                if number is None:
                    number = self._number(receiver, family, used, shared)
                if number:
                    plan.classes[address] = number
                    if receiver.ports:
                        served.setdefault(number, set()).update(receiver.ports)
        self._forget(used, known)
        for key, number in used.items():
            for sender in known:
                for port, verdict in self._verdicts_of(key, number, sender).items():
                    plan.access[AccessKey(sender.number, number, port, UDP)] = verdict
            for port in served.get(number, ()):
                self._note_outsiders(plan, key, number, port)
        return plan

    def _number(
        self,
        receiver: Receiver,
        family: bool,
        used: dict[ClassKey, int],
        shared: dict[tuple[int, bool], int],
    ) -> int:
        """Of its class, 0 where nothing is asked; `shared` where that goes for all that have its rules."""
        key = _class_of(receiver, family)
        number = 0
        if key is not None:
            number = used[key] = self._numbers.assign(key, key)[0]
        if key is None or not key[2]:
            shared[id(receiver.rules), family] = number
        return number

    def _forget(self, used: Mapping[ClassKey, int], senders: Sequence[LocalWorkload]) -> None:
        self._verdicts = {sender: self._verdicts.get(sender, {}) for sender in senders}
        for key in self._used - used.keys():
            number = self._numbers.tag_of(key)
            self._numbers.release(key)
            self._outsiders.pop(number, None)
            for known in self._verdicts.values():
                known.pop(number, None)
        self._used = set(used)

    def _verdicts_of(self, key: ClassKey, number: int, sender: LocalWorkload) -> dict[int, Verdict]:
        known = self._verdicts[sender]
        if number not in known:
            known[number] = dict(_judge(key, sender))
        return known[number]

    def _note_outsiders(self, plan: DatagramPlan, key: ClassKey, number: int, port: int) -> None:
        """What is said to whoever has no identity; nothing where all of them are let in."""
        known = self._outsiders.setdefault(number, {})
        if port not in known:
            rules, family, addresses = key
            # Without addresses of theirs any will do, as in _judge().
            targets = addresses or (widen_address(bytes(4)) if family else bytes(16),)
            known[port] = judge_outsiders(rules, v4=family, targets=targets, port=port)
        verdicts = set(known[port].values())
        if len(verdicts) > 1:
            plan.outsiders[number, port] = known[port]
        (verdict,) = verdicts if len(verdicts) == 1 else (ENGINE,)
        if verdict.access is not Access.ALLOW:
            plan.access[AccessKey(OUTSIDERS, number, port, UDP)] = verdict


def _class_of(receiver: Receiver, family: bool) -> ClassKey | None:
    """None where nothing is asked."""
    rules = tuple(each for each in receiver.rules if not each.shadow and each.action is not RuleAction.LOG)
    if not rules:
        return None
    checks = [policy.check for each in rules for policy in each.policies]
    if not any(map(_asks_where_to, checks)):
        return rules, family, ()
    return rules, family, tuple(address for address in receiver.addresses if is_v4(address) == family)


def _judge(key: ClassKey, sender: LocalWorkload) -> Iterator[tuple[int, Verdict]]:
    """(port, verdict); ANY_PORT for all others. What cannot be said is left out."""
    rules, family, addresses = key
    own = tuple(address for address in sender.addresses if is_v4(address) == family)
    if not own:
        return
    judge, peer = Judge(rules), Peer(sender.identity, own)
    # Without addresses of theirs any will do: nothing looks at them.
    targets = addresses or own[:1]

    def verdict(port: int) -> Verdict:
        found = [judge.verdict(peer, Target((target,), port)) for target in targets]
        same = len(set(found)) == 1
        return found[0] if same else Verdict(Access.ENGINE)

    listed, others = _ports(rules)
    for port in listed:
        if (found := verdict(port)).access is not Access.ENGINE:
            yield port, found
    general = {verdict(port) for port in others}
    if len(general) == 1 and (found := general.pop()).access is not Access.ENGINE:
        yield ANY_PORT, found


def _ports(rules: Iterable[Rules]) -> tuple[list[int], list[int]]:
    """Ports that the rules tell apart, each by itself; and one of every kind of the others."""
    listed: set[int] = set()
    edges = {1}
    for low, high in (span for each in rules for policy in each.policies for span in _spans(policy.check)):
        if high - low < _LISTED_PORTS:
            listed.update(range(low, high + 1))
        edges.update((low, high + 1))
    others = []
    for edge in sorted(edges):
        while edge in listed:
            edge += 1
        if edge <= _LAST_PORT:
            others.append(edge)
    return sorted(listed), others


def _spans(check: Check) -> Iterator[tuple[int, int]]:
    match check:
        case AllOf(checks) | AnyOf(checks):
            for each in checks:
                yield from _spans(each)
        case Not(operand):
            yield from _spans(operand)
        case PortCheck(low, high):
            yield low, high


def _asks_where_to(check: Check) -> bool:
    match check:
        case AllOf(checks) | AnyOf(checks):
            return any(map(_asks_where_to, checks))
        case Not(operand):
            return _asks_where_to(operand)
        case AddressCheck(place):
            return place is Place.DESTINATION
    return False
