"""Minutes of steady traffic over short-lived certificates: nothing fails.

Not in the default run: `make python-test PYTEST_ARGS="-m slow -s"`, about six minutes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest
from harness.mesh import ROOT, Mesh, counted
from harness.meshes import running_mesh

LIFETIME = 60
SECONDS = int(os.environ.get("NODEAGENT_RENEWAL_SECONDS", "300"))
RATE = 200
STREAMS = 50
LOOK_EVERY = 5

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]

LAB = f"""
identity: {{certLifetime: {LIFETIME}}}
nodes: [{{name: node-a}}, {{name: node-b}}]
pods:
- {{name: client, node: node-a, serviceAccount: client, labels: {{app: client}}}}
- name: near
  node: node-a
  serviceAccount: near
  labels: {{app: server}}
  command: [nodeagent, echo, --http, "8080", --tcp, "9000"]
- name: far
  node: node-b
  serviceAccount: far
  labels: {{app: server}}
  command: [nodeagent, echo, --http, "8080", --tcp, "9000"]
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]}
"""
LONG_LIVED = """
import asyncio, sys, time
async def stream(number, deadline):
    reader, writer = await asyncio.open_connection("server", 9000)
    rounds = 0
    while time.monotonic() < deadline:
        message = b"stream %d round %d" % (number, rounds)
        writer.write(message)
        await writer.drain()
        answer = await asyncio.wait_for(reader.readexactly(len(message)), 10)
        assert answer == message, answer
        rounds += 1
        await asyncio.sleep(0.5)
    writer.close()
    return rounds
async def main():
    deadline = time.monotonic() + float(sys.argv[2])
    rounds = await asyncio.gather(*(stream(n, deadline) for n in range(int(sys.argv[1]))))
    print(min(rounds), max(rounds))
asyncio.run(main())
"""


@pytest.fixture
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh-renewal")
    with running_mesh("tr", folder, LAB, hbone={"client", "near", "far"}, services=SERVICES) as mesh:
        yield mesh


def failures(mesh: Mesh) -> float:
    return sum(counted(mesh, node, "nodeagent_certificate_failures_total") for node in ("node-a", "node-b"))


def test_nothing_fails_while_each_certificate_is_renewed_four_times(mesh: Mesh) -> None:
    serials: dict[str, set[str]] = defaultdict(set)
    before = failures(mesh)  # at the start the control plane may come after the agents
    streams = mesh.popen("client", sys.executable, "-c", LONG_LIVED, str(STREAMS), str(SECONDS))
    load = mesh.popen(
        "client",
        sys.executable,
        str(ROOT / "tests" / "harness" / "load.py"),
        "http://server/",
        *("--requests", str(RATE * SECONDS), "--rate", str(RATE), "--connections", "32"),
    )
    started = time.monotonic()
    while time.monotonic() - started < SECONDS:
        for node in ("node-a", "node-b"):
            for row in mesh.get("certs", node):
                assert row["state"] == "Available", row
                serials[row["identity"]].add(row["serial"])
        assert load.poll() is None or time.monotonic() - started > SECONDS - 1, load.communicate()
        time.sleep(LOOK_EVERY)
    out, errors = load.communicate(timeout=60)
    rounds, stream_errors = streams.communicate(timeout=60)
    summary = json.loads(out)
    print(summary, {identity: len(found) for identity, found in serials.items()}, rounds)
    assert streams.returncode == 0, stream_errors
    assert load.returncode == 0, (summary["reasons"], errors)
    assert summary["requests"] == RATE * SECONDS
    assert summary["seconds"] < SECONDS * 1.05, "the rate was kept"
    assert int(rounds.split()[0]) > SECONDS, "each stream went on"
    assert len(serials) == 3
    renewals = min(4, SECONDS // LIFETIME)
    assert all(len(found) > renewals for found in serials.values()), serials
    assert failures(mesh) == before
