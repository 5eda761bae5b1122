"""A long run through the stack while configuration changes every second: nothing fails, nothing leaks."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from harness.mesh import ROOT, Mesh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

# The full run is what the project promises; a shorter one can be had while working on something else.
REQUESTS = int(os.environ.get("NODEAGENT_SOAK_REQUESTS", "100000"))
CONNECTIONS = 64
GROWTH_ALLOWED = 1.05
GROWTH_FLOOR_KIB = 4096


def route(percent: int) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: soak, namespace: default}}
spec:
  host: reviews
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: soak, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {percent}}}
    - {{destination: {{host: reviews, subset: v2}}, weight: {100 - percent}}}
"""


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class Changes(threading.Thread):
    """Change the split every second and note the agents' memory until told to stop."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(daemon=True)
        self.mesh = mesh
        self.stopping = threading.Event()
        self.pids = [mesh.agent_pid("node-a"), mesh.agent_pid("node-b")]
        self.memory: list[list[int]] = []
        self.changes = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            due = time.monotonic()
            while not self.stopping.wait(max(0.0, due - time.monotonic())):
                due += 1.0
                self.changes += 1
                self.mesh.apply(route(10 + self.changes * 7 % 80))
                self.memory.append([resident_kib(pid) for pid in self.pids])
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.stopping.set()
        self.join(30)
        if self.error is not None:
            raise self.error


def test_every_request_succeeds_while_the_configuration_changes(mesh: Mesh) -> None:
    mesh.apply(route(50))
    changes = Changes(mesh)
    changes.start()
    try:
        out = mesh.exec(
            "client",
            sys.executable,
            str(ROOT / "tests" / "harness" / "load.py"),
            "http://reviews:9080",
            "--requests",
            str(REQUESTS),
            "--connections",
            str(CONNECTIONS),
            check=False,
            timeout=800,
        )
    finally:
        changes.stop()
        mesh.delete(route(50))
    summary = json.loads(out)
    print(
        json.dumps(summary),
        "changes",
        changes.changes,
        "memory",
        changes.memory[:: max(1, len(changes.memory) // 12)],
    )
    assert summary["failures"] == 0, summary["reasons"]
    assert summary["requests"] == REQUESTS
    assert changes.changes >= summary["seconds"] / 4  # one a second, but where the machine is busy
    check_flat(changes.memory)


def check_flat(memory: list[list[int]]) -> None:
    """The peak of the last quarter is not above the peak of the third one, but for noise."""
    quarter = len(memory) // 4
    if quarter < 3:
        return
    for agent in range(len(memory[0])):
        series = [sample[agent] for sample in memory]
        earlier, later = max(series[2 * quarter : 3 * quarter]), max(series[3 * quarter :])
        assert later <= max(earlier * GROWTH_ALLOWED, earlier + GROWTH_FLOOR_KIB), series
