"""`nodeagent trace`: the kernel's events of one pod, with the names that its agent knows."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness.mesh import NODEAGENT, Mesh

pytestmark = pytest.mark.lab

ECHO = ("sh", "-c", "printf 'hello\\n' | nc -N -w 5 tcp-echo 9000")
"""Over a connection of its own, which HTTP may not need."""


def _start(mesh: Mesh, *arguments: str) -> subprocess.Popen[str]:
    command = [str(NODEAGENT), "trace", *arguments, "--node", "node-a", "--name", mesh.name, "-o", "json"]
    tracer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    assert tracer.stderr.readline().startswith("tracing"), tracer.stderr.read()
    return tracer


def _read_until(tracer: subprocess.Popen[str], what: str, target: str) -> Iterator[dict[str, Any]]:
    """The events up to one of this kind to this target; it is told some time after it happened."""
    assert tracer.stdout is not None
    late = threading.Timer(10, tracer.terminate)
    late.start()
    for line in tracer.stdout:
        event = json.loads(line)
        yield event
        if event["what"] == what and event["target_name"].startswith(target):
            late.cancel()
            return
    raise AssertionError(f"no event {what} to {target}")


def _events(tracer: subprocess.Popen[str]) -> list[dict[str, Any]]:
    tracer.send_signal(signal.SIGINT)
    output, errors = tracer.communicate(timeout=20)
    assert tracer.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_connects_of_a_pod_are_told_with_names(mesh: Mesh) -> None:
    tracer = _start(mesh, "connect", "--pod", "client")
    assert mesh.exec("client", *ECHO) == "hello\n"
    events = [*_read_until(tracer, "connected", "default/tcp-echo"), *_events(tracer)]
    assert all("default/client" in (event["source_name"], event["target_name"]) for event in events)


def test_a_pod_that_is_not_there_is_an_error(mesh: Mesh) -> None:
    command = [str(NODEAGENT), "trace", "reset", "--pod", "nobody", "--node", "node-a", "--name", mesh.name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the agent knows no workload default/nobody" in done.stderr
    done = subprocess.run([*command[:2], "drop", *command[3:]], capture_output=True, text=True)
    assert "does not tell whose packets it drops" in done.stderr


def test_a_summary_counts_a_pods_connects_with_names(mesh: Mesh) -> None:
    command = [str(NODEAGENT), "trace", "connect", "--summary", "--pod", "client", "--node", "node-a"]
    tracer = subprocess.Popen(
        [*command, "--name", mesh.name, "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    while not (line := tracer.stderr.readline()).startswith("counting"):
        assert line, "it ended before it counted"
    for _ in range(3):
        assert mesh.exec("client", *ECHO) == "hello\n"
    rows = _events(tracer)
    assert sum(row["count"] for row in rows if row["what"] == "connected") >= 3
    assert all("default/client" in (row["source_name"], row["target_name"]) for row in rows)
    assert all(sum(row["slots"]) == row["count"] for row in rows)
