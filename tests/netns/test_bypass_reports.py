"""What real connections past the engine come to in statistics and access records, with maps that are filled by hand and
an engine that carries nothing: it only reports."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import require
from harness.bypass_scene import CLIENT, LIFE, SERVER, BypassScene, bypass_scene
from harness.netns import Namespace
from harness.peer import END, dial, exchange, peer_server, read_line
from harness.processes import wait_until

from nodeagent.dataplane.bpf import BpfMap, pinned_map
from nodeagent.dataplane.bypass_flows import FlowTable
from nodeagent.dataplane.bypass_layout import ENDS_SIZE, FLOW_SIZE, Access
from nodeagent.dataplane.ebpf_node import ABI, netns_cookie, unload
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.dataplane.flow_reader import FlowReader
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.report import (
    AccessRecord,
    ConnectionState,
    Decision,
    LineFormat,
    Outcome,
    ResponseFlag,
    StatKind,
    StatRow,
    WireProtocol,
)
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.policies import Always, ConnectionStage, Guards, Policy, RuleAction, Rules
from nodeagent.snapshot.values import (
    Cluster,
    Destination,
    Endpoint,
    Inbound,
    InboundPort,
    Protocol,
    Snapshot,
    Tunnel,
    View,
    WeightedCluster,
)

pytestmark = pytest.mark.netns

VIP, VIP6 = "10.96.0.10", "fd00:96::10"
ALLOWING = "ns[default]-policy[callers]-rule[0]"
REFUSING = "ns[default]-policy[nobody]-rule[0]"
CLIENT_ID, SERVER_ID = (f"spiffe://cluster.local/ns/default/sa/{name}" for name in ("client", "server"))


@dataclass(frozen=True)
class Enrolled:
    """A workload as reports want it."""

    uid: str
    number: int
    namespace: NetworkNamespace
    identity: str
    view: str = "v"


class Node:
    """Who is enrolled: the client and the server of the scene."""

    def __init__(self, scene: BypassScene) -> None:
        self.life = LIFE
        self.client: Enrolled | None = Enrolled("client", CLIENT, scene.client.handle, CLIENT_ID)
        self.server: Enrolled | None = Enrolled("server", SERVER, scene.server.handle, SERVER_ID)
        self._cookie = netns_cookie(scene.client.handle)
        self._addresses = [parse_address(each) for each in (scene.server.v4, scene.server.v6)]

    def workload_of(self, cookie: int) -> Enrolled | None:
        return self.client if cookie == self._cookie else None

    def workload_at(self, address: bytes) -> Enrolled | None:
        return self.server if address in self._addresses else None

    by_cookie = workload_of
    by_address = workload_at

    def policy(self, number: int) -> str:
        return REFUSING if number else ""


class Reports:
    """An agent's part that reports."""

    def __init__(self, scene: BypassScene, pins: Path) -> None:
        self.scene = scene
        self.node = Node(scene)
        self.engine = EngineOwner(EngineSettings(access_log=True))
        for uid, pod in (("client", scene.client), ("server", scene.server)):
            self.engine.add_workload(uid, None, "v", [parse_address(pod.v4)], ())
        self.engine.apply(_snapshot(scene))
        self._maps = [self._open(pins, "bypassed", ENDS_SIZE, FLOW_SIZE), self._open(pins, "events", 0, 0)]
        self.table = FlowTable(self._maps[0], self.node, LIFE)
        self.reader: FlowReader = self.engine.follow_flows(self._maps[1].fd, self.node, 1000)

    def _open(self, pins: Path, name: str, key_size: int, value_size: int) -> BpfMap:
        found = pinned_map(pins / f"v{ABI}" / "maps" / name, key_size, value_size)
        assert found is not None
        return found

    def look(self) -> None:
        """What the agent does every few seconds."""
        found = self.table.sample(self.reader.namespaces())
        self.reader.note(found.sockets, found.looked_at)

    def told(self) -> dict[tuple[StatKind, bool], StatRow]:
        """Rows by kind and side; there is one of each."""
        rows = self.engine.drain_stats()
        found = {(row.kind, row.inbound): row for row in rows}
        assert len(found) == len(rows)
        return found

    def count(self, name: str) -> int:
        return next(each.value for each in self.reader.counters() if each.name == name)

    def records(self, count: int = 2) -> list[AccessRecord]:
        """The client's and the server's, when they are there."""
        found: list[AccessRecord] = []

        def come() -> bool:
            found.extend(self.engine.drain_access())
            return len(found) >= count

        wait_until(come, "access records")
        assert len(found) == count
        return sorted(found, key=lambda record: record.inbound)

    def close(self) -> None:
        self.engine.close()
        for each in self._maps:
            each.close()


def _snapshot(scene: BypassScene, action: RuleAction = RuleAction.ALLOW) -> Snapshot:
    destinations = [
        Destination(parse_address(vip), 80, Protocol.TCP, clusters=(WeightedCluster("v/outbound"),))
        for vip in (VIP, VIP6)
    ]
    endpoints = tuple(
        Endpoint(parse_address(address), 8080, tunnel=Tunnel((SERVER_ID,)))
        for address in (scene.server.v4, scene.server.v6)
    )
    view = View(
        "v",
        {"v/outbound": Cluster("v/outbound", "outbound")},
        {"v/outbound": endpoints},
        destinations={each.key: each for each in destinations},
    )
    stages: tuple[ConnectionStage, ...] = (Rules(action, (Policy(ALLOWING, Always()),)),)
    port = InboundPort(8080, Protocol.TCP, xds_name="inbound|8080||", guards=Guards(connection=stages))
    return Snapshot(views={"v": view}, inbound={"server": Inbound((port,))})


@pytest.fixture(scope="module")
def module_scene() -> Iterator[tuple[BypassScene, Path]]:
    require("root", "nft", "engine")
    pins = Path(f"/sys/fs/bpf/nodeagent-reports-{os.getpid()}")
    try:
        with bypass_scene("reports", pins) as scene, peer_server(scene.server, 8080):
            yield scene, pins
    finally:
        unload(pins)


@pytest.fixture
def reports(module_scene: tuple[BypassScene, Path]) -> Iterator[Reports]:
    """The client may reach the server's port 8080 at the VIP's port 80, and 8081, where nobody listens, at 81."""
    scene, pins = module_scene
    maps = scene.maps
    maps.clear()
    maps.name(scene.server, SERVER)
    maps.source(scene.client, CLIENT)
    maps.service(VIP, 80)
    maps.backend(0, scene.server.v4, 8080)
    maps.service(VIP, 81, service=71)
    maps.verdict(Access.ALLOW)
    maps.begin()
    made = Reports(scene, pins)
    yield made
    made.close()


def _dial(scene: BypassScene) -> socket.socket:
    client = dial(scene.client, VIP, 80)
    read_line(client)
    return client


def _greeting(client: socket.socket) -> int:
    """Bytes that the server has said by itself."""
    address, port = client.getsockname()
    return len(f"{address} {port}\n")


# -- whole connections -------------------------------------------------------------------------------------------


def test_both_sides_are_told_of_with_exact_bytes(reports: Reports) -> None:
    with _dial(reports.scene) as client:
        greeting = _greeting(client)
        exchange(client, b"x" * 100_000)
        client.sendall(END)
        assert client.recv(1) == b""
    wait_until(lambda: not reports.scene.maps.flows(), "the end")
    rows = reports.told()
    for inbound in (False, True):
        assert rows[StatKind.TCP_OPENED, inbound].count == 1
        closed = rows[StatKind.TCP_CLOSED, inbound]
        assert (closed.count, closed.flags, closed.mutual_tls) == (1, 0, True)
        carried = rows[StatKind.TCP_BYTES, inbound]
        assert (carried.bytes_in, carried.bytes_out) == (100_001, 100_000 + greeting)
        assert carried.protocol is WireProtocol.TCP
    source, destination = rows[StatKind.TCP_OPENED, False], rows[StatKind.TCP_OPENED, True]
    assert source.workload == "client"
    assert source.cluster is not None
    assert source.cluster.xds_name == "outbound"
    assert source.endpoint is not None
    assert source.endpoint.port == 8080
    assert source.principal == SERVER_ID
    assert destination.workload == "server"
    assert destination.inbound_port is not None
    assert destination.inbound_port.xds_name == "inbound|8080||"
    assert destination.principal == CLIENT_ID
    assert destination.peer == parse_address(reports.scene.client.v4)
    assert reports.engine.drain_decisions() == {
        Decision("server", ALLOWING, Outcome.ALLOWED, WireProtocol.TCP): 1
    }


def test_records_have_the_ends_as_each_side_sees_them(reports: Reports) -> None:
    scene = reports.scene
    with _dial(scene) as client:
        own = parse_address(client.getsockname()[0]), client.getsockname()[1]
        exchange(client, b"!")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    outbound, inbound = reports.records()
    there = parse_address(scene.server.v4), 8080
    assert outbound.downstream_remote == inbound.downstream_remote == own
    assert outbound.downstream_local == (parse_address(VIP), 80)
    assert inbound.downstream_local == there
    assert outbound.upstream_remote == inbound.upstream_remote == there
    assert outbound.upstream_local == inbound.upstream_local == own
    assert outbound.bytes_in == inbound.bytes_in == 1
    assert 0 < outbound.upstream_us < outbound.duration_us < 5_000_000
    assert (outbound.flags, inbound.flags) == (0, 0)


def test_by_ipv6_it_is_the_same(reports: Reports) -> None:
    scene = reports.scene
    scene.maps.service(VIP6, 80)
    scene.maps.backend(0, scene.server.v6, 8080)
    with dial(scene.client, VIP6, 80) as client:
        greeting = len(read_line(client)) + 1
        exchange(client, b"six")
        reports.told()
        reports.look()
        carried = reports.told()[StatKind.TCP_BYTES, True]
        assert (carried.bytes_in, carried.bytes_out) == (3, 3 + greeting)
    outbound, inbound = reports.records()
    assert outbound.downstream_local == (parse_address(VIP6), 80)
    assert inbound.downstream_local == (parse_address(scene.server.v6), 8080)
    assert outbound.endpoint is not None
    assert outbound.endpoint.address == parse_address(scene.server.v6)


def test_live_connections_are_counted_and_listed(reports: Reports) -> None:
    with _dial(reports.scene) as client:
        said = _greeting(client) + 5
        exchange(client, b"12345")
        reports.told()
        reports.look()
        rows = reports.told()
        for inbound in (False, True):
            carried = rows[StatKind.TCP_BYTES, inbound]
            assert (carried.bytes_in, carried.bytes_out) == (5, said)
        reports.look()
        assert not reports.told(), "nothing new"
        outbound, inbound_one = sorted(reports.engine.connections(10), key=lambda each: each.inbound)
        assert outbound.state is inbound_one.state is ConnectionState.BYPASSED
        assert (outbound.workload, inbound_one.workload) == ("client", "server")
        assert outbound.cluster == "v/outbound"
        assert (outbound.bytes_in, outbound.bytes_out) == (5, said)
        exchange(client, b"678")
    wait_until(lambda: not reports.scene.maps.flows(), "the end")
    carried = reports.told()[StatKind.TCP_BYTES, True]
    assert (carried.bytes_in, carried.bytes_out) == (3, 3)
    assert not reports.engine.connections(10)


def test_configuration_of_live_connections_is_in_use(reports: Reports) -> None:
    reports.engine.usage()
    with _dial(reports.scene):
        for _ in range(2):
            reports.told()
            used = {type(use).__name__ for use in reports.engine.usage()}
            assert used == {"DestinationUse", "ClusterUse"}
    wait_until(lambda: not reports.scene.maps.flows(), "the end")
    reports.told()
    assert not reports.engine.usage()


def test_a_defect_in_naming_costs_names_alone(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(cookie: int) -> Enrolled | None:
        raise ZeroDivisionError

    monkeypatch.setattr(reports.node, "workload_of", fail)
    with _dial(reports.scene) as client:
        exchange(client, b"!")
    wait_until(lambda: not reports.scene.maps.flows(), "the end")
    assert not reports.told()
    assert reports.count("cx_total") == 1
    assert reports.count("cx_unnamed_total") == 2
    assert "cannot say what connection past the engine this is" in caplog.text


# -- refusals, failures, resets ----------------------------------------------------------------------------------


def test_a_denied_connection_is_told_as_the_engine_tells_it(reports: Reports) -> None:
    reports.scene.maps.verdict(Access.DENY, policy=4)
    with pytest.raises(PermissionError):
        dial(reports.scene.client, VIP, 80)
    outbound, inbound = reports.records()
    assert inbound.detail == f"rbac_access_denied_matched_policy[{REFUSING}]"
    assert (outbound.flags, inbound.flags) == (ResponseFlag.UF, 0)
    assert outbound.upstream_failure == os.strerror(errno.EPERM)
    assert outbound.cluster is not None
    assert reports.told()[StatKind.TCP_CLOSED, True].count == 1
    assert reports.engine.drain_decisions() == {
        Decision("server", REFUSING, Outcome.DENIED, WireProtocol.TCP): 1
    }


def test_a_port_where_nobody_listens(reports: Reports) -> None:
    scene = reports.scene
    scene.maps.backend(0, scene.server.v4, 8081)
    scene.maps.verdict(Access.ALLOW, port=8081)
    with pytest.raises(ConnectionRefusedError):
        dial(scene.client, VIP, 80)
    outbound, inbound = reports.records()
    for record in (outbound, inbound):
        assert record.flags == ResponseFlag.UF
        assert record.upstream_failure == os.strerror(errno.ECONNREFUSED)
    assert reports.count("cx_failed_total") == 1


@contextlib.contextmanager
def _listening(namespace: Namespace, port: int) -> Iterator[socket.socket]:
    def listen() -> socket.socket:
        return socket.create_server((namespace.v4, port))

    with namespace.run(listen) as listener:
        yield listener


def _reset(side: socket.socket) -> None:
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    side.close()


@pytest.mark.parametrize("by_client", [True, False])
def test_resets_are_flagged_by_who_made_them(reports: Reports, by_client: bool) -> None:
    scene = reports.scene
    scene.maps.backend(0, scene.server.v4, 8082)
    scene.maps.verdict(Access.ALLOW, port=8082)
    with _listening(scene.server, 8082) as listener:
        client = dial(scene.client, VIP, 80)
        server, _ = listener.accept()
        _reset(client if by_client else server)
        outbound, inbound = reports.records()
        client.close()
        server.close()
    wanted = ResponseFlag.DC if by_client else ResponseFlag.UC
    assert (outbound.flags, inbound.flags) == (wanted, wanted)


def test_a_revoked_connection_tells_why(reports: Reports) -> None:
    with _dial(reports.scene) as client:
        reports.told()
        reports.engine.apply(_snapshot(reports.scene, RuleAction.DENY))
        [live] = reports.table.live()
        reports.reader.note_revoked(live)
        assert reports.table.revoke(lambda _: False) == 1
        with pytest.raises(OSError) as error:
            client.recv(1)
        assert error.value.errno == errno.ECONNABORTED
    outbound, inbound = reports.records()
    assert (outbound.flags, inbound.flags) == (ResponseFlag.UC, 0)
    assert inbound.detail == f"rbac_access_denied_matched_policy[{ALLOWING}]"


def _refuse_many(scene: BypassScene, count: int) -> None:
    def connect() -> None:
        for _ in range(count):
            with socket.socket() as client, pytest.raises(PermissionError):
                client.connect((VIP, 80))

    scene.client.run(connect)


def test_many_events_wake_the_reader_and_none_is_lost(reports: Reports) -> None:
    """More than a quarter of the ring buffer, and more records than have room at once."""
    count = 2000
    reports.scene.maps.verdict(Access.DENY, policy=4)
    assert not select.select([reports.reader], [], [], 0)[0]
    _refuse_many(reports.scene, count)
    assert select.select([reports.reader], [], [], 0)[0]
    assert reports.reader.read(), "there is no room for the records of the rest"
    lines = reports.engine.drain_access_lines(LineFormat.TEXT)
    assert sum(each.count for each in lines) == 2 * count
    assert reports.told()[StatKind.TCP_CLOSED, True].count == count
    assert not select.select([reports.reader], [], [], 0)[0]
    assert reports.scene.maps.count("no_event") == 0


# -- other lives, and what nothing tells of ------------------------------------------------------------------------


def test_an_earlier_agents_connection_is_taken_over(
    reports: Reports, module_scene: tuple[BypassScene, Path]
) -> None:
    with _dial(reports.scene) as client:
        exchange(client, b"x" * 1000)
        reports.told()
        reports.look()
        reports.told()
        reports.close()  # it has told of all that was carried
        exchange(client, b"y" * 10)  # nobody has
        later = Reports(*module_scene)
        later.node.life = LIFE + 1
        later.reader.close()
        later.table = FlowTable(later._maps[0], later.node, LIFE + 1)
        later.reader = later.engine.follow_flows(later._maps[1].fd, later.node, 1000)
        later.reader.adopt(later.table.earlier())
        later.look()
        exchange(client, b"z" * 100)
    wait_until(lambda: not reports.scene.maps.flows(), "the end")
    rows = later.told()
    assert (StatKind.TCP_OPENED, False) not in rows
    assert rows[StatKind.TCP_CLOSED, True].count == 1
    carried = rows[StatKind.TCP_BYTES, False]
    assert (carried.bytes_in, carried.bytes_out) == (100, 100)
    assert carried.cluster is not None
    outbound, inbound = later.records()
    assert outbound.bytes_in == inbound.bytes_in == 1110
    later.close()


def test_what_is_gone_without_a_word_ends_and_is_swept(reports: Reports) -> None:
    client = _dial(reports.scene)
    reports.told()
    reports.node.client = None  # it has left the mesh
    reports.look()
    assert reports.table.sweep() == 0
    reports.look()
    assert reports.told()[StatKind.TCP_CLOSED, True].count == 1
    assert reports.count("cx_lost_total") == 1
    assert reports.table.sweep() == 1
    assert not reports.scene.maps.flows()
    assert reports.table.swept == 1
    client.close()
