"""What is planned to pass the engine: which services, by which slots, and who may."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from nodeagent.dataplane import bypass_plan
from nodeagent.dataplane.bypass_layout import ANY_SOURCE, Access, AccessKey, Backend, ServiceKey, Source
from nodeagent.dataplane.bypass_plan import STEP, TCP, Plan, PlanChanges
from nodeagent.dataplane.bypass_services import LocalWorkload, why_not
from nodeagent.dataplane.bypass_verdict import Verdict
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import Attribute, Guards, Policy, RuleAction, Rules, TextCheck
from nodeagent.snapshot.values import (
    Cluster,
    ClusterKind,
    Destination,
    Endpoint,
    Inbound,
    InboundPort,
    Protocol,
    Snapshot,
    Tunnel,
    TunnelKind,
    View,
    WeightedCluster,
)

PORT = 9000
VIP = parse_address("10.96.0.1")


def spiffe(name: str) -> str:
    return f"spiffe://mesh.local/ns/default/sa/{name}"


def workload(number: int, name: str = "", **parts: object) -> LocalWorkload:
    name = name or f"w{number}"
    made = LocalWorkload(name, number, "v", (parse_address(f"10.0.0.{number}"),), 1000 + number, spiffe(name))
    return replace(made, **parts)  # type: ignore[arg-type]


WEB, DB, OTHER = workload(1, "web"), workload(2, "db"), workload(3, "other")
REMOTE = Endpoint(parse_address("10.0.1.1"), PORT, tunnel=Tunnel((spiffe("far"),)))


def endpoint(at: LocalWorkload, port: int = PORT, **parts: object) -> Endpoint:
    made = Endpoint(at.addresses[0], port, tunnel=Tunnel((at.identity,)))
    return replace(made, **parts)  # type: ignore[arg-type]


def backend(at: LocalWorkload, port: int = PORT) -> Backend:
    return Backend(at.addresses[0], at.number, port)


def view_of(*endpoints: Endpoint, **parts: object) -> View:
    """One service at VIP:80."""
    cluster = Cluster("v/c", "c")
    destination = Destination(VIP, 80, Protocol.TCP, clusters=(WeightedCluster("v/c"),))
    made = View("v", {"v/c": cluster}, {"v/c": endpoints}, {}, {destination.key: destination})
    return replace(made, **parts)  # type: ignore[arg-type]


def tcp(*stages: Rules, **parts: object) -> Inbound:
    made = Inbound((InboundPort(PORT, Protocol.TCP),), Protocol.TCP, every=stages)
    return replace(made, **parts)  # type: ignore[arg-type]


def allow(*names: str) -> Rules:
    checks = (TextCheck(Attribute.PRINCIPAL, MatchKind.EXACT, spiffe(name)) for name in names)
    return Rules(RuleAction.ALLOW, tuple(Policy(f"p{i}", check) for i, check in enumerate(checks)))


def snapshot(view: View, **inbound: Inbound) -> Snapshot:
    return Snapshot(views={"v": view}, inbound=inbound)


def planned(
    given: Snapshot, workloads: Iterable[LocalWorkload] = (WEB, DB), *, identities: bool = True
) -> PlanChanges:
    return Plan(identities=identities).update(given, workloads)


def access(source: int, destination: LocalWorkload, port: int = PORT) -> AccessKey:
    return AccessKey(source, destination.number, port, TCP)


KEY = ServiceKey(VIP, 1, 80, TCP)
ALLOWED, DENIED = Verdict(Access.ALLOW), Verdict(Access.DENY)


def test_a_service_of_this_node_is_planned() -> None:
    changes = planned(snapshot(view_of(endpoint(DB), REMOTE), db=tcp(allow("web"))), (WEB, DB, OTHER))
    assert changes.services == {KEY: (backend(DB), None)}
    assert changes.places == {"v/c": {(DB.addresses[0], PORT): DB.number}}
    assert changes.access == {access(1, DB): ALLOWED, access(3, DB): DENIED}
    assert changes.sources == {each.cookie: Source(each.number, 1) for each in (WEB, DB, OTHER)}


def test_what_does_not_depend_on_the_client_is_one_entry() -> None:
    assert planned(snapshot(view_of(endpoint(DB)), db=tcp())).access == {access(ANY_SOURCE, DB): ALLOWED}
    strict = Rules(RuleAction.ALLOW, (Policy("m", TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT)),))
    assert planned(snapshot(view_of(endpoint(DB)), db=tcp(strict))).access == {
        access(ANY_SOURCE, DB): ALLOWED
    }


def test_nothing_is_planned_for_services_elsewhere() -> None:
    changes = planned(snapshot(view_of(REMOTE), db=tcp()))
    assert (changes.services, changes.access) == ({}, {})
    assert changes.sources.keys() == {WEB.cookie, DB.cookie}


@pytest.mark.parametrize(
    ("parts", "slots"),
    [
        ({}, (backend(DB),)),
        ({"tunnel": None}, None),
        ({"tunnel": Tunnel((DB.identity,), kind=TunnelKind.MTLS)}, None),
        ({"tunnel": Tunnel((DB.identity,), address=REMOTE.address)}, None),
        ({"tunnel": Tunnel((DB.identity,), authority="db:80")}, None),
        ({"tunnel": Tunnel((DB.identity,), inner=(DB.identity,))}, None),
        ({"tunnel": Tunnel((spiffe("another"),))}, None),
        ({"tunnel": Tunnel((spiffe("another"), DB.identity))}, (backend(DB),)),
        ({"healthy": False}, None),
    ],
)
def test_only_endpoints_that_are_the_workload_itself(
    parts: dict[str, object], slots: tuple[Backend, ...] | None
) -> None:
    changes = planned(snapshot(view_of(endpoint(DB, **parts)), db=tcp()))
    assert changes.services == ({KEY: slots} if slots else {})


def test_without_a_ca_plain_endpoints_are_planned() -> None:
    plain = [replace(each, identity="") for each in (WEB, DB)]
    given = snapshot(view_of(endpoint(DB, tunnel=None)), db=tcp())
    assert planned(given, plain, identities=False).services == {KEY: (backend(DB),)}
    tunnelled = snapshot(view_of(endpoint(DB)), db=tcp())
    assert planned(tunnelled, plain, identities=False).services == {}


@pytest.mark.parametrize(
    ("endpoints", "slots"),
    [
        ((endpoint(DB, weight=2), endpoint(OTHER, weight=4)), (backend(DB), backend(OTHER), backend(OTHER))),
        ((endpoint(DB, weight=1), endpoint(OTHER, weight=100_000)), None),
        ((endpoint(DB), endpoint(OTHER, healthy=False)), (backend(DB),)),
        ((endpoint(DB), endpoint(OTHER, priority=1)), (backend(DB),)),
        # By how many are healthy the engine shares between priorities.
        ((endpoint(DB), endpoint(WEB, healthy=False), endpoint(OTHER, priority=1)), None),
        ((endpoint(DB, priority=1), REMOTE), None),
    ],
)
def test_endpoints_are_drawn_as_the_engine_would(
    endpoints: tuple[Endpoint, ...], slots: tuple[Backend, ...] | None
) -> None:
    changes = planned(snapshot(view_of(*endpoints), db=tcp()), (WEB, DB, OTHER))
    assert changes.services == ({KEY: slots} if slots else {})


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (view_of(clusters={"v/c": Cluster("v/c", "c", max_connections=5)}), "limits"),
        (view_of(clusters={"v/c": Cluster("v/c", "c", ClusterKind.ORIGINAL_DST)}), "no endpoints"),
        (view_of(clusters={}), "no endpoints"),
    ],
)
def test_what_the_engine_must_see_to(view: View, reason: str) -> None:
    (destination,) = view.destinations.values()
    assert reason in why_not(destination, view)
    assert planned(snapshot(replace(view, endpoints={"v/c": (endpoint(DB),)}), db=tcp())).services == {}


def test_destinations_that_are_not_plain_tcp_stay_with_the_engine() -> None:
    base = view_of(endpoint(DB))
    (plain,) = base.destinations.values()
    for other, reason in (
        (replace(plain, protocol=Protocol.HTTP, table="v/t"), "HTTP"),
        (replace(plain, clusters=(*plain.clusters, WeightedCluster("v/d"))), "split"),
        (replace(plain, clusters=()), "passed"),
        (replace(plain, address=None), "any address"),
    ):
        view = replace(base, destinations={other.key: other})
        assert reason in why_not(other, view)
        assert planned(snapshot(view, db=tcp())).services == {}


def test_ports_whose_guards_are_not_known_are_not_judged() -> None:
    view = view_of(endpoint(DB))
    for inbound in (
        tcp(ports=(InboundPort(PORT, Protocol.HTTP),)),
        tcp(Rules(RuleAction.LOG, (Policy("p", TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT)),))),
    ):
        assert planned(snapshot(view, db=inbound)).access == {}
    assert planned(snapshot(view)).access == {}
    assert Plan(identities=True).update(snapshot(view, db=tcp()), (WEB, DB), {"db"}).access == {}


def test_without_a_certificate_in_force_nothing_passes() -> None:
    plan = Plan(identities=True)
    given = snapshot(view_of(endpoint(DB)), db=tcp(allow("web")))
    plan.update(given, (WEB, DB))
    expired = plan.update(given, (WEB, replace(DB, in_force=False)))
    assert expired.access == {access(1, DB): None}
    assert expired.sources == {DB.cookie: None}
    assert expired.services == {}, "its endpoint is the same"
    back = plan.update(given, (WEB, DB))
    assert back.access == {access(1, DB): ALLOWED}
    assert plan.update(given, (replace(WEB, in_force=False), DB)).access == {access(1, DB): None}


def test_a_change_is_only_what_changed() -> None:
    plan = Plan(identities=True)
    guards = {"db": tcp(allow("web")), "other": tcp()}
    first = plan.update(snapshot(view_of(endpoint(DB)), **guards), (WEB, DB, OTHER))
    assert first.judge_again, "there may be connections of an earlier agent"
    both = snapshot(view_of(endpoint(DB), endpoint(OTHER)), **guards)
    changes = plan.update(both, (WEB, DB, OTHER))
    assert changes == PlanChanges(
        services={KEY: (backend(DB), backend(OTHER))},
        access={access(ANY_SOURCE, OTHER): ALLOWED},
        places={"v/c": {(each.addresses[0], PORT): each.number for each in (DB, OTHER)}},
    )
    assert plan.update(both, (WEB, DB, OTHER)) == PlanChanges()
    fewer = plan.update(snapshot(view_of(endpoint(OTHER)), **guards), (WEB, DB, OTHER))
    assert fewer.judge_again
    assert fewer.access == {access(1, DB): None, access(3, DB): None}
    gone = plan.update(Snapshot(inbound=guards), (WEB, DB, OTHER))
    assert gone.services == {KEY: None}
    assert gone.sources == dict.fromkeys((WEB.cookie, DB.cookie, OTHER.cookie))


def test_an_address_of_two_workloads_is_nobodys() -> None:
    twin = replace(OTHER, addresses=DB.addresses)
    assert planned(snapshot(view_of(endpoint(DB)), db=tcp()), (WEB, DB, twin)).services == {}


def test_live_connections_are_judged_by_what_holds_now() -> None:
    plan = Plan(identities=True)
    view = view_of(endpoint(DB))

    def stays(given: Snapshot, asked: bytes = VIP) -> bool:
        plan.update(given, (WEB, DB))
        return plan.may_stay(WEB.cookie, (asked, 80), DB.addresses[0], PORT)

    assert stays(snapshot(view, db=tcp(allow("web"))))
    assert not stays(snapshot(view, db=tcp(allow("other"))))
    assert not stays(snapshot(view, db=tcp(ports=(InboundPort(PORT, Protocol.HTTP),))))
    assert stays(snapshot(view)), "nothing is known of its guards"
    assert stays(snapshot(view_of(endpoint(DB, healthy=False)), db=tcp())), "it drains"
    assert not stays(snapshot(view_of(REMOTE), db=tcp())), "the endpoint is gone"
    waypoint = Tunnel((DB.identity,), address=REMOTE.address)
    assert not stays(snapshot(view_of(endpoint(DB, tunnel=waypoint)), db=tcp()))
    assert stays(snapshot(View("v"), db=tcp())), "out of use and forgotten"
    assert not stays(snapshot(View("v"), db=tcp(allow("other")))), "policy still holds"
    assert plan.may_stay(1, (VIP, 80), DB.addresses[0], PORT), "of a client that is gone"
    assert plan.may_stay(WEB.cookie, (VIP, 80), REMOTE.address, PORT)


# -- all at once is the same as one after the other --


def _random_snapshot(rng: random.Random, old: Snapshot) -> Snapshot:
    views = dict(old.views)
    name = rng.choice(("v", "w"))
    view = views.get(name, View(name))
    clusters, endpoints, destinations = dict(view.clusters), dict(view.endpoints), dict(view.destinations)
    number = rng.randrange(6)
    cluster = f"{name}/c{number}"
    clusters[cluster] = Cluster(cluster, cluster, max_connections=rng.choice((4_294_967_295, 5)))
    ends = [workload(at) for at in rng.sample(range(1, 9), 3)]
    endpoints[cluster] = tuple(endpoint(at, rng.choice((PORT, 9001))) for at in ends)
    protocol = rng.choice((Protocol.TCP, Protocol.TCP, Protocol.HTTP))
    shares = (WeightedCluster(f"{name}/c{rng.randrange(6)}"),)
    key = (parse_address(f"10.96.0.{number}"), 80)
    destinations[key] = Destination(*key, protocol, clusters=shares)
    if rng.random() < 0.3 and len(destinations) > 1:
        del destinations[rng.choice(list(destinations))]
    views[name] = View(name, clusters, endpoints, {}, destinations)
    if rng.random() < 0.05:
        del views[name]
    inbound = dict(old.inbound)
    inbound[f"w{rng.randrange(1, 9)}"] = tcp(
        *rng.choice(((), (allow("w1", "w2"),), (allow(),))),
        ports=(InboundPort(9001, rng.choice((Protocol.TCP, Protocol.HTTP)), guards=Guards()),),
    )
    return Snapshot(views=views, inbound=inbound)


def _apply(held: dict[str, dict[object, object]], changes: PlanChanges) -> None:
    for name in ("sources", "services", "access"):
        for key, value in getattr(changes, name).items():
            if value is None:
                del held[name][key]
            else:
                held[name][key] = value


def test_step_by_step_comes_to_the_same() -> None:
    rng = random.Random(5)
    plan, given, here = Plan(identities=True), Snapshot(), {1: workload(1)}
    held: dict[str, dict[object, object]] = {"sources": {}, "services": {}, "access": {}}
    seen = 0
    for _ in range(400):
        given = _random_snapshot(rng, given)
        number = rng.randrange(1, 9)
        if rng.random() < 0.3:
            here.pop(number, None)
        else:
            here[number] = workload(number, view=rng.choice("vw"), in_force=rng.random() < 0.8)
        unusable = {f"w{number}"} if rng.random() < 0.1 else ()
        _apply(held, plan.update(given, here.values(), unusable))
        everything = plan.everything()
        assert held == {
            "sources": everything.sources,
            "services": everything.services,
            "access": everything.access,
        }
        fresh = Plan(identities=True).update(given, here.values(), unusable)
        assert held["access"] == fresh.access
        assert sorted(map(repr, held["services"].values())) == sorted(map(repr, fresh.services.values()))
        assert held["sources"].keys() == fresh.sources.keys()
        seen += len(fresh.access)
    assert seen > 500


def test_what_is_in_force_changes_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a large mesh is planned at a time, in no order; what is stricter waits for nothing."""
    monkeypatch.setattr(bypass_plan, "STEP", 4)
    names = {f"v/c{i}": (parse_address(f"10.96.1.{i}"), 80) for i in range(50)}
    view = View(
        "v",
        {name: Cluster(name, name) for name in names},
        {name: (endpoint(DB),) for name in names},
        {},
        {
            key: Destination(*key, Protocol.TCP, clusters=(WeightedCluster(name),))
            for name, key in names.items()
        },
    )
    plan, given = Plan(identities=True), snapshot(view, db=tcp(allow("web")))
    held: dict[str, dict[object, object]] = {"sources": {}, "services": {}, "access": {}}
    _apply(held, plan.update(given, (WEB, DB)))
    there = [name for name, key in names.items() if plan.is_planned("v", key)]
    missing = [name for name, key in names.items() if plan.is_waiting("v", key)]
    assert there
    assert set(there) | set(missing) == names.keys()
    view = replace(
        view, endpoints={**dict.fromkeys(there, (REMOTE,)), **dict.fromkeys(missing, (endpoint(DB),))}
    )
    _apply(held, plan.update(snapshot(view, db=tcp(allow("web"))), (WEB, DB)))
    assert not any(plan.is_planned("v", names[name]) for name in there)
    gone = names[missing[0]]
    given = snapshot(
        replace(view, destinations={key: value for key, value in view.destinations.items() if key != gone}),
        db=tcp(allow()),
    )
    rounds = 0
    while rounds == 0 or plan.pending:
        _apply(held, plan.update(given, (WEB, DB)))
        rounds += 1
    assert 1 < rounds < 30
    everything = plan.everything()
    assert held["services"] == everything.services
    assert len(held["services"]) == len(missing) - 1
    assert held["access"] == everything.access == {access(ANY_SOURCE, DB): DENIED}


def test_one_change_among_many_services_is_quick() -> None:
    clusters = {f"v/c{i}": Cluster(f"v/c{i}", f"c{i}") for i in range(10_000)}
    endpoints = {name: (endpoint(DB), REMOTE) for name in clusters}
    keys = {name: (parse_address(f"10.{i >> 8}.{i & 255}.1"), 80) for i, name in enumerate(clusters)}
    destinations = {
        key: Destination(*key, Protocol.TCP, clusters=(WeightedCluster(name),)) for name, key in keys.items()
    }
    view = View("v", clusters, endpoints, {}, destinations)
    plan = Plan(identities=True)
    first: dict[ServiceKey, object] = dict(plan.update(snapshot(view, db=tcp()), (WEB, DB)).services)
    assert 0 < len(first) < STEP
    longest = 0.0
    while plan.pending:
        before = time.thread_time()
        first |= plan.update(snapshot(view, db=tcp()), (WEB, DB)).services
        longest = max(longest, time.thread_time() - before)
    assert len(first) == 10_000
    assert longest < 0.2, "others get their turn"
    took = []
    for i in range(5):
        view = replace(view, endpoints={**view.endpoints, f"v/c{i}": (endpoint(DB),)})
        before = time.perf_counter()
        assert len(plan.update(snapshot(view, db=tcp()), (WEB, DB)).services) == 1
        took.append(time.perf_counter() - before)
    assert min(took) < 0.01, took
