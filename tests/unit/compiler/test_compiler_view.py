"""Putting views together: make before break, sharing, and speed with ten thousand services."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from harness import xds_resources as xds

from nodeagent.compiler.cluster import compile_cluster, compile_endpoints
from nodeagent.compiler.listener import compile_listener
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.route import compile_route_configuration, compile_virtual_host
from nodeagent.compiler.view import Assembly, OwnCluster, Pieces, Want, Wants, assemble, replace_endpoints
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.diff import check_consistent, diff
from nodeagent.snapshot.values import ClusterKind, Endpoint, Snapshot, View

SCOPE = Scope("v")
HOST = xds.fqdn("reviews")
OUTBOUND = f"outbound|9080||{HOST}"
KEY = (parse_address("10.96.0.7"), 9080)
WANT = Want(KEY, ("10.96.0.7_9080", "0.0.0.0_9080"), HOST, OUTBOUND, ("9080",))


class Received:
    """What has been answered; the rest is still on the way."""

    def __init__(self) -> None:
        self.absent: set[tuple[str, str]] = set()
        self.pieces = Pieces(self._known)

    def _known(self, kind: str, name: str) -> bool:
        return name in getattr(self.pieces, kind) or (kind, name) in self.absent

    def listener(self) -> None:
        self.pieces.listeners["0.0.0.0_9080"] = compile_listener(xds.http_listener(9080), SCOPE)
        self.absent |= {("listeners", "10.96.0.7_9080"), ("listeners", "virtualOutbound")}

    def route(self) -> None:
        message = xds.route_configuration("9080", on_demand=True)
        self.pieces.routes["9080"] = compile_route_configuration(message, SCOPE)

    def host(self, *routes: Any) -> None:
        message = xds.virtual_host("reviews", 9080, routes or [xds.forward(OUTBOUND)])
        self.pieces.hosts[f"9080/{HOST}"] = compile_virtual_host(message, SCOPE)

    def cluster(self, name: str = OUTBOUND) -> None:
        self.pieces.clusters[name] = compile_cluster(xds.cluster(name), SCOPE)

    def endpoints(self, *addresses: str, name: str = OUTBOUND) -> None:
        message = xds.assignment(name, *(addresses or ("10.244.0.8",)))
        self.pieces.endpoints[name] = compile_endpoints(message, SCOPE)

    def passthrough(self) -> None:
        self.pieces.clusters["PassthroughCluster"] = compile_cluster(xds.passthrough(), SCOPE)

    def assemble(self, previous: View | None = None, **wants: Any) -> Assembly:
        wanted = Wants(wants.pop("destinations", {KEY: WANT}), **wants)
        assembly = assemble(SCOPE, self.pieces, wanted, previous or View("v"))
        check_consistent(Snapshot(views={"v": assembly.view}))
        return assembly


def everything() -> Received:
    received = Received()
    for step in (
        received.listener,
        received.route,
        received.host,
        received.cluster,
        received.endpoints,
        received.passthrough,
    ):
        step()
    return received


class TestCompleteness:
    def test_nothing_shows_until_the_last_part_is_there(self) -> None:
        steps = ("listener", "route", "host", "cluster", "endpoints", "passthrough")
        for last in steps:
            received = Received()
            for step in steps:
                if step != last:
                    getattr(received, step)()
            assembly = received.assemble()
            assert assembly.view.destinations == {}, last
            assert assembly.pending
            getattr(received, last)()
            assert KEY in received.assemble().view.destinations, last

    def test_all_names_are_asked_for_at_once(self) -> None:
        needs = Received().assemble().needs
        assert needs["listeners"] == {"10.96.0.7_9080", "0.0.0.0_9080", "virtualOutbound"}
        assert needs["routes"] == {"9080"}
        assert needs["hosts"] == {f"9080/{HOST}"}
        assert needs["clusters"] == {OUTBOUND, "PassthroughCluster"}
        assert needs["endpoints"] == {OUTBOUND}

    def test_what_is_known_to_be_absent_is_no_reason_to_wait(self) -> None:
        received = everything()
        del received.pieces.hosts[f"9080/{HOST}"]
        received.absent.add(("hosts", f"9080/{HOST}"))
        assert KEY in received.assemble().view.destinations
        del received.pieces.clusters[OUTBOUND]
        received.absent.add(("clusters", OUTBOUND))
        assert received.assemble().view.destinations[KEY].clusters == ()

    def test_a_cluster_without_endpoints_answer_is_waited_for_and_then_empty(self) -> None:
        received = everything()
        del received.pieces.endpoints[OUTBOUND]
        assert received.assemble().incomplete == {KEY}
        received.absent.add(("endpoints", OUTBOUND))
        assert received.assemble().view.endpoints == {f"v/{OUTBOUND}": ()}

    def test_a_missing_route_configuration_leaves_an_empty_table(self) -> None:
        received = everything()
        received.pieces.routes.clear()
        received.absent.add(("routes", "9080"))
        view = received.assemble().view
        assert view.tables["v/9080"].virtual_hosts == {}
        assert view.destinations[KEY].table == "v/9080"


class TestMakeBeforeBreak:
    V9 = f"outbound|9080|v9|{HOST}"

    def test_a_change_that_is_not_complete_leaves_the_old_one(self) -> None:
        received = everything()
        before = received.assemble().view
        received.host(xds.forward(self.V9))
        assembly = received.assemble(before)
        assert assembly.view is before
        assert assembly.pending
        assert self.V9 in assembly.needs["clusters"]
        received.cluster(self.V9)
        received.endpoints(name=self.V9)
        after = received.assemble(before).view
        assert f"v/{self.V9}" in after.clusters
        assert KEY in after.destinations

    def test_a_cluster_that_is_taken_away_from_under_its_route_is_a_black_hole(self) -> None:
        received = everything()
        before = received.assemble().view
        del received.pieces.clusters[OUTBOUND]
        received.absent.add(("clusters", OUTBOUND))
        hole = received.assemble(before).view.clusters[f"v/{OUTBOUND}"]
        assert hole.kind is ClusterKind.BLACKHOLE
        assert hole.service is not None
        assert (hole.service.name, hole.service.namespace) == ("reviews", "default")

    def test_an_old_route_s_cluster_is_kept_while_it_is_in_use(self) -> None:
        received = everything()
        before = received.assemble().view
        received.host(xds.forward(self.V9))
        del received.pieces.clusters[OUTBOUND]
        view = received.assemble(before).view
        assert view.clusters[f"v/{OUTBOUND}"] is before.clusters[f"v/{OUTBOUND}"]
        assert view.endpoints[f"v/{OUTBOUND}"] is before.endpoints[f"v/{OUTBOUND}"]

    def test_what_an_old_route_needs_stays_when_it_is_taken_away_before_the_new_one_is_complete(self) -> None:
        """The server has sent the new route, and then takes away what only the old one used."""
        received = everything()
        v1 = f"outbound|9080|v1|{HOST}"
        received.host(xds.forward(v1))
        received.cluster(v1)
        received.endpoints(name=v1)
        before = received.assemble().view
        received.host(xds.forward(self.V9))
        for taken in ("endpoints", "clusters"):
            del getattr(received.pieces, taken)[v1]
            received.absent.add((taken, v1))
            assert received.assemble(before).view is before, taken
        received.cluster(self.V9)
        assert received.assemble(before).view is before, "the new one has no endpoints yet"
        received.endpoints(name=self.V9)
        after = received.assemble(before).view
        assert after.clusters.keys() == before.clusters.keys() - {f"v/{v1}"} | {f"v/{self.V9}"}

    def test_so_does_what_an_old_tcp_destination_needs(self) -> None:
        received = everything()
        address = "10.96.0.7"
        want = Want(KEY, (f"{address}_9080",), HOST, "", ())
        listeners = received.pieces.listeners
        listeners[f"{address}_9080"] = compile_listener(xds.tcp_listener(address, 9080, OUTBOUND), SCOPE)
        before = received.assemble(destinations={KEY: want}).view
        assert [share.cluster for share in before.destinations[KEY].clusters] == [f"v/{OUTBOUND}"]
        listeners[f"{address}_9080"] = compile_listener(xds.tcp_listener(address, 9080, self.V9), SCOPE)
        for taken in ("endpoints", "clusters"):
            del getattr(received.pieces, taken)[OUTBOUND]
            received.absent.add((taken, OUTBOUND))
            assert received.assemble(before, destinations={KEY: want}).view is before, taken
        received.absent.add(("clusters", self.V9))
        after = received.assemble(before, destinations={KEY: want}).view
        assert after.clusters[f"v/{self.V9}"].kind is ClusterKind.BLACKHOLE
        assert f"v/{OUTBOUND}" not in after.clusters

    def test_the_way_through_a_waypoint_stays_until_the_one_without_is_complete(self) -> None:
        """The server knows nothing of the cluster that stands for it, and may say so first."""
        name = f"waypoint|9080|10.96.0.7|{HOST}"
        endpoint = Endpoint(parse_address("10.244.0.9"), 15008)
        by_waypoint = Want(KEY, (), own=OwnCluster(name, (endpoint,)))
        before = Received().assemble(destinations={KEY: by_waypoint}).view
        received = Received()
        received.absent.add(("clusters", name))
        assert received.assemble(before).view is before
        after = everything().assemble(before).view
        assert f"v/{name}" not in after.clusters

    def test_so_does_the_cluster_of_a_callout_that_waits_for_its_successor(self) -> None:
        received = everything()
        wants = {"destinations": {}, "clusters": frozenset({OUTBOUND})}
        before = received.assemble(**wants).view
        for taken in ("endpoints", "clusters"):
            del getattr(received.pieces, taken)[OUTBOUND]
            received.absent.add((taken, OUTBOUND))
            assert received.assemble(before, **wants, held=frozenset({OUTBOUND})).view is before, taken
        gone = received.assemble(before, **wants).view.clusters[f"v/{OUTBOUND}"]
        assert gone.kind is ClusterKind.BLACKHOLE

    def test_a_destination_that_is_not_wanted_goes_with_all_that_is_its_own(self) -> None:
        received = everything()
        before = received.assemble().view
        assembly = received.assemble(before, destinations={})
        assert assembly.view == View("v")
        assert assembly.needs["clusters"] == {"PassthroughCluster"}
        assert assembly.needs["endpoints"] == set()

    def test_the_same_pieces_give_the_same_view(self) -> None:
        received = everything()
        before = received.assemble().view
        assert received.assemble(before).view is before


class TestEndpoints:
    def test_the_short_way_does_what_the_long_one_does(self) -> None:
        received = everything()
        before = received.assemble().view
        received.endpoints("10.244.0.8", "10.244.0.9")
        short = replace_endpoints(before, SCOPE, received.pieces, [OUTBOUND])
        assert short == received.assemble(before).view
        assert short is not None
        assert short.tables is before.tables

    def test_the_short_way_declines_what_it_cannot_do(self) -> None:
        received = everything()
        before = received.assemble().view
        received.endpoints(name="other")
        assert replace_endpoints(before, SCOPE, received.pieces, ["other"]) is None
        del received.pieces.endpoints[OUTBOUND]
        assert replace_endpoints(before, SCOPE, received.pieces, [OUTBOUND]) is None


class TestScale:
    COUNT = 10_000

    def _mesh(self) -> Received:
        received = Received()
        received.passthrough()
        received.absent.add(("listeners", "virtualOutbound"))
        template, shape = compile_cluster(xds.cluster("x"), SCOPE), xds.assignment("x", "10.244.0.8")
        endpoints = compile_endpoints(shape, SCOPE)
        for number in range(self.COUNT):
            name = f"outbound|80||service-{number}.default.svc.cluster.local"
            vip = f"10.96.{number // 250}.{number % 250}"
            listener = compile_listener(xds.tcp_listener(vip, 80, name), SCOPE)
            received.pieces.listeners[listener.name] = listener
            value = replace(template.value, name=f"v/{name}", xds_name=name)
            received.pieces.clusters[name] = replace(template, value=value, eds_name=name)
            received.pieces.endpoints[name] = endpoints
        return received

    def test_one_endpoint_of_ten_thousand_services_costs_milliseconds(self) -> None:
        received = self._mesh()
        before = received.assemble(everything=True, destinations={}).view
        assert len(before.clusters) == self.COUNT
        old = Snapshot(views={"v": before})
        name = "outbound|80||service-77.default.svc.cluster.local"
        best = 1.0
        for round_number in range(5):
            message = xds.assignment(name, f"10.244.1.{round_number}")
            started = time.process_time()
            received.pieces.endpoints[name] = compile_endpoints(message, SCOPE)
            view = replace_endpoints(before, SCOPE, received.pieces, [name])
            assert view is not None
            new = Snapshot(views={"v": view})
            check_consistent(new, since=old)
            changes = diff(old, new)
            best = min(best, time.process_time() - started)
            assert [cluster for cluster, _ in changes.endpoints] == [f"v/{name}"]
        assert best < 0.010
