"""A lab whose pods ask for acceleration: by a label, with bypass on. The engine is not between, nor is the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import require
from harness.mesh import Mesh, eventually

pytestmark = pytest.mark.lab

LAB = """
nodes: [{name: node-a}]
pods:
- {name: client, node: node-a, labels: {nodeagent.io/acceleration: direct}}
- name: swift
  node: node-a
  labels: {app: swift, nodeagent.io/acceleration: direct}
  command: [nodeagent, echo, --tcp, "9000"]
- {name: slow, node: node-a}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: swift, namespace: default}
spec: {selector: {app: swift}, ports: [{name: tcp, port: 9000}]}
"""
ASK = """
import hashlib, os, socket, sys
data = os.urandom(300_000)
with socket.create_connection((sys.argv[1], 9000)) as sock, sock.makefile("rb") as answers:
    for size in (1, 10, 40_000, 259_989):
        piece, data = data[:size], data[size:]
        sock.sendall(piece)
        assert answers.read(size) == piece
print("whole")
"""


def test_pods_with_the_label_are_accelerated_and_others_are_not(tmp_path: Path) -> None:
    require("root", "nft", "engine")
    mesh = Mesh(f"acc{os.getpid()}", tmp_path)
    try:
        mesh.up(LAB, "--bypass", "on", "--capture", "ebpf", services=SERVICES)
        address = _address(mesh)

        def ask(pod: str) -> dict[str, Any]:
            """What the agent says after a conversation of 300,000 bytes each way."""
            assert mesh.exec(pod, "python3", "-c", ASK, address) == "whole\n"
            found: dict[str, Any] = mesh.status("node-a")["acceleration"]
            return found

        # The first connection may be before anything is known of the service.
        found = eventually(lambda: ask("client"), lambda found: found["counters"]["bytes"] > 0)
        assert found["counters"]["bytes"] == 600_000
        assert {(row["name"], row["state"]) for row in found["workloads"]} == {
            ("client", "accelerated"),
            ("swift", "accelerated"),
        }
        assert ask("slow")["counters"] == found["counters"]
    finally:
        mesh.lab("down", check=False)


def _address(mesh: Mesh) -> str:
    """The service's IPv4 address."""
    rows: list[dict[str, Any]] = mesh.get("services", "node-a")
    found = next(row["addresses"] for row in rows if row["hostname"].startswith("swift."))
    return next(str(address) for address in found if ":" not in address)
