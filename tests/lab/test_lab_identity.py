"""A lab with identities: every workload gets its certificate, and keeps one whatever restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import require
from harness.labs import NODEAGENT, LabUnderTest
from harness.mesh import eventually

pytestmark = pytest.mark.lab

LAB = """
identity: {certLifetime: 20}
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: client, node: node-a, labels: {app: client}}
- name: web-1
  node: node-a
  serviceAccount: web
  labels: {app: web}
  command: [nodeagent, echo, --http, "8080"]
- name: web-2
  node: node-b
  serviceAccount: web
  labels: {app: web}
  command: [nodeagent, echo, --http, "8080"]
- {name: outsider, node: node-b, serviceAccount: outsider, mesh: false}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
DEFAULT = "spiffe://cluster.local/ns/default/sa/default"
WEB = "spiffe://cluster.local/ns/default/sa/web"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    require("root", "nft", "ip", "curl", "engine")
    lab = LabUnderTest(tmp_path_factory.mktemp("identity"))
    lab.write("services.yaml", SERVICES)
    try:
        lab.must("up", lab.write("lab.yaml", LAB))
        yield lab
    finally:
        lab.run("down")


def certificates(lab: LabUnderTest, node: str) -> dict[str, Any]:
    """What `nodeagent get certs` shows, by identity."""
    command = [*NODEAGENT, "get", "certs", "--name", lab.name, "--node", node, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {row["identity"]: row for row in json.loads(done.stdout)} if done.returncode == 0 else {}


def available(lab: LabUnderTest, node: str) -> set[str]:
    return {name for name, row in certificates(lab, node).items() if row["state"] == "Available"}


def log(lab: LabUnderTest, name: str) -> str:
    return Path("/run/nodeagent/lab", lab.name, "logs", f"{name}.log").read_text()


def test_each_node_has_the_identities_of_its_pods_in_the_mesh(lab: LabUnderTest) -> None:
    eventually(lambda: available(lab, "node-a"), lambda found: found == {DEFAULT, WEB})
    eventually(lambda: available(lab, "node-b"), lambda found: found == {WEB})
    assert lab.inside("client", "curl", "-sf", "http://web/").returncode == 0


def test_certificates_are_renewed(lab: LabUnderTest) -> None:
    eventually(lambda: available(lab, "node-a"), lambda found: WEB in found)
    before = certificates(lab, "node-a")[WEB]["serial"]
    eventually(lambda: certificates(lab, "node-a")[WEB]["serial"], lambda now: now != before, within=15)


def test_killed_agent_and_control_plane_come_back_to_the_same_root(lab: LabUnderTest) -> None:
    root = Path("/run/nodeagent/lab", lab.name, "identity", "root-cert.pem")
    before = root.read_text()
    status = lab.status()
    agent = next(node["agent"] for node in status["nodes"] if node["name"] == "node-a")
    for process in (status["controlplane"], agent):
        os.kill(process["pid"], signal.SIGKILL)
    eventually(lambda: certificates(lab, "node-a"), lambda found: not found)
    eventually(lambda: available(lab, "node-a"), lambda found: found == {DEFAULT, WEB}, within=20)
    assert root.read_text() == before
    assert lab.inside("client", "curl", "-sf", "http://web/").returncode == 0


def test_the_control_plane_tells_what_it_issued(lab: LabUnderTest) -> None:
    assert f"issued {WEB} to node node-b" in log(lab, "controlplane")
    assert "outsider to" not in log(lab, "controlplane")
    command = [*NODEAGENT, "status", "--name", lab.name, "--node", "controlplane"]
    assert "CN=nodeagent root" in subprocess.run(command, capture_output=True, text=True, check=False).stdout
