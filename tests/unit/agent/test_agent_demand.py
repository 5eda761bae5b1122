"""What is asked for in a connection's name, and how long it is wanted."""

from __future__ import annotations

import pytest
from harness import xds_resources as xds

from nodeagent.app.agent_demand import Demand, DemandCounters, want_for
from nodeagent.compiler.view import Want
from nodeagent.compiler.workloads import WorkloadIndex, apply_addresses
from nodeagent.snapshot.address import parse_address


@pytest.fixture
def index() -> WorkloadIndex:
    index = WorkloadIndex("node-a")
    dual = xds.service("dual", "10.96.0.9", (80, "http"))
    dual.service.addresses.add(address=xds.pack_address("fd00::9"))
    services = {
        "http": xds.service("http", "10.96.0.1", (80, "http")),
        "tcp": xds.service("tcp", "10.96.0.2", (3306, "tcp")),
        "any": xds.service("any", "10.96.0.3", (9000, "")),
        "dual": dual,
        "pod": xds.workload("db-0", "10.244.0.3"),
    }
    apply_addresses(index, services.items(), ())
    return index


@pytest.mark.parametrize(
    ("address", "port", "listeners", "host", "cluster", "routes"),
    [
        ("10.96.0.1", 80, ("10.96.0.1_80", "0.0.0.0_80"), "http", "outbound|80||", ("80",)),
        ("10.96.0.2", 3306, ("10.96.0.2_3306", "0.0.0.0_3306"), "tcp", "outbound|3306||", ()),
        ("10.96.0.3", 9000, ("10.96.0.3_9000", "0.0.0.0_9000"), "any", "outbound|9000||", None),
        (
            "fd00::9",
            80,
            ("fd00::9_80", "10.96.0.9_80", "0.0.0.0_80", "[::]_80", "::_80"),
            "dual",
            "outbound|80||",
            ("80",),
        ),
        ("10.244.0.3", 3306, ("10.244.0.3_3306", "0.0.0.0_3306"), "", "", ("3306",)),
        ("192.0.2.1", 80, ("0.0.0.0_80",), "", "", ("80",)),
        ("10.96.0.1", 81, ("0.0.0.0_81",), "", "", ("81",)),
    ],
)
def test_what_a_destination_implies(
    index: WorkloadIndex,
    address: str,
    port: int,
    listeners: tuple[str, ...],
    host: str,
    cluster: str,
    routes: tuple[str, ...] | None,
) -> None:
    fqdn = xds.fqdn(host) if host else ""
    expected = Want(
        (parse_address(address), port),
        listeners,
        fqdn,
        f"{cluster}{fqdn}",
        routes if routes is not None else (f"{fqdn}:{port}",),
    )
    assert want_for(index, parse_address(address), port) == expected


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_want(number: int, host: str = "") -> Want:
    return Want((parse_address(f"10.96.0.{number}"), 80), (f"10.96.0.{number}_80",), host, routes=("80",))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def demand(clock: Clock) -> Demand:
    return Demand(limit=16, ttl=100, negative_ttl=10, counters=DemandCounters(), clock=clock)


class TestDemand:
    def test_wanting_again_is_no_news(self, demand: Demand) -> None:
        assert demand.want(a_want(1))
        assert not demand.want(a_want(1))
        assert demand.want(a_want(1, host="now-a-service"))

    def test_use_keeps_and_disuse_drops(self, demand: Demand, clock: Clock) -> None:
        demand.want(a_want(1))
        demand.want(a_want(2))
        clock.now = 90
        demand.touch(a_want(1).key)
        clock.now = 101
        assert demand.expire()
        assert list(demand.destinations) == [a_want(1).key]
        assert not demand.expire()

    def test_revising_is_no_use(self, demand: Demand, clock: Clock) -> None:
        demand.want(a_want(1))
        clock.now = 90
        assert demand.revise(a_want(1, host="service"))
        assert not demand.revise(a_want(1, host="service"))
        assert not demand.revise(a_want(3))
        clock.now = 101
        assert demand.expire()

    def test_over_the_limit_the_least_recently_used_goes(self, demand: Demand) -> None:
        for number in range(16):
            demand.want(a_want(number))
        demand.touch(a_want(0).key)
        demand.want(a_want(99))
        assert a_want(0).key in demand.destinations
        assert a_want(1).key not in demand.destinations
        assert len(demand.destinations) == 16

    def test_names_that_are_made_up_do_not_drive_out_those_that_are(self, demand: Demand) -> None:
        for number in range(12):
            demand.want_host(f"80/real-{number}")
        demand.settle_hosts(lambda name: True)
        for number in range(100):
            demand.want_host(f"80/fake-{number}")
            demand.settle_hosts(lambda name: "real" in name)
        assert {name for name in demand.hosts if "real" in name} == {f"80/real-{n}" for n in range(12)}
        assert len(demand.hosts) == 12 + 4

    def test_an_unknown_host_is_forgotten_soon(self, demand: Demand, clock: Clock) -> None:
        demand.want_host("80/real")
        demand.want_host("80/fake")
        demand.settle_hosts(lambda name: name == "80/real")
        assert not demand.want_host("80/fake")
        clock.now = 11
        assert demand.expire()
        assert demand.hosts == {"80/real"}

    def test_an_unknown_host_that_comes_to_exist_counts_as_known(self, demand: Demand, clock: Clock) -> None:
        demand.want_host("80/late")
        demand.settle_hosts(lambda name: False)
        demand.settle_hosts(lambda name: True)
        clock.now = 11
        assert not demand.expire()

    def test_a_used_host_keeps_the_destination_of_its_service(self, demand: Demand, clock: Clock) -> None:
        demand.want(a_want(1, host="reviews"))
        demand.want_host("80/reviews")
        clock.now = 90
        demand.touch_hosts(["80/reviews"])
        clock.now = 101
        assert not demand.expire()
