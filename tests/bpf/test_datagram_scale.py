"""UDP of a large mesh in the real maps: how long that takes, and a change of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from harness import scratch_cgroup

from nodeagent.dataplane.bypass_layout import Backend, ServiceKey
from nodeagent.dataplane.bypass_services import LocalWorkload, Slots
from nodeagent.dataplane.datagram_plan import UDP, DatagramPlan, DatagramPlanner, Receiver
from nodeagent.dataplane.datagrams import Datagrams
from nodeagent.dataplane.ebpf_node import EbpfNode
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import AnyOf, Attribute, Policy, RuleAction, Rules, TextCheck

WORKLOADS, HERE, SERVICES, ENDPOINTS, POLICIES = 10_000, 100, 10_000, 10, 50
CHANGE_SECONDS: Final = 0.15
"""It takes a fifth of that by itself."""


def address(*parts: int) -> bytes:
    return bytes(10) + b"\xff\xff" + bytes(parts)


def workload_address(number: int) -> bytes:
    return address(10, 1, number >> 8, number & 255)


def spiffe(number: int) -> str:
    return f"spiffe://mesh.local/ns/default/sa/w{number}"


def service(number: int, first: int) -> tuple[ServiceKey, Slots]:
    slots = (Backend(workload_address((first + step) % WORKLOADS), 0, 9999) for step in range(ENDPOINTS))
    return ServiceKey(address(10, 96, number >> 8, number & 255), 0, 99, UDP), tuple(slots)


@pytest.fixture
def datagrams(folder: Path) -> Iterator[Datagrams]:
    with scratch_cgroup("udp-scale") as group:
        node = EbpfNode(folder, group.group)
        node.start()
        made = node.datagrams()
        gc.freeze()  # the agent collects seldom, too; what other tests have left is not measured
        yield made
        gc.unfreeze()
        made.close()
        node.close()


def test_it_is_loaded_in_batches_and_changed_at_once(datagrams: Datagrams) -> None:
    """Each of the policies lets a part of the identities in, and is for a part of the workloads."""
    names = [TextCheck(Attribute.PRINCIPAL, MatchKind.EXACT, spiffe(each)) for each in range(WORKLOADS)]
    rules = [
        (Rules(RuleAction.ALLOW, (Policy(f"p{each}", AnyOf(tuple(names[each::POLICIES]))),)),)
        for each in range(POLICIES)
    ]
    receivers = [
        Receiver((workload_address(each),), rules[each % POLICIES], (9999,) if each < HERE else ())
        for each in range(WORKLOADS)
    ]
    here = [
        LocalWorkload(f"w{each}", each + 1, "v", (workload_address(each),), each + 1, spiffe(each))
        for each in range(HERE)
    ]
    planner = DatagramPlanner(identities=True)

    def plan() -> DatagramPlan:
        made = planner.plan(receivers, here)
        made.members = frozenset(map(workload_address, range(WORKLOADS)))
        return made

    began = time.thread_time()
    datagrams.apply(dict(service(each, each) for each in range(SERVICES)), plan())
    assert time.thread_time() - began < 4
    state = datagrams.state()
    assert (state.services, state.endpoints) == (SERVICES, SERVICES * ENDPOINTS)
    assert state.receivers == WORKLOADS
    assert state.verdicts == POLICIES * HERE + POLICIES, "and those on outsiders"
    assert state.waiting == {}

    took = []
    for each in range(3):
        receivers[each] = Receiver(receivers[each].addresses, rules[-1], (9999,))
        began = time.thread_time()
        revision = datagrams.apply(dict([service(each, each + 1)]), plan())
        took.append(time.thread_time() - began)
        assert revision.tightened
    assert min(took) < CHANGE_SECONDS, took
