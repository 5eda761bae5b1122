"""A client pod in a network namespace of its own, whose traffic a mesh proxy captures: nodeagent, or Envoy as a
sidecar. Beside it in the same namespace are the back ends, so that all stays on one loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent.bench import mesh_source as mesh
from nodeagent.bench.peers.envoy import lean, start_envoy
from nodeagent.bench.peers.subject import NODEAGENT
from nodeagent.bench.services import HTTP
from nodeagent.bench.stage import Process, Stage, program
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError, NodeagentError
from nodeagent.lab import adminclient, netns
from nodeagent.lab.names import netns_path
from nodeagent.proto import zds_pb2

_ACK_SECONDS: Final = 30.0
_PACKET: Final = 1024
_LOOK_SECONDS: Final = 0.01
_CAPTURE: Final = """\
table inet bench {
  chain output {
    type nat hook output priority -100
    ip daddr 10.96.0.0/12 meta l4proto tcp redirect to :15001
  }
}
"""


@dataclass(frozen=True, slots=True)
class ClientPod:
    """The namespace of the client."""

    namespace: str

    @property
    def path(self) -> Path:
        """Path of the namespace."""
        return netns_path(self.namespace)

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection from inside the pod."""
        return netns.run_in(self.namespace, lambda: socket.create_connection((address, port), timeout=5))


@contextmanager
def client_pod(stage: Stage) -> Iterator[ClientPod]:
    """Make the pod with its addresses and the back ends, for the time of the block."""
    with stage.namespace_for("pod") as name:
        pod = ClientPod(name)
        # A way out that packets take towards services, and where they are captured; none ever gets to its end.
        commands = ["link add eth0 up type veth peer name out0", "link set out0 up", "link set lo up"]
        commands += [f"addr add {mesh.CLIENT_ADDRESS}/8 dev eth0"]
        commands += [f"addr add {address}/32 dev lo" for address in mesh.USED_ADDRESSES]
        batch = stage.folder / "addresses.ip"
        batch.write_text("\n".join(commands) + "\n")
        stage.run_now(["ip", "-batch", str(batch)], pod.path)
        argv = [program("backend"), "--http", str(HTTP.backend_port)]
        with stage.spawn("backend", argv, stage.cores.load, namespace=pod.path) as backend:
            backend.wait_until_listening([HTTP.backend_port])
            yield pod


class MeshServer:
    """The control plane with a generated mesh, in a process of its own."""

    def __init__(self, process: Process, folder: Path) -> None:
        self._process = process
        self.socket = folder / "xds.sock"
        self.load_seconds = float(self._event("ready")["seconds"])

    def move_endpoint(self) -> tuple[int, str]:
        """Change one endpoint of service 0; (when the control plane was told, in ns; where it is now)."""
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        event = self._event("changed")
        return event["at"], event["address"]

    def _event(self, name: str) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(_ACK_SECONDS)
            self._process.check()
        event: dict[str, Any] = json.loads(line)
        if event["event"] != name:
            raise BenchError(f"the control plane says {event['event']!r}, not {name!r}")
        return event


@contextmanager
def mesh_server(stage: Stage, services: int) -> Iterator[MeshServer]:
    """Run a control plane for a mesh of that size."""
    folder = stage.folder / f"mesh-{services}"
    folder.mkdir()
    argv = [NODEAGENT[0], "-m", "nodeagent.bench.mesh_server", "--services", str(services)]
    argv += ["--target-port", str(HTTP.backend_port), "--folder", str(folder)]
    with stage.spawn("controlplane", argv, stage.cores.load, talk=True) as process:
        yield MeshServer(process, folder)


@contextmanager
def meshed_agent(stage: Stage, pod: ClientPod, server: MeshServer, config: BenchConfig) -> Iterator[Process]:
    """Run nodeagent as the node's agent and have it take on the pod."""
    folder = stage.folder / "agent"
    folder.mkdir(exist_ok=True)
    zds = folder / "zds.sock"
    argv = [*NODEAGENT, "run", "--node", "node", "--xds", f"unix:{server.socket}", "--zds", str(zds)]
    argv += ["--admin", str(agent_admin(stage)), "--state", str(folder / f"state.{time.monotonic_ns()}")]
    argv += ["--metrics", "", "--ready", "", "--drain", "0", "--workers", str(config.workers)]
    argv += ["--log-level", "warning", "--capture", config.capture_mode]
    zds.unlink(missing_ok=True)
    with (
        stage.bpf_pins() as pins,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        stage.spawn("agent", [*argv, "--bpf-pins", str(pins)], stage.cores.proxy) as process,
    ):
        listener.bind(str(zds))
        listener.listen(4)
        listener.settimeout(_ACK_SECONDS)
        with _enrolled(listener, pod):
            yield process


def agent_admin(stage: Stage) -> Path:
    """Admin socket of meshed_agent()."""
    return stage.folder / "agent" / "admin.sock"


def agent_ready(stage: Stage) -> bool:
    """Whether the agent has everything it was to get."""
    try:
        return asyncio.run(adminclient.get(agent_admin(stage), "/healthz/ready"))[0] == 200
    except NodeagentError:
        return False


def agent_clusters(stage: Stage) -> int:
    """How many clusters the agent's engine holds."""
    return len(asyncio.run(adminclient.get_json(agent_admin(stage), "/clusters")))


@contextmanager
def _enrolled(listener: socket.socket, pod: ClientPod) -> Iterator[None]:
    """Be the CNI side: tell the agent of the pod, and stay connected (ZDS)."""
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        raise BenchError("the agent does not connect to its ZDS socket") from None
    with connection:
        connection.settimeout(_ACK_SECONDS)
        connection.recv(_PACKET)  # hello
        info = zds_pb2.WorkloadInfo(name="client", namespace="default", service_account="client")
        add = zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid="client", workload_info=info))
        descriptor = os.open(pod.path, os.O_RDONLY)
        try:
            _exchange(connection, add, [descriptor])
        finally:
            os.close(descriptor)
        _exchange(connection, zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()), [])
        yield


def _exchange(connection: socket.socket, request: Any, descriptors: list[int]) -> None:
    socket.send_fds(connection, [request.SerializeToString()], descriptors)
    answer = zds_pb2.WorkloadResponse.FromString(connection.recv(_PACKET))
    if answer.ack.error:
        raise BenchError(f"the agent does not take the pod on: {answer.ack.error}")


@contextmanager
def meshed_envoy(stage: Stage, pod: ClientPod, server: MeshServer, config: BenchConfig) -> Iterator[Process]:
    """Run Envoy as the pod's sidecar, with the same control plane, and redirect to it."""
    rules = stage.folder / "capture.nft"
    rules.write_text(_CAPTURE)
    stage.run_now(["nft", "-f", str(rules)], pod.path)
    try:
        process = start_envoy(
            stage, "envoy-sidecar", lean(_bootstrap(server.socket)), config.workers, namespace=pod.path
        )
        with process:
            yield process
    finally:
        stage.run_now(["nft", "delete", "table", "inet", "bench"], pod.path)


def _bootstrap(xds: Path) -> dict[str, Any]:
    ads = {"ads": {}, "resource_api_version": "V3"}
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "node": {
            "id": f"sidecar~{mesh.CLIENT_ADDRESS}~client.default~default.svc.cluster.local",
            "cluster": "client.default",
            "metadata": {"NAME": "client", "NAMESPACE": "default", "INSTANCE_IPS": mesh.CLIENT_ADDRESS},
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "connect_timeout": "5s",
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(xds)}}}}]}
                        ],
                    },
                    "typed_extension_protocol_options": {
                        options: {
                            "@type": f"type.googleapis.com/{options}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                }
            ]
        },
    }


class Probe:
    """A client in the pod: asks service 0 where its requests arrive. One connection, kept as long as it
    lasts."""

    def __init__(self, pod: ClientPod) -> None:
        self._pod = pod
        self._connection: socket.socket | None = None

    def ask(self) -> str:
        """Address of the endpoint that answers; empty if nothing useful comes back."""
        try:
            if self._connection is None:
                self._connection = self._pod.connect(mesh.service_address(0), mesh.PORT)
            self._connection.sendall(f"GET /whoami HTTP/1.1\r\nHost: {mesh.USED_SERVICE}\r\n\r\n".encode())
            answer = self._connection.recv(65_536)
        except OSError:
            self.close()
            return ""
        if not answer.startswith(b"HTTP/1.1 200 "):
            self.close()
            return ""
        return answer.rpartition(b"\r\n")[2].decode().partition(":")[0]

    def wait_for(self, address: str, seconds: float) -> int:
        """Ask until that address answers; when that was (CLOCK_MONOTONIC, ns)."""
        deadline = time.monotonic() + seconds
        while self.ask() != address:
            if time.monotonic() > deadline:
                raise BenchError(f"{address} does not answer within {seconds:g} s")
            if self._connection is None:
                time.sleep(_LOOK_SECONDS)
        return time.monotonic_ns()

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None
