"""`nodeagent status` of agents and of the control plane."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

Run = Callable[..., Any]
NODE = ("--node", "node-a")


def test_ready_agent(agent: Any, run: Run) -> None:
    ran = run("status", *NODE)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == "node-a: ready"
    text = "\n".join(" ".join(line.split()) for line in lines)
    for expected in (
        "version 0.1.0, pid 42, up 1h2m",
        "control plane 127.0.0.1:15010, connected",
        "capture nft (asked for by --capture)",
        "engine 1 worker, 5 connections",
        "connections_total 17",
        "enrolment /run/zds.sock connected; 1 enrolled, 1 failed",
        "configuration version 7, in force",
        "STREAM TYPE STATE RESOURCES VERSION",
        "workloads Address SYNCED 12 7",
        "default/productpage Cluster STALE 3 6",
        "default broken failed - netns is gone",
        "warning: VirtualService default/x: fault is not supported",
    ):
        assert expected in text, expected
    assert "error: stream default/productpage: rejected: outbound|9080|v2|" in text


def test_agent_that_is_not_ready(agent: Any, run: Run) -> None:
    agent.state.break_ready("control plane not connected")
    ran = run("status", *NODE)
    assert ran.code == 1
    assert ran.out.startswith("node-a: not ready: control plane not connected\n")
    as_json = run("status", *NODE, "-o", "json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["not_ready"] == ["control plane not connected"]


def test_formats(agent: Any, run: Run) -> None:
    value = json.loads(run("status", *NODE, "-o", "json").out)
    assert value["node"] == "node-a"
    assert yaml.safe_load(run("status", *NODE, "-o", "yaml").out)["engine"] == value["engine"]


def test_no_agent(labs: Any, run: Run) -> None:
    ran = run("status")
    assert ran.code == 1
    assert ran.error.startswith("/run/nodeagent/admin.sock: ")
