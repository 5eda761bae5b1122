"""The end of connected UDP sockets whose datagrams may not go on: programs are asked at connect() alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from functools import partial

from nodeagent.dataplane.bypass_layout import Access, AccessKey
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.dataplane.datagram_layout import ANY_PORT
from nodeagent.dataplane.datagram_plan import UDP, DatagramPlan
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.sock_diag import DatagramSocket, DiagSocket, Ends
from nodeagent.errors import NetnsError

logger = logging.getLogger(__name__)

SocketPeer = tuple[int, bytes, int]
"""The cookie of a socket, and the endpoint that it was given."""


@dataclass(frozen=True, slots=True)
class Revision:
    """What a change of UDP means to sockets that are connected."""

    tightened: bool = False
    """Some may not send any more."""
    lost: frozenset[SocketPeer] = field(default_factory=frozenset)
    """Their endpoints are none any more."""


def may_send(plan: DatagramPlan, source: int, address: bytes, port: int) -> bool:
    """What datagram.bpf.c says to a sender (the engine's number of it)."""
    number = plan.classes.get(address)
    if number is None:
        return True
    keys = (AccessKey(source, number, each, UDP) for each in (port, ANY_PORT))
    verdict = next((plan.access[key] for key in keys if key in plan.access), None)
    return verdict is not None and verdict.access is Access.ALLOW


def end_sockets(
    plan: DatagramPlan,
    here: Iterable[tuple[LocalWorkload, NetworkNamespace]],
    lost: Set[SocketPeer],
    agents_group: int,
    owes: Callable[[Ends], bool],
) -> int:
    """End those of workloads that may not send by the plan, or whose endpoint is among `lost`; returns how many. Their
    applications get ECONNABORTED from recv(), EDESTADDRREQ from send(), and may connect again. Blocks.

    Sockets of the agent's cgroup are its own; `owes` tells of those that answer whoever asked them. A workload that is
    not known as a sender is left alone: it is none yet, or its certificate has run out, which ends no connections
    either. NetnsError if some could not be looked at or ended, after trying all; CapabilityError if this kernel cannot
    end any.
    """
    ended = 0
    failure: NetnsError | None = None
    for workload, namespace in here:
        if workload.cookie not in plan.senders:
            continue
        is_doomed = partial(_is_doomed, plan, workload, lost, agents_group, owes)
        try:
            ended += namespace.run(partial(_end, is_doomed))
        except NetnsError as error:
            failure = error
    if failure is not None:
        raise failure
    return ended


def _is_doomed(
    plan: DatagramPlan,
    workload: LocalWorkload,
    lost: Set[SocketPeer],
    agents_group: int,
    owes: Callable[[Ends], bool],
    found: DatagramSocket,
) -> bool:
    to = found.ends.destination
    if to in workload.addresses or found.cgroup == agents_group:
        return False
    if (found.cookie, to, found.ends.destination_port) in lost:
        return True
    return not may_send(plan, workload.number, to, found.ends.destination_port) and not owes(found.ends)


def _end(is_doomed: Callable[[DatagramSocket], bool]) -> int:
    """In the calling thread's namespace."""
    with DiagSocket() as diag:
        return sum(diag.destroy(found) for found in diag.datagram_sockets() if is_doomed(found))
