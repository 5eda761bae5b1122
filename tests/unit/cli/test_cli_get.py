"""`nodeagent get` and the choice of the agent it asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.agent_state import V1

from nodeagent.cli.get import LISTINGS

Run = Callable[..., Any]
NODE = ("--node", "node-a")


def test_workloads_table(agent: Any, run: Run) -> None:
    ran = run("get", "workloads", *NODE)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "NAMESPACE   NAME         ADDRESS                       NODE     PROTOCOL   STATUS",
        "data        db           10.244.2.4                    node-b   HBONE      UNHEALTHY",
        "default     reviews-v1   10.244.1.3,fd00:10:244:1::3   node-a   TCP        HEALTHY",
    ]


def test_clusters_table_is_istioctls(agent: Any, run: Run) -> None:
    lines = run("get", "clusters", *NODE).out.splitlines()
    assert lines[0].split("   ")[0].strip() == "FQDN"
    assert lines[0].split() == ["FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "VIEW"]
    assert lines[1].split() == [
        *("PassthroughCluster", "-", "-", "-", "ORIGINAL_DST", "default/productpage"),
    ]
    assert lines[2].split() == [
        *("reviews.default.svc.cluster.local", "9080", "v1", "outbound", "EDS", "default/productpage"),
    ]


@pytest.mark.parametrize("resource", LISTINGS)
def test_every_resource_in_every_format(agent: Any, run: Run, resource: str) -> None:
    rows = json.loads(run("get", resource, *NODE, "-o", "json").out)
    assert rows
    assert yaml.safe_load(run("get", resource, *NODE, "-o", "yaml").out) == rows
    for output in ("table", "wide"):
        lines = run("get", resource, *NODE, "-o", output).out.splitlines()
        assert len(lines) == len(rows) + 1
    assert len(run("get", resource, *NODE, "-o", "wide").out) > len(run("get", resource, *NODE).out)


def test_cells(agent: Any, run: Run) -> None:
    assert "[fd00::3]:9080    UNHEALTHY" in run("get", "endpoints", *NODE).out
    connection = run("get", "connections", *NODE).out.splitlines()[1]
    assert connection.split()[-3:] == ["1m1s", "1.5kB", "3.0MB"]
    assert "9080/HTTP   2/3" in run("get", "services", *NODE).out
    assert "/* header(end-user)=jason" in run("get", "routes", *NODE).out


def test_name_and_namespace(agent: Any, run: Run) -> None:
    assert len(json.loads(run("get", "workload", "db", *NODE, "-o", "json").out)) == 1
    assert len(json.loads(run("get", "endpoints", V1, *NODE, "-o", "json").out)) == 2
    assert len(json.loads(run("get", "workloads", "-n", "data", *NODE, "-o", "json").out)) == 1
    missing = run("get", "clusters", "nothing", *NODE)
    assert missing.code == 1
    assert missing.error == "the agent of node 'node-a' of lab 'books' has no clusters named 'nothing'"
    empty = run("get", "workloads", "-n", "nothing", *NODE)
    assert (empty.code, empty.out, empty.err) == (0, "", "no workloads\n")
    assert run("get", "workloads", "-n", "nothing", *NODE, "-o", "json").out == "[]\n"


def test_rows_are_sorted_and_routes_keep_their_order(agent: Any, run: Run) -> None:
    [route] = agent.state.routes()
    import dataclasses

    second = dataclasses.replace(route, match="/*", route="a-default")
    agent.state.routes = lambda: (route, second)
    rows = json.loads(run("get", "routes", *NODE, "-o", "json").out)
    assert [row["route"] for row in rows] == ["jason", "a-default"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense", *NODE), "no resource 'nonsense'; there are: workloads, services"),
        ((), "Missing argument 'RESOURCE'"),
        (("clusters", "--name", "books"), "--name books needs --node NODE"),
        (("clusters", "--admin", "/x", *NODE), "--admin and --node"),
        (("clusters", *NODE, "-o", "xml"), "xml"),
    ],
)
def test_usage_errors(labs: Path, run: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run("get", *arguments)
    assert ran.code == 2
    assert message in " ".join(ran.err.split())


def test_the_lab_may_be_in_the_environment(labs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `nodeagent lab`; what is named by an option goes before it."""
    monkeypatch.setenv("NODEAGENT_LAB", "other")
    assert "'node-b' of lab 'other'" in run("get", "routes", "--node", "node-b").error
    assert "'node-b' of lab 'books'" in run("get", "routes", "--node", "node-b", "--name", "books").error
    assert "lab 'other' has no node 'node-a'" in run("get", "routes", "--node", "node-a").error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--node", "node-c"), "no lab has a node 'node-c'. Labs on this machine: books (--node node-a |"),
        (("--node", "node-b"), "several labs have a node 'node-b': books, other; choose one by --name LAB"),
        (("--node", "node-a", "--name", "other"), "lab 'other' has no node 'node-a'"),
        (("--node", "node-b", "--name", "other"), "no such socket: is the agent of node 'node-b'"),
        (("--node", "controlplane"), "`nodeagent status --node controlplane` asks the control plane"),
        (("--admin", "/nowhere/admin.sock"), "/nowhere/admin.sock: no such socket: is the agent running?"),
    ],
)
def test_the_target_is_named_when_it_cannot_be_asked(
    labs: Path, run: Run, arguments: tuple[str, ...], message: str
) -> None:
    ran = run("get", "clusters", *arguments)
    assert ran.code == 1
    assert message in ran.error


def test_no_lab_at_all(labs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from nodeagent.lab import names

    monkeypatch.setattr(names, "LABS", labs / "none")
    assert run("get", "clusters", *NODE).error.endswith("No lab is up on this machine.")


def test_a_dead_agents_socket_is_told_from_a_missing_one(labs: Path, run: Run) -> None:
    from nodeagent.admin.listen import bind_unix

    path = labs / "books/node/node-a/admin.sock"
    bind_unix("--admin", path).close()
    assert (
        "nobody listens: the agent of node 'node-a' of lab 'books' has ended"
        in run("get", "clusters", *NODE).error
    )


def test_admin_socket_by_environment(agent: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODEAGENT_ADMIN", str(agent.path))
    assert run("get", "clusters").code == 0
    assert run("get", "clusters", "--node", "node-a").code == 0
