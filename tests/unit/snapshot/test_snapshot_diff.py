"""Differences between snapshots, and what is refused as inconsistent."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nodeagent.errors import CompileError
from nodeagent.snapshot.address import format_endpoint, parse_address, widen_address
from nodeagent.snapshot.diff import check_consistent, diff
from nodeagent.snapshot.values import (
    EMPTY,
    Cluster,
    ClusterKind,
    Destination,
    Endpoint,
    Forward,
    Hints,
    Inbound,
    InboundPort,
    Protocol,
    Route,
    RouteTable,
    Snapshot,
    View,
    VirtualHost,
    WeightedCluster,
)

VIP = parse_address("10.96.0.7")


def a_cluster(name: str = "reviews", **fields: object) -> Cluster:
    return replace(Cluster(f"v/{name}", name), **fields)  # type: ignore[arg-type]


def a_host(name: str = "reviews", cluster: str = "v/reviews", domains: tuple[str, ...] = ()) -> VirtualHost:
    route = Route("default", Forward((WeightedCluster(cluster),)))
    return VirtualHost(name, domains or (name,), (route,))


def a_view(**fields: object) -> View:
    table = RouteTable("v/9080", "9080", {"reviews": a_host()})
    destination = Destination(VIP, 9080, Protocol.HTTP, "v/9080", (WeightedCluster("v/reviews"),))
    view = View(
        "v",
        {"v/reviews": a_cluster()},
        {"v/reviews": (Endpoint(parse_address("10.244.0.3"), 9080),)},
        {"v/9080": table},
        {destination.key: destination},
    )
    return replace(view, **fields)  # type: ignore[arg-type]


def a_snapshot(view: View | None = None, **fields: object) -> Snapshot:
    return replace(Snapshot(1, {"v": view or a_view()}), **fields)  # type: ignore[arg-type]


class TestDiff:
    def test_from_nothing_tells_everything(self) -> None:
        changes = diff(EMPTY, a_snapshot(hints=Hints(frozenset([VIP]), frozenset([9080]))))
        assert [view.name for view in changes.views] == ["v"]
        assert [cluster.name for cluster in changes.clusters] == ["v/reviews"]
        assert [name for name, _ in changes.endpoints] == ["v/reviews"]
        assert [table.name for table in changes.tables] == ["v/9080"]
        assert [(table, host.name) for table, host in changes.virtual_hosts] == [("v/9080", "reviews")]
        assert [(view, destination.port) for view, destination in changes.destinations] == [("v", 9080)]
        assert changes.hints is not None
        assert changes

    def test_names_that_came_changed_and_went(self) -> None:
        one, two = (VIP,), (VIP, parse_address("10.96.0.8"))
        before = a_snapshot(names={"same": one, "other": one, "gone": one})
        changes = diff(before, a_snapshot(names={"same": one, "other": two, "new": one}))
        assert changes.names == [("other", two), ("new", one), ("gone", ())]
        assert changes
        assert not diff(before, a_snapshot(names=dict(before.names)))

    def test_equal_snapshots_have_no_difference(self) -> None:
        assert not diff(a_snapshot(), a_snapshot())

    def test_one_endpoint_changes_nothing_else(self) -> None:
        old = a_snapshot()
        endpoints = {"v/reviews": (Endpoint(parse_address("10.244.0.4"), 9080),)}
        changes = diff(old, a_snapshot(replace(old.views["v"], endpoints=endpoints)))
        assert changes.endpoints == [("v/reviews", endpoints["v/reviews"])]
        changes.endpoints = []
        assert not changes

    def test_endpoints_that_go_are_emptied(self) -> None:
        changes = diff(a_snapshot(), a_snapshot(a_view(endpoints={})))
        assert changes.endpoints == [("v/reviews", ())]

    def test_a_cluster_that_becomes_a_blackhole_is_not_given_endpoints(self) -> None:
        hole = a_cluster(kind=ClusterKind.BLACKHOLE)
        changes = diff(a_snapshot(), a_snapshot(a_view(clusters={"v/reviews": hole}, endpoints={})))
        assert changes.clusters == [hole]
        assert changes.endpoints == []

    def test_a_domain_may_move_between_virtual_hosts(self) -> None:
        before = {"a": a_host("a", domains=("x", "y")), "b": a_host("b", domains=("z",))}
        after = {"a": a_host("a", domains=("y",)), "b": a_host("b", domains=("z", "x"))}
        changes = diff(
            a_snapshot(a_view(tables={"v/9080": RouteTable("v/9080", "9080", before)})),
            a_snapshot(a_view(tables={"v/9080": RouteTable("v/9080", "9080", after)})),
        )
        assert changes.virtual_hosts_removed == [("v/9080", "a"), ("v/9080", "b")]
        assert [host.name for _, host in changes.virtual_hosts] == ["a", "b"]
        assert changes.tables == []

    def test_unknown_hosts_come_and_go(self) -> None:
        table = a_view().tables["v/9080"]
        old = a_view(tables={"v/9080": replace(table, unknown_hosts=frozenset(["a", "b"]))})
        new = a_view(tables={"v/9080": replace(table, unknown_hosts=frozenset(["b", "c"]))})
        changes = diff(a_snapshot(old), a_snapshot(new))
        assert changes.hosts_unknown == [("v/9080", "a", False), ("v/9080", "c", True)]
        assert changes.virtual_hosts == []

    def test_a_view_goes_with_all_that_it_has(self) -> None:
        changes = diff(a_snapshot(), Snapshot(2))
        assert changes.views_removed == ["v"]
        assert changes.clusters_removed == ["v/reviews"]
        assert changes.tables_removed == ["v/9080"]
        assert changes.destinations_removed == [("v", (VIP, 9080))]

    def test_inbound_changes_by_workload(self) -> None:
        old = a_snapshot(inbound={"a": Inbound(), "b": Inbound(), "c": Inbound()})
        port = Inbound((InboundPort(80, Protocol.HTTP),))
        changes = diff(old, a_snapshot(inbound={"a": Inbound(), "b": port}))
        assert changes.inbound == [("b", port)]
        assert changes.inbound_removed == ["c"]

    def test_one_endpoint_of_ten_thousand_clusters_is_quick(self) -> None:
        clusters = {f"v/{i}": Cluster(f"v/{i}", str(i)) for i in range(10_000)}
        endpoints = {name: (Endpoint(VIP, 80),) for name in clusters}
        old = a_snapshot(View("v", clusters, endpoints))
        moved = {**endpoints, "v/77": (Endpoint(VIP, 81),)}
        new = a_snapshot(View("v", clusters, moved))
        best = 1.0
        for _ in range(3):
            started = time.process_time()
            changes = diff(old, new)
            check_consistent(new, since=old)
            best = min(best, time.process_time() - started)
        assert best < 0.01
        assert [name for name, _ in changes.endpoints] == ["v/77"]


class TestConsistency:
    def test_a_good_snapshot_passes(self) -> None:
        check_consistent(a_snapshot())

    @pytest.mark.parametrize(
        ("view", "message"),
        [
            (a_view(clusters={}, endpoints={}), "names cluster 'v/reviews', which is not there"),
            (a_view(clusters={}), "endpoints for 'v/reviews', which is no cluster of endpoints"),
            (a_view(tables={}), "names route table 'v/9080', which is not there"),
            (
                a_view(endpoints={"v/reviews": (Endpoint(b"\1\2\3\4", 80),)}),
                "cluster v/reviews: endpoint .* is malformed",
            ),
            (
                a_view(
                    tables={
                        "v/9080": RouteTable(
                            "v/9080", "9080", {"a": a_host("a"), "b": a_host("b", domains=("A",))}
                        )
                    }
                ),
                "domain 'A' is in both 'a' and 'b'",
            ),
            (a_view(destinations={(None, 80): Destination(VIP, 80, Protocol.TCP)}), "is filed under"),
            (
                a_view(destinations={(VIP, 80): Destination(VIP, 80, Protocol.TCP, "v/9080")}),
                "speaks TCP and has route table",
            ),
        ],
    )
    def test_what_refers_to_nothing_is_named(self, view: View, message: str) -> None:
        with pytest.raises(CompileError, match=message):
            check_consistent(a_snapshot(view))

    def test_a_cluster_taken_from_under_a_shared_table_is_found(self) -> None:
        old = a_snapshot()
        new = a_snapshot(replace(old.views["v"], clusters={}, endpoints={}))
        with pytest.raises(CompileError, match="names cluster"):
            check_consistent(new, since=old)

    @pytest.mark.parametrize("ports", [(80, 80), (0,), (70000,)])
    def test_inbound_ports_are_checked(self, ports: tuple[int, ...]) -> None:
        inbound = Inbound(tuple(InboundPort(port, Protocol.TCP) for port in ports))
        with pytest.raises(CompileError, match="inbound ports of uid-1"):
            check_consistent(Snapshot(inbound={"uid-1": inbound}))


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "port", "shown"),
        [
            ("10.0.0.1", 80, "10.0.0.1:80"),
            ("fd00::1", 443, "[fd00::1]:443"),
            ("::ffff:1.2.3.4", 1, "1.2.3.4:1"),
        ],
    )
    def test_round_trip(self, text: str, port: int, shown: str) -> None:
        assert format_endpoint(parse_address(text), port) == shown

    def test_what_is_no_address_is_said(self) -> None:
        with pytest.raises(ValueError, match="'reviews' is not an IP address"):
            parse_address("reviews")
        with pytest.raises(ValueError, match="4 or 16 bytes, not 5"):
            widen_address(b"12345")
