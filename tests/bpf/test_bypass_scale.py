"""A large mesh in the real maps: how long that takes, what it takes, and what happens where there is no room."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from harness import require

from nodeagent.dataplane.bpf import BpfObject
from nodeagent.dataplane.bypass import Bypass
from nodeagent.dataplane.bypass_layout import (
    NO_BYPASS,
    Access,
    AccessKey,
    Backend,
    BackendKey,
    Life,
    ServiceKey,
)
from nodeagent.dataplane.bypass_maps import BypassMaps
from nodeagent.dataplane.bypass_plan import TCP, Plan, PlanChanges
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.dataplane.bypass_verdict import Verdict
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import AnyOf, Attribute, Policy, RuleAction, Rules, TextCheck
from nodeagent.snapshot.values import (
    Cluster,
    Destination,
    Endpoint,
    Inbound,
    Protocol,
    Snapshot,
    Tunnel,
    View,
    WeightedCluster,
)

WORKLOADS, SERVICES, ENDPOINTS, PORT = 225, 10_000, 10, 9000
IDENTITIES = 10_000


def address(*parts: int) -> bytes:
    return bytes(10) + b"\xff\xff" + bytes(parts)


def spiffe(number: int) -> str:
    return f"spiffe://mesh.local/ns/default/sa/w{number}"


def workload(number: int) -> LocalWorkload:
    return LocalWorkload(f"w{number}", number, "v", (address(10, 1, 0, number),), number, spiffe(number))


@pytest.fixture
def maps() -> Iterator[BypassMaps]:
    require("root", "engine")
    with BpfObject("outbound") as outbound:
        made = BypassMaps.of(outbound)
    gc.freeze()  # the agent collects seldom, too; what other tests have left is not measured
    yield made
    gc.unfreeze()
    made.close()


@pytest.fixture(scope="module")
def large() -> Snapshot:
    """Each service has ten endpoints here, and each workload lets in a part of ten thousand identities."""
    here = [workload(number) for number in range(1, WORKLOADS + 1)]
    own = [Endpoint(each.addresses[0], PORT, tunnel=Tunnel((each.identity,))) for each in here]
    clusters, endpoints, destinations = {}, {}, {}
    for number in range(SERVICES):
        name = f"v/c{number}"
        clusters[name] = Cluster(name, name)
        endpoints[name] = tuple(own[(number + step * 7) % WORKLOADS] for step in range(ENDPOINTS))
        key = (address(10, 96, number >> 8, number & 255), 80)
        destinations[key] = Destination(*key, Protocol.TCP, clusters=(WeightedCluster(name),))
    names = [TextCheck(Attribute.PRINCIPAL, MatchKind.EXACT, spiffe(each)) for each in range(IDENTITIES)]
    inbound = {
        each.uid: Inbound(
            fallback=Protocol.TCP,
            every=(
                Rules(RuleAction.ALLOW, (Policy("p", AnyOf(tuple(names[each.number % 2 :: WORKLOADS]))),)),
            ),
        )
        for each in here
    }
    return Snapshot(views={"v": View("v", clusters, endpoints, {}, destinations)}, inbound=inbound)


def test_it_is_loaded_in_batches_and_changed_at_once(maps: BypassMaps, large: Snapshot) -> None:
    here = [workload(number) for number in range(1, WORKLOADS + 1)]
    plan, bypass = Plan(identities=True), Bypass(maps, lambda name, count: pytest.fail(f"{name} is full"))
    empty = sum(each.memory_and_limit()[0] for each in maps.counted())
    planning, writing = [], []
    while not planning or plan.pending:
        began = time.thread_time()
        changes = plan.update(large, here)
        planned = time.thread_time()
        bypass.apply(changes, plan.everything)
        planning.append(planned - began)
        writing.append(time.thread_time() - planned)
    counts = bypass.counts()
    assert bypass.error == ""
    assert (counts.services, counts.endpoints) == (SERVICES, SERVICES * ENDPOINTS)
    assert counts.verdicts == WORKLOADS * (WORKLOADS - 1) > 50_000
    assert counts.sources == WORKLOADS
    assert (maps.services.count(), maps.backends.count()) == (SERVICES, SERVICES * ENDPOINTS)
    assert maps.access.count() == counts.verdicts
    assert maps.life.get(bytes(4)) == Life(bypass.life).pack()
    memory = sum(each.memory_and_limit()[0] for each in maps.counted()) - empty
    assert sum(writing) < 2, "batches"
    assert sum(planning) < 4
    assert sorted(map(sum, zip(planning, writing, strict=True)))[-2] < 0.3, "others get their turn"
    assert 0 < memory < 40e6, "it follows what is in use"

    (view,) = large.views.values()
    took = []
    for number in range(5):
        view = replace(view, endpoints={**view.endpoints, f"v/c{number}": view.endpoints["v/c9"]})
        began = time.thread_time()
        bypass.apply(plan.update(replace(large, views={"v": view}), here), plan.everything)
        took.append(time.thread_time() - began)
    assert min(took) < 0.01, took
    assert maps.backends.count() == SERVICES * ENDPOINTS


def test_what_does_not_fit_is_refused_before_anything_is_half_written(maps: BypassMaps) -> None:
    full: dict[str, int] = {}
    bypass = Bypass(maps, lambda name, count: full.update({name: full.get(name, 0) + count}))
    limit = maps.access.memory_and_limit()[1]
    verdicts = {AccessKey(source, 2, PORT, TCP): Verdict(Access.ALLOW) for source in range(limit + 10)}
    backends = maps.backends.memory_and_limit()[1]
    slots = tuple(Backend(address(10, 1, 0, 1), 1, PORT) for _ in range(backends // 2 - 10))
    keys = [ServiceKey(address(10, 96, 0, each), 1, 80, TCP) for each in range(3)]
    changes = PlanChanges(services=dict.fromkeys(keys, slots), access=dict(verdicts))
    bypass.apply(changes, lambda: changes)
    assert bypass.error == ""
    assert full == {"access": 10, "backends": 1}
    assert maps.access.count() == limit
    assert maps.services.count() == 2
    assert maps.backends.get(BackendKey(3, 0).pack()) is None, "nothing of the third"
    assert maps.backends.count() == 2 * len(slots)
    assert maps.life.get(bytes(4)) != Life(NO_BYPASS).pack(), "what fits is in force"
