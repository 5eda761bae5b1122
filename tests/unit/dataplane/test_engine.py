"""The engine's owner with the real engine, on the loopback of a namespace, without capture."""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from harness import Namespace, require

from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.dataplane.listener_kinds import Listener
from nodeagent.dataplane.report import ConnectionState, StatKind, StatRow, WireProtocol
from nodeagent.dataplane.route_choice import RouteChoice, RouteQuestion
from nodeagent.errors import EngineError, NetnsError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchKind, PathMatch
from nodeagent.snapshot.values import (
    Cluster,
    ClusterUse,
    Destination,
    DestinationNeeded,
    DestinationUse,
    Endpoint,
    Forward,
    Hints,
    HostNeeded,
    Inbound,
    InboundPort,
    Protocol,
    Respond,
    Route,
    RouteTable,
    ServiceRef,
    Snapshot,
    View,
    VirtualHost,
    VirtualHostUse,
    WeightedCluster,
    WorkloadRef,
)

pytestmark = pytest.mark.netns

LOOPBACK = parse_address("127.0.0.1")
FRONT, BACK, INBOUND = 15080, 9000, 15081
PLAIN = (Listener(2, FRONT),)
REF = WorkloadRef("u", "back", "default", workload_name="back")
SERVICE = ServiceRef("back.default.svc.cluster.local", "back", "default")
XDS_NAME = f"outbound|{BACK}||back"
CLUSTER = Cluster(f"v/{XDS_NAME}", XDS_NAME, service=SERVICE)
ENDPOINTS = (Endpoint(LOOPBACK, BACK, workload=REF),)
TABLE = "v/80"


def respond(status: int) -> tuple[Route, ...]:
    return (Route("r", Respond(status)),)


def virtual_host(name: str, routes: tuple[Route, ...]) -> VirtualHost:
    return VirtualHost(name, (f"{name}.test",), routes)


FORWARDING = virtual_host("back", (Route("to-back", Forward((WeightedCluster(CLUSTER.name),))),))


def snapshot(*hosts: VirtualHost, on_demand: bool = False, **changes: Any) -> Snapshot:
    """One view: connections to the front are HTTP by a table with the given hosts."""
    table = RouteTable(TABLE, "80", {host.name: host for host in hosts}, on_demand)
    destination = Destination(LOOPBACK, FRONT, Protocol.HTTP, table=TABLE)
    view = View(
        "v",
        {CLUSTER.name: CLUSTER},
        {CLUSTER.name: ENDPOINTS},
        {TABLE: table},
        {destination.key: destination},
    )
    return Snapshot(views={"v": replace(view, **changes)})


class Bench:
    """An engine that serves a workload in a namespace."""

    def __init__(self, engine: EngineOwner, namespace: Namespace) -> None:
        self.engine = engine
        self.namespace = namespace

    async def get(self, host: str, path: str = "/", port: int = FRONT) -> int:
        """The status of a request."""

        def request() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path, headers={"Host": host})
                return connection.getresponse().status
            finally:
                connection.close()

        return await asyncio.to_thread(self.namespace.run, request)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    require("root", "engine")
    namespace = Namespace(f"nt-engine-{id(object())}")
    engine = EngineOwner(EngineSettings(access_log=True))
    engine.start()
    try:
        engine.add_workload("pod", namespace.handle, "v", [LOOPBACK], PLAIN)
        yield Bench(engine, namespace)
    finally:
        await engine.stop(0)
        engine.close()
        namespace.close()


@pytest.fixture
def backend(bench: Bench) -> None:
    server = bench.namespace.start([sys.executable, "-m", "http.server", str(BACK), "--bind", "127.0.0.1"])
    server.wait_for_port(BACK)


# -- configuration --


async def test_a_snapshot_takes_effect_and_its_difference_too(bench: Bench) -> None:
    engine = bench.engine
    assert engine.apply(snapshot(virtual_host("a", respond(201)))) == ()
    assert await bench.get("a.test") == 201
    assert await bench.get("b.test") == 404
    engine.apply(snapshot(virtual_host("a", respond(202)), virtual_host("b", respond(203))))
    assert (await bench.get("a.test"), await bench.get("b.test")) == (202, 203)
    engine.apply(snapshot(virtual_host("b", respond(203))))
    assert (await bench.get("a.test"), await bench.get("b.test")) == (404, 203)
    await bench.until(engine.settled)


async def test_applying_the_same_again_is_no_change(bench: Bench) -> None:
    bench.engine.apply(snapshot(FORWARDING))
    committed = bench.engine.committed()
    bench.engine.apply(replace(snapshot(FORWARDING), version=7))
    assert bench.engine.committed() == committed
    assert bench.engine.applied.version == 7


async def test_a_domain_moves_from_one_virtual_host_to_another(bench: Bench) -> None:
    one, two = VirtualHost("one", ("x.test",), respond(201)), VirtualHost("two", ("y.test",), respond(202))
    bench.engine.apply(snapshot(one, two))
    bench.engine.apply(snapshot(replace(one, domains=("y.test",)), replace(two, domains=("x.test",))))
    assert (await bench.get("x.test"), await bench.get("y.test")) == (202, 201)


BAD_PATH = PathMatch(MatchKind.REGEX, "(unclosed")


async def test_a_bad_virtual_host_is_named_and_the_rest_applies(bench: Bench) -> None:
    bad = virtual_host("bad", (Route("broken", Respond(200), path=BAD_PATH),))
    (rejection,) = bench.engine.apply(snapshot(bad, virtual_host("good", respond(201))))
    assert (rejection.table, rejection.virtual_host) == (TABLE, "bad")
    assert "route broken" in rejection.message
    assert "(unclosed" in rejection.message
    assert await bench.get("good.test") == 201
    assert bench.engine.apply(snapshot(bad, virtual_host("good", respond(202)))) == (rejection,), (
        "until it is mended"
    )
    assert bench.engine.apply(snapshot(virtual_host("bad", respond(203)))) == ()
    assert await bench.get("bad.test") == 203


async def test_what_a_bad_virtual_host_was_before_stays(bench: Bench) -> None:
    bench.engine.apply(snapshot(virtual_host("a", respond(201))))
    bad = virtual_host("a", (Route("broken", Respond(200), path=BAD_PATH),))
    assert len(bench.engine.apply(snapshot(bad))) == 1
    assert await bench.get("a.test") == 201
    moved = replace(bad, domains=("moved.test",))
    assert len(bench.engine.apply(snapshot(moved))) == 1
    assert await bench.get("a.test") == 201
    assert bench.engine.apply(snapshot()) == ()
    assert await bench.get("a.test") == 404


async def test_what_a_bad_virtual_host_was_before_goes_with_its_cluster(bench: Bench) -> None:
    bench.engine.apply(snapshot(FORWARDING, virtual_host("good", respond(201))))
    bad = virtual_host("back", (Route("broken", Respond(200), path=BAD_PATH),))
    after = snapshot(bad, virtual_host("good", respond(202)), clusters={}, endpoints={})
    assert len(bench.engine.apply(after)) == 1
    assert (await bench.get("back.test"), await bench.get("good.test")) == (404, 202)


async def test_an_inconsistent_snapshot_changes_nothing(bench: Bench) -> None:
    bench.engine.apply(snapshot(virtual_host("a", respond(201))))
    with pytest.raises(EngineError, match=r"outbound\|9000"):
        bench.engine.apply(snapshot(FORWARDING, virtual_host("a", respond(202)), clusters={}, endpoints={}))
    assert await bench.get("a.test") == 201
    bench.engine.apply(snapshot(FORWARDING, virtual_host("a", respond(203))))
    assert await bench.get("a.test") == 203


async def test_names_that_would_be_cut_are_refused(bench: Bench) -> None:
    (rejection,) = bench.engine.apply(snapshot(virtual_host("nul\0", respond(200))))
    assert "NUL" in rejection.message


async def test_numbers_of_what_is_gone_are_released(bench: Bench) -> None:
    for _ in range(3):
        bench.engine.apply(
            snapshot(FORWARDING, virtual_host("a", respond(201)), virtual_host("b", respond(201)))
        )
        bench.engine.apply(snapshot())
        bench.engine.apply(Snapshot())
    assert len(bench.engine._tags) == 0


# -- reports --


async def requests_reported(bench: Bench) -> list[StatRow]:
    """Drain the rows of requests; the client may have its answer before the worker has recorded it."""
    rows: list[StatRow] = []

    def look() -> bool:
        rows.extend(row for row in bench.engine.drain_stats() if row.kind is StatKind.HTTP)
        return bool(rows)

    await bench.until(look)
    return rows


async def test_reports_have_the_values_behind_the_numbers(bench: Bench, backend: None) -> None:
    bench.engine.apply(snapshot(FORWARDING))
    assert await bench.get("back.test", "/x?y=1") == 404
    (row,) = await requests_reported(bench)
    assert (row.workload, row.inbound, row.protocol) == ("pod", False, WireProtocol.HTTP1)
    assert (row.cluster, row.endpoint, row.status, row.count) == (CLUSTER, ENDPOINTS[0], 404, 1)
    assert sum(row.duration) == sum(row.request_size) == sum(row.response_size) == 1
    assert bench.engine.drain_stats() == []
    (record,) = bench.engine.drain_access()
    assert (record.method, record.path, record.authority) == ("GET", "/x?y=1", "back.test")
    assert (record.cluster, record.route, record.status) == (CLUSTER, "to-back", 404)
    assert record.upstream_remote == (LOOPBACK, BACK)
    assert record.downstream_local == (LOOPBACK, FRONT)
    counters = {counter.name: counter for counter in bench.engine.counters()}
    assert counters["downstream_rq_total"].value == 1
    assert counters["downstream_cx_active"].gauge
    assert not counters["downstream_rq_total"].gauge


async def test_reports_of_what_is_gone_still_have_it(bench: Bench, backend: None) -> None:
    bench.engine.apply(snapshot(FORWARDING))
    await bench.get("back.test")
    bench.engine.apply(Snapshot())
    await bench.engine.remove_workload("pod", 0)
    (row,) = await requests_reported(bench)
    assert (row.workload, row.cluster, row.endpoint) == ("pod", CLUSTER, ENDPOINTS[0])


async def test_usage(bench: Bench, backend: None) -> None:
    bench.engine.apply(snapshot(FORWARDING))
    await bench.until(bench.engine.settled)
    await bench.get("back.test")
    assert set(bench.engine.usage()) == {
        DestinationUse("v", (LOOPBACK, FRONT)),
        VirtualHostUse("v", TABLE, "back"),
        ClusterUse("v", CLUSTER.name),
    }
    assert bench.engine.usage() == []


async def test_connections(bench: Bench) -> None:
    bench.engine.apply(snapshot(virtual_host("a", respond(200))))

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", FRONT))

    with bench.namespace.run(connect) as client:
        await bench.until(lambda: bool(bench.engine.connections(10)))
        (connection,) = bench.engine.connections(10)
        assert (connection.workload, connection.inbound) == ("pod", False)
        assert connection.remote == (LOOPBACK, client.getsockname()[1])
        assert connection.local == (LOOPBACK, FRONT)
        assert connection.state in (ConnectionState.DETECTING, ConnectionState.IDLE)


# -- on demand --


async def test_a_host_is_asked_for_and_the_request_waits(bench: Bench) -> None:
    needs: asyncio.Queue[object] = asyncio.Queue()
    bench.engine.apply(snapshot(on_demand=True))
    bench.engine.watch(asyncio.get_running_loop(), needs.put_nowait)
    request = asyncio.create_task(bench.get("late.test"))
    need = await asyncio.wait_for(needs.get(), 2)
    assert need == HostNeeded("pod", "v", TABLE, "late.test")
    bench.engine.apply(snapshot(virtual_host("late", respond(207)), on_demand=True))
    assert await request == 207


async def test_a_destination_is_asked_for(bench: Bench) -> None:
    needs: asyncio.Queue[object] = asyncio.Queue()
    bench.engine.apply(Snapshot(views={"v": View("v")}, hints=Hints(frozenset({LOOPBACK}), frozenset({80}))))
    bench.engine.watch(asyncio.get_running_loop(), needs.put_nowait)
    request = asyncio.create_task(bench.get("a.test"))
    assert await asyncio.wait_for(needs.get(), 2) == DestinationNeeded("pod", "v", LOOPBACK, FRONT)
    bench.engine.apply(snapshot(virtual_host("a", respond(207))))
    assert await request == 207


async def test_names_are_known_until_they_go(bench: Bench) -> None:
    search = "shop.svc.cluster.local svc.cluster.local cluster.local"
    other = parse_address("fd00::1")
    bench.engine.apply(
        Snapshot(names={"web.shop.svc.cluster.local": (other, LOOPBACK), "gone.test": (LOOPBACK,)})
    )
    assert bench.engine.explain_name("web", search) == (LOOPBACK, other)
    assert bench.engine.explain_name("gone.test", search) == (LOOPBACK,)
    bench.engine.apply(Snapshot(names={"web.shop.svc.cluster.local": (other,)}))
    assert bench.engine.explain_name("web.shop", search) == (other,)
    assert bench.engine.explain_name("gone.test", search) == ()


async def test_a_name_that_cannot_be_is_refused_and_what_is_known_stays(bench: Bench) -> None:
    bench.engine.apply(Snapshot(names={"good.test": (LOOPBACK,)}))
    with pytest.raises(EngineError, match=r"DNS name 'Bad\.test': not a host name in lower case"):
        bench.engine.apply(Snapshot(names={"Bad.test": (LOOPBACK,)}))
    assert bench.engine.explain_name("good.test", "") == (LOOPBACK,)


async def test_the_router_tells_which_way_a_request_would_take(bench: Bench) -> None:
    bench.engine.apply(snapshot(FORWARDING, virtual_host("here", respond(207))))

    def choice(authority: str, path: str = "/", *headers: tuple[str, str]) -> RouteChoice | None:
        return bench.engine.explain_route(TABLE, RouteQuestion("GET", authority, path, headers))

    assert choice("back.test") == RouteChoice("to-back", CLUSTER.name)
    found = choice("here.test", "/x", ("a", "b"))
    assert found is not None
    assert found.cluster == ""
    assert choice("nobody.test") is None


async def test_a_failing_callback_does_not_stop_the_others(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []

    def callback(need: object) -> None:
        seen.append(need)
        raise ZeroDivisionError

    bench.engine.apply(snapshot(on_demand=True))
    bench.engine.watch(asyncio.get_running_loop(), callback)
    requests = [asyncio.create_task(bench.get(f"{name}.test")) for name in "ab"]
    await bench.until(lambda: len(seen) >= 2)
    bench.engine.apply(snapshot(virtual_host("a", respond(207)), virtual_host("b", respond(208))))
    assert await asyncio.gather(*requests) == [207, 208]
    assert "cannot see to HostNeeded" in caplog.text


# -- workloads --


async def test_a_workload_comes_back_under_its_uid(bench: Bench) -> None:
    bench.engine.apply(snapshot(virtual_host("a", respond(201))))
    with pytest.raises(EngineError, match="served already"):
        bench.engine.add_workload("pod", bench.namespace.handle, "v", [LOOPBACK], PLAIN)
    await bench.engine.remove_workload("pod", 0)
    await bench.engine.remove_workload("pod", 0)
    with pytest.raises(ConnectionRefusedError):
        await bench.get("a.test")
    bench.engine.add_workload("pod", bench.namespace.handle, "v", [LOOPBACK], PLAIN)
    assert await bench.get("a.test") == 201


async def test_who_connects_while_a_workload_is_taken_on_again_is_served(bench: Bench) -> None:
    bench.engine.apply(snapshot(virtual_host("a", respond(201))))
    with bench.engine.keeping_listeners("pod"):
        await bench.engine.remove_workload("pod", 0)
        early = bench.namespace.run(lambda: socket.create_connection(("127.0.0.1", FRONT), 5))
        bench.engine.add_workload("pod", bench.namespace.handle, "v", [LOOPBACK], PLAIN)
        with early:
            early.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert (await asyncio.to_thread(early.recv, 4096)).startswith(b"HTTP/1.1 201 ")
    assert await bench.get("a.test") == 201
    with bench.engine.keeping_listeners("pod"):
        await bench.engine.remove_workload("pod", 0)
    with pytest.raises(ConnectionRefusedError):
        await bench.get("a.test")


async def test_a_workload_that_cannot_listen_leaves_nothing(bench: Bench) -> None:
    ports = (Listener(2, 15090), Listener(2, FRONT))
    for _ in range(2):
        with pytest.raises(NetnsError, match=f"port {FRONT}"):
            bench.engine.add_workload("other", bench.namespace.handle, "v", [LOOPBACK], ports)
    bench.engine.add_workload("other", bench.namespace.handle, "v", [LOOPBACK], (Listener(2, 15090),))


@pytest.mark.parametrize("first", ["workload", "snapshot"])
async def test_inbound_may_come_before_or_after_its_workload(bench: Bench, backend: None, first: str) -> None:
    engine = bench.engine
    inbound = Inbound((InboundPort(INBOUND, Protocol.HTTP, SERVICE, f"inbound|{INBOUND}||"),))
    listeners = (Listener(1, INBOUND),)
    steps: dict[str, Callable[[], object]] = {
        "workload": lambda: engine.add_workload("in", bench.namespace.handle, "v", [LOOPBACK], listeners),
        "snapshot": lambda: engine.apply(Snapshot(inbound={"in": inbound})),
    }
    for step in sorted(steps, key=lambda name: name != first):
        steps[step]()
    assert set(engine._tags._tags) == {("inbound", "in", INBOUND)}
    await engine.remove_workload("in", 0)
    assert len(engine._tags) == 0
    steps["workload"]()
    assert len(engine._tags) == 1, "put in force again for the new one"


# -- the engine itself --


def test_limits_out_of_range_are_refused() -> None:
    require("engine")
    with pytest.raises(EngineError, match="does not take its settings"):
        EngineOwner(EngineSettings(workers=100_000))


async def test_stop_is_final_and_close_may_be_called_again() -> None:
    require("engine")
    engine = EngineOwner(EngineSettings())
    engine.start()
    await engine.stop(0)
    assert engine.drain_stats() == []
    engine.close()
    engine.close()
    assert engine.counters() == engine.connections(1) == engine.usage() == engine.needs() == []
