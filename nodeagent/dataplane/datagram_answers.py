"""Which datagrams are answers: policy says who may ask, and whoever was asked may answer (bpf/datagram.bpf.c).

What the programs note of it holds for some minutes. When policy changes, what is noted for two that may not ask any
more is forgotten: a datagram that was let in by policy must not become an answer by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nodeagent.dataplane.bpf import BpfMap
from nodeagent.dataplane.bypass_layout import Ends
from nodeagent.dataplane.datagram_end import may_send
from nodeagent.dataplane.datagram_plan import DatagramPlan
from nodeagent.dataplane.sock_diag import Ends as SocketEnds

ANSWER_MAPS: Final = ("udp_owed", "udp_awaited")
TIME_SIZE: Final = 8
"""Of their values; keys are ends of connections, the workload's first."""


class Answers:
    """What is noted."""

    def __init__(self, owed: BpfMap, awaited: BpfMap) -> None:
        """Take over the two maps: whom workloads may answer, and from whom they expect an answer."""
        self._owed = owed
        self._awaited = awaited
        self._plan = DatagramPlan()

    def owes(self, ends: SocketEnds) -> bool:
        """Whether a workload's socket was asked by its peer. For any thread."""
        key = Ends(ends.source, ends.destination, ends.source_port, ends.destination_port)
        return self._owed.get(key.pack()) is not None

    def forget_all(self) -> None:
        """Begin: what an earlier agent has allowed is not known."""
        for each in (self._owed, self._awaited):
            for key, _ in list(each.items()):
                each.discard(key)

    def go_by(self, plan: DatagramPlan, *, tightened: bool) -> None:
        """A plan is in force; `tightened`: it may forbid something that the one before allowed."""
        before, self._plan = self._plan, plan
        if tightened:
            _forget(self._owed, _may_go, before, plan)
            _forget(self._awaited, _may_come, before, plan)

    def close(self) -> None:
        """Let go; what is noted stays."""
        self._owed.close()
        self._awaited.close()


def _forget(
    noted: BpfMap, may: Callable[[DatagramPlan, Ends], bool], before: DatagramPlan, now: DatagramPlan
) -> None:
    for key, _ in list(noted.items()):
        ends = Ends.unpack(key)
        if may(before, ends) and not may(now, ends):
            noted.discard(key)


def _may_go(plan: DatagramPlan, ends: Ends) -> bool:
    """Whether policy lets the workload send, whoever asks."""
    number = plan.locals.get(ends.source)
    return number is not None and may_send(plan, number, ends.destination, ends.destination_port)


def _may_come(plan: DatagramPlan, ends: Ends) -> bool:
    """Whether policy lets the workload be sent to."""
    number = plan.locals.get(ends.destination)
    if number is not None:
        return may_send(plan, number, ends.source, ends.source_port)
    if ends.destination in plan.members or ends.source not in plan.classes:
        return True
    return plan.lets_in(plan.classes[ends.source], ends.source_port, ends.destination)
