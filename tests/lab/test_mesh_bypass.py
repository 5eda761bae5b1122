"""Plain TCP within a node passes the engine where policy allows it, and ends as it would with the engine."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.mesh import NODEAGENT, Mesh, eventually, run
from harness.meshes import running_mesh

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.lab.names import LabNames, netns_path

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

LAB = """
identity: {}
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: alice, node: node-a, serviceAccount: alice, labels: {app: alice}}
- {name: bob, namespace: shop, node: node-a, serviceAccount: bob, labels: {app: bob}}
- {name: outsider, node: node-a, serviceAccount: outsider, mesh: false}
- name: db
  node: node-a
  serviceAccount: db
  labels: {app: db, spread: "yes"}
  command: [nodeagent, echo, --http, "8080", --tcp, "9000", --tcp, "9001"]
- name: far
  node: node-b
  serviceAccount: db
  labels: {spread: "yes"}
  command: [nodeagent, echo, --tcp, "9000"]
config: [services.yaml]
"""
DB_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  selector: {app: db}
  ports: [{name: tcp, port: 9000}, {name: tcp-other, port: 9001}, {name: http, port: 80, targetPort: 8080}]
"""
SERVICES = f"""{DB_SERVICE}
---
apiVersion: v1
kind: Service
metadata: {{name: spread}}
spec: {{selector: {{spread: "yes"}}, ports: [{{name: tcp, port: 9000}}]}}
"""
ALICE, BOB, OUTSIDER = ("default", "alice"), ("shop", "bob"), ("default", "outsider")
PAST, DENIED, CAPTURED = {"bypassed"}, {"denied"}, {"captured"}
TIMEOUT = 5.0
SPREAD = 200
"""Connections of which shares are told: 15 % are more than four standard deviations."""


class Clients:
    """Connections from pods, made by this process in their namespaces."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._names = LabNames(mesh.name)
        self._addresses = {
            each["name"]: {6 if ":" in address else 4: address for address in each["virtualIPs"]}
            for each in mesh.state()["services"]
        }

    def connect(
        self, pod: tuple[str, str] = ALICE, service: str = "db", port: int = 9000, family: int = 4
    ) -> socket.socket:
        target = self._addresses[service][family], port

        def dial() -> socket.socket:
            connection = socket.create_connection(target, timeout=TIMEOUT)
            try:
                assert connection.getpeername()[:2] == target
                connection.sendall(b"hello\n")
                if connection.recv(100) != b"hello\n":
                    raise ConnectionResetError
            except OSError:
                connection.close()
                raise
            return connection

        with NetworkNamespace.open(netns_path(self._names.pod_netns(*pod))) as namespace:
            return namespace.run(dial)

    def outcome(self, *where: object, **more: object) -> str:
        """`open`, or the kind of error."""
        try:
            self.connect(*where, **more).close()  # type: ignore[arg-type]
        except OSError as error:
            return type(error).__name__
        return "open"

    def way(self, *where: object, **more: object) -> tuple[str, set[str]]:
        """What becomes of a connection, and what the programs of node-a counted."""
        before = events(self.mesh)
        outcome = self.outcome(*where, **more)
        return outcome, {name for name, count in events(self.mesh).items() if count > before[name]}

    def await_way(self, outcome: str, way: set[str], *where: object, **more: object) -> None:
        """Until a connection goes so."""
        eventually(lambda: self.way(*where, **more), lambda found: found == (outcome, way))


def events(mesh: Mesh) -> dict[str, float]:
    """nodeagent_capture_events_total of node-a, as far as this is about."""
    admin = Path("/run/nodeagent/lab", mesh.name, "node", "node-a", "admin.sock")
    page = run("curl", "-sS", "--unix-socket", str(admin), "http://agent/stats/prometheus")
    found = dict(re.findall(r'nodeagent_capture_events_total\{event="(\w+)"\} (\S+)', page))
    return {name: float(found[name]) for name in ("bypassed", "denied", "captured")}


def local_share(clients: Clients, family: int = 4) -> float:
    """Which part of connections to the service on two nodes stays on the client's."""
    before = arrived(clients.mesh)
    for _ in range(SPREAD):
        clients.connect(service="spread", family=family).close()
    return (arrived(clients.mesh) - before) / SPREAD


def arrived(mesh: Mesh) -> float:
    """Connections between workloads of node-a, past the engine or through it."""
    through = mesh.status("node-a")["engine"]["counters"]["neighbour_accepted_total"]
    return float(through) + events(mesh)["bypassed"]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("mesh-bypass")
    options = ("--capture", "ebpf", "--bypass", "on")
    meshed = {"alice", "bob", "db", "far"}
    with running_mesh("tby", folder, LAB, *options, hbone=meshed, services=SERVICES) as mesh:
        made = Clients(mesh)
        for client in (ALICE, BOB):  # what is configured on demand is there afterwards
            made.await_way("open", PAST, client)
        yield made


@contextmanager
def applied(mesh: Mesh, text: str) -> Iterator[None]:
    mesh.apply(text)
    try:
        yield
    finally:
        mesh.delete(text)


def policy(spec: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: db}}
spec: {{selector: {{matchLabels: {{app: db}}}}, {spec}}}
"""


def ends(connection: socket.socket) -> bool:
    """Whether a connection is reset within the time that a change takes."""
    try:
        return connection.recv(1) != b"" and False
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def explained(mesh: Mesh, to: str) -> str:
    """The line about bypass of `explain`."""
    out = run(str(NODEAGENT), "explain", "--name", mesh.name, "default/alice", to, check=False)
    return next(line.split(maxsplit=1)[1] for line in out.splitlines() if line.split()[:1] == ["bypass"])


def test_the_engine_has_nothing_of_it(clients: Clients) -> None:
    clients.await_way("open", PAST, family=6)  # the first one asks for configuration
    before = clients.mesh.status("node-a")
    for family in (4, 6):
        assert clients.way(family=family) == ("open", PAST)
    after = clients.mesh.status("node-a")
    name = "downstream_cx_total"
    assert after["engine"]["counters"][name] == before["engine"]["counters"][name]
    assert after["bypass"]["state"] == "on"
    assert after["bypass"]["services"] >= 2
    text = "10.244.1.5:9000 past the engine, on this node: allowed"
    assert explained(clients.mesh, "db.default.svc.cluster.local:9000") == text


def test_http_stays_with_the_engine(clients: Clients) -> None:
    before = events(clients.mesh)
    assert clients.mesh.statuses("default/alice", 3, "http://db.default.svc.cluster.local/") == {"200": 3}
    assert events(clients.mesh)["bypassed"] == before["bypassed"]
    assert explained(clients.mesh, "db.default.svc.cluster.local:80") == "through the engine: it speaks HTTP"


def test_a_service_on_two_nodes_is_spread_over_both(clients: Clients) -> None:
    """Through the engine to the other node."""
    clients.await_way("open", PAST, service="spread")
    for family in (4, 6):
        assert local_share(clients, family) == pytest.approx(0.5, abs=0.15)


def test_a_drawn_endpoint_that_only_the_engine_may_have_gets_its_share(clients: Clients) -> None:
    """As much as the one of the other node, though both are reached through the engine."""
    clients.await_way("open", PAST, service="spread")
    with applied(clients.mesh, policy("action: AUDIT, rules: [{}]")):
        clients.await_way("open", CAPTURED)
        assert local_share(clients) == pytest.approx(0.5, abs=0.15)
    clients.await_way("open", PAST)


_BY_ALICE = "from: [{source: {principals: ['cluster.local/ns/default/sa/alice']}}]"


@pytest.mark.parametrize(
    ("spec", "alice", "bob"),
    [
        (f"action: DENY, rules: [{{{_BY_ALICE}}}]", DENIED, PAST),
        ("action: ALLOW, rules: [{from: [{source: {namespaces: [default]}}]}]", PAST, DENIED),
        ("action: DENY, rules: [{to: [{operation: {ports: ['9000']}}]}]", DENIED, DENIED),
        ("action: DENY, rules: [{to: [{operation: {ports: ['9001']}}]}]", PAST, PAST),
        ("action: DENY, rules: [{from: [{source: {ipBlocks: ['10.0.0.0/8', 'fd00::/8']}}]}]", DENIED, DENIED),
        # Counted, which the engine does.
        ("action: AUDIT, rules: [{from: [{source: {namespaces: [default]}}]}]", CAPTURED, PAST),
    ],
    ids=["principal", "namespace", "port", "another port", "addresses", "audit"],
)
def test_policy_decides_at_connect(clients: Clients, spec: str, alice: set[str], bob: set[str]) -> None:
    with applied(clients.mesh, policy(spec)):
        for client, way in ((ALICE, alice), (BOB, bob)):
            clients.await_way("PermissionError" if way == DENIED else "open", way, client)
    for client in (ALICE, BOB):
        clients.await_way("open", PAST, client)


def test_strict_is_for_members(clients: Clients) -> None:
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: db}
spec: {selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}
"""
    assert clients.outcome(OUTSIDER) == "open"
    with applied(clients.mesh, strict):
        eventually(lambda: clients.outcome(OUTSIDER), lambda found: found == "ConnectionResetError")
        clients.await_way("open", PAST)


def test_a_change_of_policy_ends_live_connections(clients: Clients) -> None:
    mesh = clients.mesh
    before = mesh.status("node-a")["bypass"]["revoked"]
    with clients.connect() as connection:
        with applied(mesh, policy(f"action: ALLOW, rules: [{{{_BY_ALICE}}}]")):
            clients.await_way("PermissionError", DENIED, BOB)
            connection.sendall(b"again\n")
            assert connection.recv(100) == b"again\n", "it is allowed still"
        with applied(mesh, policy(f"action: DENY, rules: [{{{_BY_ALICE}}}]")):
            assert ends(connection)
            assert mesh.status("node-a")["bypass"]["revoked"] == before + 1
            assert explained(mesh, "db:9000") == (
                "10.244.1.5:9000 refused at connect(): "
                "rbac_access_denied_matched_policy[ns[default]-policy[db]-rule[0]]"
            )
    clients.await_way("open", PAST)


def test_an_endpoint_that_is_gone_takes_its_connections_along(clients: Clients) -> None:
    with clients.connect() as connection:
        clients.mesh.apply(DB_SERVICE.replace("{app: db}", "{app: nobody}"))
        try:
            assert ends(connection)
        finally:
            clients.mesh.apply(DB_SERVICE)
    clients.await_way("open", PAST)


def test_what_has_a_waypoint_goes_there(clients: Clients) -> None:
    waypoint = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: way, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}
spec: {selector: {gateway.networking.k8s.io/gateway-name: way}, ports: [{name: mesh, port: 15008}]}
"""
    with clients.connect() as connection, applied(clients.mesh, waypoint):
        clients.mesh.apply(
            DB_SERVICE.replace("{name: db}", "{name: db, labels: {istio.io/use-waypoint: way}}")
        )
        try:
            # It has no workloads: what needs it is refused, and does not go past it.
            clients.await_way("ConnectionResetError", CAPTURED)
            assert ends(connection)
        finally:
            clients.mesh.apply(DB_SERVICE)
    clients.await_way("open", PAST)


def test_an_agent_that_begins_anew_knows_nothing_stale(clients: Clients) -> None:
    mesh = clients.mesh
    by_alice, by_bob = clients.connect(), clients.connect(BOB)
    with by_alice, by_bob:
        mesh.lab("stop", "node-a")
        assert clients.outcome() == "ConnectionRefusedError"
        for connection in (by_alice, by_bob):
            connection.sendall(b"again\n")
            assert connection.recv(100) == b"again\n", "it does not need an agent"
        with applied(mesh, policy(f"action: DENY, rules: [{{{_BY_ALICE}}}]")):
            mesh.lab("start", "node-a")
            assert ends(by_alice), "it is of an earlier life, and judged all the same"
            clients.await_way("PermissionError", DENIED)
            clients.await_way("open", PAST, BOB)
            by_bob.sendall(b"still\n")
            assert by_bob.recv(100) == b"still\n"
    clients.await_way("open", PAST)
