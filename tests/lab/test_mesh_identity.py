"""A mesh with identities: what is on the wire, what is counted, and that nothing fails while certificates change."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.mesh import ROOT, Mesh, counted, eventually
from harness.meshes import by_hbone, running_mesh
from harness.sniffer import Segment, sniffing
from harness.tls_records import TLS_1_3, agreed_version, records, streams

pytestmark = pytest.mark.lab

CERTIFICATE_SECONDS = 20
LAB = f"""
identity: {{certLifetime: {CERTIFICATE_SECONDS}}}
nodes: [{{name: node-a}}, {{name: node-b}}]
pods:
- {{name: client, node: node-a, serviceAccount: client, labels: {{app: client}}}}
- name: near
  node: node-a
  serviceAccount: near
  labels: {{app: near}}
  command: [nodeagent, echo, --http, "8080"]
- name: far
  node: node-b
  serviceAccount: far
  labels: {{app: far}}
  command: [nodeagent, echo, --http, "8080", --tcp, "9000"]
- name: machine
  node: node-b
  serviceAccount: machine
  labels: {{app: machine}}
  command: [nodeagent, echo, --http, "8090"]
  ports: [{{name: web, containerPort: 8090}}]
  hostNetwork: true
- {{name: outsider, node: node-b, serviceAccount: outsider, mesh: false}}
- name: drifter
  node: node-b
  serviceAccount: drifter
  labels: {{app: drifter}}
  command: [nodeagent, echo, --http, "8080"]
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {selector: {app: near}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: drifter}
spec: {selector: {app: drifter}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: machine}
spec: {selector: {app: machine}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: drifter, labels: %s}
"""
HBONE_PORT = 15008


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh-identity")
    meshed = {"client", "near", "far", "drifter", "machine"}
    with running_mesh("ti", folder, LAB, hbone=meshed, services=SERVICES) as mesh:
        yield mesh


def addresses(mesh: Mesh, *pods: str) -> set[str]:
    return {ip for pod in mesh.state()["pods"] if pod["name"] in pods for ip in pod["ips"]}


def spiffe(account: str) -> str:
    return f"spiffe://cluster.local/ns/default/sa/{account}"


def seen(mesh: Mesh, segments: list[Segment], one: str, other: str) -> list[Segment]:
    """What passed between two pods."""
    ends = addresses(mesh, one), addresses(mesh, other)
    return [segment for segment in segments if segment.between(*ends)]


def test_between_nodes_there_is_tls_on_port_15008_and_nothing_else(mesh: Mesh) -> None:
    marker = "plaintext-marker"

    def handshakes(segments: list[Segment]) -> set[int]:
        found = {agreed_version(stream) for stream in streams(seen(mesh, segments, "client", "far")).values()}
        return {version for version in found if version is not None}

    with sniffing(f"na.{mesh.name}.node-a") as segments:
        # Certificates are renewed soon, and another tunnel is made.
        eventually(
            lambda: (mesh.ask("client", f"http://far/{marker}")["pod"], handshakes(segments)),
            lambda now: now == ("far", {TLS_1_3}),
            within=CERTIFICATE_SECONDS,
        )
        assert mesh.ask("client", "-H", "Host: nobody.example", f"http://far/{marker}")["pod"] == "far"
        echoed = mesh.exec("client", "sh", "-c", f"echo {marker} | nc -N -w 5 far 9000")
        assert echoed.strip() == marker
    passed = seen(mesh, segments, "client", "far")
    assert passed
    assert {HBONE_PORT} == {min(each.source_port, each.target_port) for each in passed}
    whole = {connection: list(records(stream)) for connection, stream in streams(passed).items()}
    assert all(whole.values()), "each direction is TLS records from the first byte to the last"
    assert not [each for each in segments if marker.encode() in each.data]


def test_an_outsider_reaches_the_mesh_in_plaintext(mesh: Mesh) -> None:
    """PERMISSIVE, Istio's default. It also shows that the test above would see plaintext."""
    with sniffing(f"na.{mesh.name}.node-a") as segments:
        assert mesh.ask("outsider", "http://near/outsider-marker")["pod"] == "near"
    assert [each for each in seen(mesh, segments, "outsider", "near") if b"outsider-marker" in each.data]
    security = {
        "source_workload": "outsider",
        "connection_security_policy": "none",
        "source_principal": "unknown",
    }
    eventually(
        lambda: counted(mesh, "node-a", "istio_requests_total", reporter="destination", **security),
        lambda count: count >= 1,
    )


def test_streams_of_workloads_are_known_by_their_certificates(mesh: Mesh) -> None:
    """A node asks for what concerns it by its token, each workload's configuration is asked for as the workload."""

    def callers() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for client in mesh.status("controlplane")["clients"]:
            found.setdefault(client["type"], set()).add(client["caller"])
        return found

    wanted = {
        "ztunnel": {"node node-a", "node node-b"},
        "sidecar": {f"workload {spiffe(name)}" for name in ("client", "near", "far", "drifter", "machine")},
    }
    eventually(callers, lambda found: found == wanted)


@pytest.mark.parametrize(("target", "node"), [("near", "node-a"), ("far", "node-b"), ("machine", "node-b")])
def test_both_sides_tell_who_has_proved_to_be_whom(mesh: Mesh, target: str, node: str) -> None:
    labels = {
        "source_principal": spiffe("client"),
        "destination_principal": spiffe(target),
        "connection_security_policy": "mutual_tls",
        "destination_service_name": target,
        "response_code": "201",
    }

    def counts() -> tuple[float, float]:
        return (
            counted(mesh, "node-a", "istio_requests_total", reporter="source", **labels),
            counted(mesh, node, "istio_requests_total", reporter="destination", **labels),
        )

    before = counts()
    assert mesh.statuses("client", 10, f"http://{target}/", "-H", "x-echo-status: 201") == {"201": 10}
    eventually(counts, lambda now: now == (before[0] + 10, before[1] + 10))


def test_a_service_of_a_node_calls_as_itself(mesh: Mesh) -> None:
    """It is in its node's network, and known by its cgroup."""
    labels = {
        "source_principal": spiffe("machine"),
        "destination_principal": spiffe("near"),
        "response_code": "202",
    }

    def count() -> float:
        return counted(mesh, "node-a", "istio_requests_total", reporter="destination", **labels)

    assert mesh.statuses("machine", 3, "http://near/", "-H", "x-echo-status: 202") == {"202": 3}
    eventually(count, lambda now: now == 3)


def test_on_the_same_node_no_tunnel_is_made(mesh: Mesh) -> None:
    def connections() -> float:
        return counted(mesh, "node-a", "nodeagent_engine_neighbour_accepted_total")

    with sniffing(f"na.{mesh.name}.node-a") as segments:
        assert mesh.ask("client", "http://near/")["pod"] == "near"
        mesh.ask("client", "http://far/")
    assert HBONE_PORT not in {each.target_port for each in seen(mesh, segments, "client", "near")}
    assert HBONE_PORT in {each.target_port for each in seen(mesh, segments, "client", "far")}, (
        "it would be seen"
    )
    eventually(connections, lambda now: now > 0)  # one of an earlier test may be in use still


STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: near, namespace: default}
spec: {selector: {matchLabels: {app: near}}, mtls: {mode: STRICT}}
"""


def test_strict_takes_what_comes_without_a_tunnel_from_the_same_node(mesh: Mesh) -> None:
    """And nobody else in plaintext: the outsider shows that the policy is in force."""

    def answer(pod: str) -> str:
        # A connection of its own in the mesh, too: what is pooled was let in before.
        arguments = ("-o", "/dev/null", "-w", "%{http_code}", "-H", "connection: close")
        return mesh.curl(pod, *arguments, "http://near/strict", check=False).strip()

    def recognised() -> float:
        return counted(mesh, "node-a", "nodeagent_engine_neighbour_accepted_total")

    assert answer("outsider") == "200"
    mesh.apply(STRICT)
    try:
        eventually(lambda: answer("outsider"), lambda code: code != "200")
        assert {answer("client") for _ in range(5)} == {"200"}
        assert recognised() >= 1, "it came in plaintext"
        assert answer("outsider") != "200"
    finally:
        mesh.delete(STRICT)
    eventually(lambda: answer("outsider"), lambda code: code == "200")


def test_tcp_connections_are_counted_with_principals(mesh: Mesh) -> None:
    labels = {
        "source_principal": spiffe("client"),
        "destination_principal": spiffe("far"),
        "connection_security_policy": "mutual_tls",
    }
    name = "istio_tcp_connections_opened_total"

    def counts() -> tuple[float, float]:
        return (
            counted(mesh, "node-a", name, reporter="source", **labels),
            counted(mesh, "node-b", name, reporter="destination", **labels),
        )

    before = counts()
    mesh.exec("client", "sh", "-c", "echo hello | nc -N -w 5 far 9000")
    eventually(counts, lambda now: now == (before[0] + 1, before[1] + 1))


def test_the_access_log_names_the_peer(mesh: Mesh) -> None:
    mesh.curl("client", "http://far/who-is-there")
    for node, end in (("node-a", f'"-" "{spiffe("far")}"'), ("node-b", f'"{spiffe("client")}" "-"')):
        log = Path("/run/nodeagent/lab", mesh.name, "node", node, "access.log")
        (line,) = eventually(
            lambda log=log: [line for line in log.read_text().splitlines() if "who-is-there" in line],
            lambda lines: len(lines) == 1,
        )
        assert line.endswith(end)


def test_endpoints_say_who_must_answer(mesh: Mesh) -> None:
    mesh.curl("client", "http://far/")
    rows = [row for row in mesh.get("endpoints", "node-a") if row["workload"] == "far"]
    assert rows
    assert all(row["tunnel"] == [spiffe("far")] for row in rows)


def test_a_pod_that_leaves_the_mesh_is_reached_in_plaintext_until_it_comes_back(mesh: Mesh) -> None:
    def is_seen(path: str) -> bool:
        with sniffing(f"na.{mesh.name}.node-a") as segments:
            eventually(
                lambda: mesh.statuses("client", 1, f"http://drifter/{path}"), lambda got: got == {"200": 1}
            )
        return any(path.encode() in each.data for each in seen(mesh, segments, "client", "drifter"))

    assert not is_seen("before")
    mesh.apply(POD % "{app: drifter, istio.io/dataplane-mode: none}")
    eventually(lambda: "drifter" in by_hbone(mesh, "node-a"), lambda there: not there)
    assert is_seen("outside")
    mesh.apply(POD % "{app: drifter}")
    eventually(lambda: "drifter" in by_hbone(mesh, "node-a"), lambda there: there)
    assert not is_seen("back")


LONG_LIVED = """
import socket, sys, time
with socket.create_connection(("far", 9000), timeout=10) as connection:
    deadline, rounds = time.monotonic() + float(sys.argv[1]), 0
    while time.monotonic() < deadline:
        message = b"round %d" % rounds
        connection.sendall(message)
        answer = b""
        while len(answer) < len(message):
            chunk = connection.recv(100)
            assert chunk, f"closed in round {rounds}"
            answer += chunk
        assert answer == message
        rounds += 1
        time.sleep(0.1)
print(rounds)
"""


def test_nothing_fails_while_certificates_are_replaced(mesh: Mesh) -> None:
    """Over two lifetimes: requests on kept connections and on new ones, and one connection that outlives its
    certificate."""
    seconds = 2.25 * CERTIFICATE_SECONDS
    before = {row["serial"] for row in mesh.get("certs", "node-b")}
    issued = counted(mesh, "node-b", "nodeagent_certificates_issued_total")
    lasting = mesh.popen("client", sys.executable, "-c", LONG_LIVED, str(seconds))
    command = (sys.executable, str(ROOT / "tests" / "harness" / "load.py"), "http://far/")
    deadline, requests = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        out = mesh.exec("client", *command, "--requests", "200", "--connections", "4", check=False)
        summary = json.loads(out)
        assert summary["failures"] == 0, summary["reasons"]
        requests += summary["requests"]
        time.sleep(0.5)
    printed, errors = lasting.communicate(timeout=20)
    assert lasting.returncode == 0, errors
    assert int(printed) > seconds * 5
    assert requests >= 600
    assert counted(mesh, "node-b", "nodeagent_certificates_issued_total") >= issued + 3 * 2
    assert not before & {row["serial"] for row in mesh.get("certs", "node-b")}
