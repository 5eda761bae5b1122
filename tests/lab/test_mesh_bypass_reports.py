"""What goes past the engine is in metrics and access log as if the engine had carried it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.mesh import Mesh, counted, eventually, run
from harness.meshes import running_mesh
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

LAB = """
identity: {}
nodes: [{name: node-a}]
pods:
- {name: alice, node: node-a, serviceAccount: alice, labels: {app: alice, version: v1}}
- {name: bob, node: node-a, serviceAccount: bob, labels: {app: bob}}
- name: db
  node: node-a
  serviceAccount: db
  labels: {app: db, version: v2}
  command: [nodeagent, echo, --tcp, "9000"]
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, ports: [{name: tcp, port: 80, targetPort: 9000}, {name: tcp-closed, port: 81}]}
"""
THROUGH_THE_ENGINE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec: {host: db, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1000}}}}
"""
ONLY_ALICE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-alice}
spec:
  selector: {matchLabels: {app: db}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/alice]}}]}]
"""
NODE = "node-a"
CLOSED = "istio_tcp_connections_closed_total"
FAMILIES = ("istio_tcp_", "nodeagent_policy_decisions")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh-bypass-reports")
    options = ("--capture", "ebpf", "--bypass", "on")
    with running_mesh("tbr", folder, LAB, *options, hbone={"alice", "bob", "db"}, services=SERVICES) as mesh:
        # What is configured on demand is there afterwards.
        talk(mesh, "alice", ports="80 81")
        talk(mesh, "bob")
        eventually(lambda: planned(mesh), lambda there: there >= 2)
        yield mesh


def talk(mesh: Mesh, client: str, ports: str = "80") -> list[str]:
    """Send 5000 bytes to each of the ports, and have them back; how many came."""
    script = f"for port in {ports}; do head -c 5000 /dev/zero | nc -4 -N -w 5 db $port | wc -c; done"
    return mesh.exec(client, "sh", "-c", script).split()


@contextlib.contextmanager
def applied(mesh: Mesh, text: str) -> Iterator[None]:
    mesh.apply(text)
    try:
        yield
    finally:
        mesh.delete(text)


# -- looking -----------------------------------------------------------------------------------------------------


def page(mesh: Mesh, path: str) -> str:
    """Of the agent's admin socket; "" while there is none."""
    socket = Path("/run/nodeagent/lab", mesh.name, "node", NODE, "admin.sock")
    return run("curl", "-sS", "--unix-socket", str(socket), f"http://agent/{path}", check=False)


def ask(mesh: Mesh, path: str) -> Any:
    return json.loads(page(mesh, path) or "{}")


def samples(mesh: Mesh) -> Samples:
    """Those of connections and of policies."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(mesh, "stats/prometheus"))
        for sample in family.samples
        if sample.name.startswith(FAMILIES)
    }


def grown(mesh: Mesh, action: Callable[[], object], is_complete: Callable[[Samples], bool]) -> Samples:
    """By how much samples have grown when all is told of."""
    before = samples(mesh)
    action()

    def growth() -> Samples:
        now = samples(mesh)
        return {key: now[key] - before.get(key, 0) for key in now if now[key] != before.get(key, 0)}

    return eventually(growth, is_complete)


def closed(count: int) -> Callable[[Samples], bool]:
    """So many ends are told of."""
    return lambda found: total(found, CLOSED) == count


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    return sum(
        value for (each, has), value in found.items() if each == name and labels.items() <= dict(has).items()
    )


def planned(mesh: Mesh) -> int:
    """How many addresses and ports are reached past the engine."""
    return int(ask(mesh, "status")["bypass"]["services"])


def events(mesh: Mesh) -> tuple[int, int]:
    """How many connections went past the engine, and were denied, until now."""
    counters = ask(mesh, "status")["capture"]["counters"]
    return int(counters["bypassed"]), int(counters["denied"])


class Log:
    """The node's access log from here on."""

    def __init__(self, mesh: Mesh) -> None:
        self._path = Path("/run/nodeagent/lab", mesh.name, "node", NODE, "access.log")
        self._begin = self._path.stat().st_size

    def lines(self, having: str = "") -> list[str]:
        """Those that have a text."""
        lines = self._path.read_bytes()[self._begin :].decode().splitlines()
        return [line for line in lines if having in line]

    def wait_for(self, count: int, having: str) -> list[str]:
        """When there are so many."""
        return eventually(lambda: self.lines(having), lambda lines: len(lines) == count)


def steady(lines: Iterable[str]) -> Counter[str]:
    """Without times and the ports that clients got."""
    texts = (re.sub(r"^\[[^]]+\]", "[]", line) for line in lines)
    texts = (re.sub(r'" (\d+) (\d+) \d+ \S+ "', r'" \1 \2 DURATION - "', text) for text in texts)
    return Counter(re.sub(r"(10\.\d+\.\d+\.\d+):([1-9]\d{4}|0)\b", r"\1:PORT", text) for text in texts)


# -- what is told ------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What came of alice talking twice and bob, who may not, trying once."""

    samples: Samples
    lines: list[str]

    def of(self, client: str) -> Samples:
        """Of connections of one of them."""
        return {key: value for key, value in self.samples.items() if ("source_workload", client) in key[1]}

    def lines_of(self, client: str, kind: str) -> list[str]:
        """Those of its connections, `inbound` or `outbound`."""
        address = ADDRESSES[client]
        return [line for line in self.lines if f" {address}:" in line and f" {kind}|" in line]


ADDRESSES = {"alice": "10.244.1.2", "bob": "10.244.1.3"}


def tell(mesh: Mesh) -> Told:
    """Have them do so. The engine may try an endpoint that resets connections again: it cannot know that it was
    policy."""
    log = Log(mesh)
    alice = grown(mesh, lambda: talk(mesh, "alice", "80 80"), closed(4))
    bob = grown(mesh, lambda: talk(mesh, "bob"), _is_told_by_both)
    return eventually(
        lambda: Told(alice | bob, log.lines()),
        lambda told: all(told.lines_of("bob", kind) for kind in ("inbound", "outbound")),
    )


def _is_told_by_both(found: Samples) -> bool:
    return all(total(found, CLOSED, reporter=side) for side in ("source", "destination"))


@pytest.fixture(scope="module")
def both(mesh: Mesh) -> tuple[Told, Told]:
    """The same past the engine, and through it."""
    there = planned(mesh)
    with applied(mesh, ONLY_ALICE):
        _await_denial(mesh)
        before = events(mesh)
        past = tell(mesh)
        assert events(mesh) == (before[0] + 2, before[1] + 1)
        with applied(mesh, THROUGH_THE_ENGINE):
            eventually(lambda: planned(mesh), lambda now: now <= there - 2)
            through = tell(mesh)
            assert events(mesh) == (before[0] + 2, before[1] + 1)
        eventually(lambda: planned(mesh), lambda now: now == there)
    eventually(lambda: talk(mesh, "bob"), lambda came: came == ["5000"])
    return past, through


def _await_denial(mesh: Mesh) -> None:
    """Until connections of bob are refused at connect(), and those are told of."""
    log, before = Log(mesh), events(mesh)[1]

    def refused() -> int:
        talk(mesh, "bob")
        return events(mesh)[1]

    seen = eventually(refused, lambda now: now > before)
    eventually(lambda: counted(mesh, NODE, "nodeagent_bypass_cx_denied_total"), lambda told: told == seen)
    log.wait_for(seen - before, '"Operation not permitted"')
    log.wait_for(seen - before, "rbac_access_denied")


def test_metrics_and_log_are_those_of_the_engine(both: tuple[Told, Told]) -> None:
    past, through = both
    assert past.of("alice") == through.of("alice")
    for kind in ("inbound", "outbound"):
        assert steady(past.lines_of("alice", kind)) == steady(through.lines_of("alice", kind))
        assert len(past.lines_of("alice", kind)) == 2
    for reporter in ("source", "destination"):
        labels = {
            "reporter": reporter,
            "source_principal": "spiffe://cluster.local/ns/default/sa/alice",
            "destination_principal": "spiffe://cluster.local/ns/default/sa/db",
            "source_version": "v1",
            "destination_version": "v2",
            "destination_service": "db.default.svc.cluster.local",
            "connection_security_policy": "mutual_tls",
            "response_flags": "-",
        }
        assert total(past.samples, "istio_tcp_connections_opened_total", **labels) == 2
        assert total(past.samples, "istio_tcp_received_bytes_total", **labels) == 10_000
        assert total(past.samples, "istio_tcp_sent_bytes_total", **labels) == 10_000


def test_policies_are_counted_as_by_the_engine(both: tuple[Told, Told]) -> None:
    past, through = both
    name, policy = "nodeagent_policy_decisions_total", "ns[default]-policy[only-alice]-rule[0]"
    for found in both:
        assert total(found.samples, name, decision="allowed", policy=policy) == 2
    assert total(past.samples, name, decision="denied", policy="none", destination_workload="db") == 1
    assert {key for key in past.samples if key[0] == name} == {
        key for key in through.samples if key[0] == name
    }


def test_denials_are_told_as_by_the_engine(both: tuple[Told, Told]) -> None:
    past, through = both

    assert past.of("bob") == through.of("bob")
    for told in both:
        assert total(told.of("bob"), CLOSED, reporter="source", response_flags="UF") == 1
    assert steady(past.lines_of("bob", "inbound")) == steady(through.lines_of("bob", "inbound"))
    [line] = past.lines_of("bob", "inbound")
    assert "rbac_access_denied_matched_policy[none]" in line
    [line] = past.lines_of("bob", "outbound")
    assert '"Operation not permitted"' in line


def test_a_port_where_nobody_listens(mesh: Mesh) -> None:
    log = Log(mesh)
    before = events(mesh)[0]
    found = grown(mesh, lambda: talk(mesh, "alice", "81"), closed(2))
    assert events(mesh)[0] == before + 1
    for reporter in ("source", "destination"):
        assert total(found, CLOSED, response_flags="UF", reporter=reporter) == 1
    log.wait_for(2, '"Connection refused"')


@contextlib.contextmanager
def _conversation(mesh: Mesh) -> Iterator[Callable[[str], None]]:
    """A connection that stays; what is given is sent, and has to come back."""
    with mesh.popen("alice", "nc", "-4", "-N", "db", "80") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sending, coming = process.stdin, process.stdout

        def say(text: str) -> None:
            sending.write(f"{text}\n")
            sending.flush()
            assert coming.readline() == f"{text}\n"

        try:
            yield say
            sending.close()
            process.wait(10)
        finally:
            process.kill()


def _carried(mesh: Mesh) -> dict[str, int]:
    """What live connections have sent, as it was looked at last, by workload."""
    rows = ask(mesh, "connections")
    return {row["name"]: row["bytes_in"] for row in rows if row["state"] == "bypassed"}


def test_live_connections_are_counted_and_listed(mesh: Mesh) -> None:
    def received() -> list[float]:
        found, name = samples(mesh), "istio_tcp_received_bytes_total"
        return [
            total(found, name, reporter=side, source_workload="alice") for side in ("source", "destination")
        ]

    before = received()
    with _conversation(mesh) as say:
        say("x" * 999)
        eventually(received, lambda now: now == [each + 1000 for each in before])
        assert _carried(mesh) == {"alice": 1000, "db": 1000}
    eventually(lambda: _carried(mesh), lambda found: not found)


NOBODY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: db}}, action: DENY, rules: [{}]}
"""


def test_a_revoked_connection_says_by_which_policy(mesh: Mesh) -> None:
    log = Log(mesh)
    with mesh.popen("alice", "nc", "-4", "-N", "db", "80") as process:
        eventually(lambda: len(_carried(mesh)), lambda count: count == 2)
        with applied(mesh, NOBODY):
            process.wait(10)
    [line] = log.wait_for(1, "rbac_access_denied_matched_policy[ns[default]-policy[nobody]-rule[0]]")
    assert "inbound|9000||" in line


def test_a_later_agent_counts_on(mesh: Mesh) -> None:
    before = events(mesh)[0]
    eventually(lambda: (talk(mesh, "alice"), events(mesh)[0])[1], lambda now: now > before)
    with _conversation(mesh) as say:
        say("before")
        eventually(lambda: len(_carried(mesh)), lambda count: count == 2)
        pid = mesh.agent_pid(NODE)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        say("meanwhile")  # nobody counts: it is there before the next agent is
        eventually(lambda: mesh.agent_pid(NODE), lambda now: now not in (None, pid))
        carried = len("before\nmeanwhile\n")
        eventually(
            lambda: _carried(mesh), lambda found: found == {"alice": carried, "db": carried}, within=20
        )
        log = Log(mesh)
        say("after")
    found = eventually(lambda: samples(mesh), lambda found: total(found, CLOSED) == 2)
    for reporter in ("source", "destination"):
        labels = {"reporter": reporter, "source_workload": "alice", "destination_workload": "db"}
        service = {"destination_service": "db.default.svc.cluster.local"}
        assert total(found, CLOSED, **labels, **service) == 1
        assert total(found, "istio_tcp_connections_opened_total", **labels) == 0, "the earlier one has"
        received = total(found, "istio_tcp_received_bytes_total", **labels, **service)
        assert received == len("after\n"), "what was carried before is the earlier one's"
    everything = carried + len("after\n")
    log.wait_for(2, f'" {everything} {everything} ')
