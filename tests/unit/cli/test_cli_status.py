"""`nodeagent status` of agents and of the control plane."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from nodeagent.cli import target
from nodeagent.errors import AdminError

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
        "capture ebpf (asked for by --capture)",
        "bpf maps 1.6 MB; workloads 4096 of 4096; workloads was full 2 times",
        "acceleration direct: 1 accelerated; 4 sockets, 9 messages past TCP, 2 unread\n",
        "bypass on: 12 services, 15 endpoints, 40 verdicts, 3 clients, 9 connections; 2 for want of room in "
        "backends; 4 connections revoked",
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


def subscribe(port: int, node: str, type_url: str, *, nack: str = "") -> tuple[grpc.Channel, Any]:
    """Subscribe to everything of a type by delta ADS, and ACK or NACK the first response."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    requests: queue.SimpleQueue[discovery_pb2.DeltaDiscoveryRequest | None] = queue.SimpleQueue()
    requests.put(
        discovery_pb2.DeltaDiscoveryRequest(
            node=base_pb2.Node(id=node), type_url=type_url, resource_names_subscribe=["*"]
        )
    )
    stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    call = stub.DeltaAggregatedResources(iter(requests.get, None))
    response = next(call)
    answer = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
    if nack:
        answer.error_detail.message = nack
    requests.put(answer)
    return channel, call


@pytest.fixture
def controlplane(labs: Path, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The control plane of lab `books`, a real one: its configuration folder and its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "config"
    config.mkdir()
    admin = labs / "books/controlplane/admin.sock"
    command = [sys.executable, "-m", "nodeagent.cli.main", "controlplane", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--listen", f"127.0.0.1:{port}", "--admin", str(admin)], stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(200):
            with contextlib.suppress(AdminError):
                if target.ask(target.Target(admin, "control plane"), "/status")["ready"]:
                    break
            time.sleep(0.05)
        yield config, port
        process.terminate()


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.0.10, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
"""
NODE_ID = "sidecar~10.0.0.1~sleep.default~default.svc.cluster.local"
CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


def wait_for(run: Run, text: str) -> Any:
    """Ask for the status until it has the text (blanks folded)."""
    for _ in range(100):
        ran = run("status", "--node", "controlplane")
        if text in " ".join(ran.out.split()):
            return ran
        time.sleep(0.05)
    raise AssertionError(f"no {text!r} in:\n{ran.out}")


def test_controlplane_shows_clients_and_errors(controlplane: tuple[Path, int], run: Run) -> None:
    config, port = controlplane
    empty = wait_for(run, "no client is connected")
    assert empty.code == 0
    assert empty.out.startswith("control plane: ready\n")
    (config / "services.yaml").write_text(SERVICE)
    wait_for(run, "1 Service")
    channel, _ = subscribe(port, NODE_ID, CLUSTER_TYPE)
    with channel:
        ran = wait_for(run, f"NODE TYPE CDS {NODE_ID} sidecar SYNCED")
        assert ran.code == 0
    wait_for(run, "no client is connected")
    channel, _ = subscribe(port, NODE_ID, CLUSTER_TYPE, nack="cluster x: no thanks")
    with channel:
        ran = wait_for(run, f"error: {NODE_ID} rejected CDS: cluster x: no thanks")
        assert "STALE" in ran.out
        assert ran.code == 1
    (config / "broken.yaml").write_text("kind: [")
    ran = wait_for(run, "error [broken-file]")
    assert ran.code == 1
    assert json.loads(run("status", "--node", "controlplane", "-o", "json").out)["issues"]["error"] == 1
