"""A gRPC client that speaks xDS itself, served by the control plane and routed to real gRPC servers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.control_plane import ControlPlaneProcess, service
from harness.processes import Process, wait_until

CLIENT = """
import sys, grpc
target, count, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with grpc.insecure_channel(target) as channel:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for _ in range(count):
        try:
            _, call = check.with_call(b"", timeout=limit, wait_for_ready=True, metadata=[("end-user", "jason")])
            print("OK", call.peer() if hasattr(call, "peer") else "")
        except grpc.RpcError as error:
            print(error.code().name, error.details())
"""
ROUTE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rpc}
spec:
  hosts: [rpc]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: rpc, subset: none}}]
  - route: [{destination: {host: rpc}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rpc}
spec: {host: rpc, subsets: [{name: none, labels: {version: none}}]}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def endpoints(port: int) -> str:
    return f"""\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: rpc-1, labels: {{kubernetes.io/service-name: rpc}}}}
addressType: IPv4
ports: [{{name: grpc, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"""


@pytest.fixture
def plane() -> Iterator[ControlPlaneProcess]:
    port = free_port()
    echo = [sys.executable, "-m", "nodeagent.cli.main", "echo", "--host", "127.0.0.1", "--grpc", str(port)]
    with Process(echo, listens=accepts) as server, ControlPlaneProcess() as plane:
        server.wait_for_port(port, 20)
        plane.put("mesh.yaml", service("rpc", "10.96.0.1", "grpc", 50051), endpoints(port))
        wait_until(
            lambda: plane.json("/status")["resources"].get("EndpointSlice") == 1, "configuration in force"
        )
        yield plane


def call(
    plane: ControlPlaneProcess, tmp_path: Path, target: str, count: int = 1, limit: float = 20
) -> list[str]:
    """Make calls from a process of its own: the bootstrap is read once per process."""
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(
        json.dumps(
            {
                "xds_servers": [
                    {
                        "server_uri": f"unix:{plane.socket}",
                        "channel_creds": [{"type": "insecure"}],
                        "server_features": ["xds_v3"],
                    }
                ],
                "node": {
                    "id": "sidecar~10.0.0.1~client.default~default.svc.cluster.local",
                    "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default"},
                },
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, target, str(count), str(limit)],
        env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap), "GRPC_VERBOSITY": "ERROR"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("host", ["rpc.default.svc.cluster.local", "rpc", "rpc.default"])
def test_calls_are_routed(plane: ControlPlaneProcess, tmp_path: Path, host: str) -> None:
    answers = call(plane, tmp_path, f"xds:///{host}:50051", 3)
    assert [answer.split()[0] for answer in answers] == ["OK"] * 3


def test_rules_apply(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    """The route by header leads to a subset without endpoints."""
    plane.put("route.yaml", ROUTE)
    wait_until(lambda: plane.json("/status")["resources"].get("VirtualService") == 1, "rule in force")
    (answer,) = call(plane, tmp_path, "xds:///rpc.default.svc.cluster.local:50051", limit=3)
    assert answer.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED")), answer
