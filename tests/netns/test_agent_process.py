"""`nodeagent run` as a process, with the real engine and real capture, between a real ADS server and a real
ZDS server."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Network, Process, require, scratch_cgroup
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.cgroups import ScratchCgroup

from nodeagent.lab.zds import Enrolment, ZdsServer
from nodeagent.proto import authorization_pb2
from nodeagent.xds.types import ADDRESS, AUTHORIZATION, CLUSTER, ENDPOINTS, LISTENER, ROUTE, VIRTUAL_HOST

pytestmark = pytest.mark.netns

VIP = "10.96.0.7"
HOST = xds.fqdn("web")
OUTBOUND = f"outbound|8080||{HOST}"
CANARY = f"outbound|8080|canary|{HOST}"
POD = "Kubernetes//Pod/default/client-1"


class AgentNode:
    """A node: its agent, one captured client pod, and two servers outside the mesh."""

    def __init__(
        self,
        network: Network,
        group: ScratchCgroup,
        directory: Path,
        mesh: MeshServer,
        pins: Path | None,
    ) -> None:
        self.mesh = mesh
        self.pins = pins
        self.directory = directory
        self._group = group
        self._network = network
        self.client = network.add("client", default_route=True)
        self.servers = [network.add(name, default_route=True) for name in ("web", "canary")]
        self.zds = ZdsServer(directory / "zds.sock", lambda: None)
        self.agent: Process | None = None

    def serve(self) -> None:
        """Each server answers with its own name."""
        for namespace in self.servers:
            folder = self.directory / namespace.name
            folder.mkdir()
            for name in ("index.html", "other"):
                (folder / name).write_text(namespace.name.rpartition("-")[2])
            server = [sys.executable, "-m", "http.server", "8080", "--bind", "::", "--directory", str(folder)]
            namespace.start(server).wait_for_port(8080)

    def configure(self) -> None:
        put = self.mesh.put
        put(ADDRESS, f"default/{HOST}", xds.service("web", VIP, (8080, "http"), (9000, "tcp")))
        put(ADDRESS, POD, xds.workload("client-1", self.client.v4, services={"client": (8080, 8080)}))
        put(LISTENER, "virtualInbound", xds.inbound_listener({8080: "http"}))
        put(LISTENER, "virtualOutbound", xds.outbound_catch_all())
        put(LISTENER, "0.0.0.0_8080", xds.http_listener(8080))
        put(ROUTE, "8080", xds.route_configuration("8080", on_demand=True))
        self.route(xds.forward(OUTBOUND))
        for name, server in zip((OUTBOUND, CANARY), self.servers, strict=True):
            put(CLUSTER, name, xds.cluster(name))
            put(ENDPOINTS, name, xds.assignment(name, server.v4, port=8080))
        put(CLUSTER, "PassthroughCluster", xds.passthrough())
        tcp = f"outbound|9000||{HOST}"
        put(LISTENER, f"{VIP}_9000", xds.tcp_listener(VIP, 9000, tcp))
        put(CLUSTER, tcp, xds.cluster(tcp))
        put(ENDPOINTS, tcp, xds.assignment(tcp, self.servers[1].v4, port=8080))

    def route(self, *routes: dict[str, Any]) -> None:
        host = xds.virtual_host("web", 8080, routes, [HOST, f"{HOST}:8080", "web", "web:8080", f"{VIP}:8080"])
        for name in (HOST, "web", VIP):
            self.mesh.put(VIRTUAL_HOST, f"8080/{name}", host)

    def start(self) -> Process:
        """Start the agent in its cgroup and in a namespace of the node's."""
        arguments = {
            "node": "node-a",
            "xds": self.mesh.address,
            "zds": str(self.directory / "zds.sock"),
            "admin": str(self.admin),
            "state": str(self.directory / "state"),
            "metrics": "",
            "ready": "",
            "drain": "1",
            "capture": "nft" if self.pins is None else "ebpf",
            "bpf-pins": str(self.pins or self.directory / "none"),
            "access-log": "json",
            "access-log-file": str(self.directory / "access.log"),
        }
        options = [part for key, value in arguments.items() for part in (f"--{key}", value)]
        command = [sys.executable, "-m", "nodeagent.cli.main", "run", *options]
        self.agent = self._network.fabric.start(command, prepare=self._group.join)
        return self.agent

    async def start_and_enrol(self) -> None:
        self.start()
        await eventually(self.is_enrolled, self)

    def is_enrolled(self) -> bool:
        pod = self.zds.enrolment("uid-1")
        return self.zds.connected and pod is not None and pod.enrolled

    @property
    def admin(self) -> Path:
        return self.directory / "admin.sock"

    async def curl(self, *arguments: str) -> str:
        """What curl prints in the client pod; the status is on the last line."""
        command = ["curl", "-s", "-m", "8", "-w", "\n%{http_code}", *arguments]
        done = await asyncio.to_thread(self.client.exec, command)
        return done.stdout.strip()

    async def ask(self, path: str) -> Any:
        """The admin API's answer."""
        command = ["curl", "-s", "-m", "5", "--unix-socket", str(self.admin), f"http://agent{path}"]
        return json.loads((await asyncio.to_thread(self._network.fabric.exec, command)).stdout)

    async def web(self, expected: str, path: str = "/") -> None:
        """Until the service answers as expected."""

        async def look() -> bool:
            return await self.curl(f"http://{VIP}:8080{path}", "-H", "Host: web") == expected

        await eventually(look, self)


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], node: AgentNode, seconds: float = 15
) -> None:
    try:
        async with asyncio.timeout(seconds):
            while True:
                result = condition()
                if result if isinstance(result, bool) else await result:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not in time; the agent says: {node.agent and node.agent.output}") from None


@pytest.fixture
async def node(tmp_path: Path, pins: Path | None) -> AsyncIterator[AgentNode]:
    require("curl", "nsenter")
    async with MeshServer(f"unix:{tmp_path}/ads.sock") as mesh:
        with scratch_cgroup("agent") as group, Network("agent") as network:
            node = AgentNode(network, group, tmp_path, mesh, pins)
            node.serve()
            node.configure()
            node.zds.start()
            node.zds.add(Enrolment("uid-1", "client-1", "default", "default", node.client.path))
            try:
                await node.start_and_enrol()
                yield node
            finally:
                if node.agent is not None:
                    await asyncio.to_thread(node.agent.stop, signal.SIGKILL)
                await node.zds.close()


async def test_the_first_request_waits_for_its_configuration_and_is_routed(node: AgentNode) -> None:
    assert await node.curl(f"http://{VIP}:8080/", "-H", "Host: web") == "web\n200"
    counters = (await node.ask("/status"))["engine"]["counters"]
    assert counters["on_demand_waits_total"] >= 1
    assert "on_demand_timeouts_total" not in counters


async def test_routes_change_under_traffic(node: AgentNode) -> None:
    await node.web("web\n200")
    node.route(xds.forward(CANARY, match={"prefix": "/other"}), xds.forward(OUTBOUND))
    await node.web("canary\n200", "/other")
    await node.web("web\n200")


async def test_a_host_without_virtual_host_passes_through(node: AgentNode) -> None:
    target = f"http://{node.servers[1].v4}:8080/"
    assert await node.curl(target, "-H", "Host: elsewhere.example") == "canary\n200"
    assert await node.curl(target) == "canary\n200"
    tables = [row for row in await node.ask("/routes") if row["virtual_host"] == "allow_any"]
    assert tables


async def test_a_tcp_service_goes_to_its_endpoints(node: AgentNode) -> None:
    assert await node.curl(f"http://{VIP}:9000/") == "canary\n200"


async def test_a_route_to_a_missing_cluster_is_503_and_the_others_work(node: AgentNode) -> None:
    missing = f"outbound|8080|gone|{HOST}"
    node.route(xds.forward(missing, match={"prefix": "/gone"}), xds.forward(OUTBOUND))

    async def is_refused() -> bool:
        answer = await node.curl(f"http://{VIP}:8080/gone", "-H", "Host: web")
        return answer.endswith("503")

    await eventually(is_refused, node)
    await node.web("web\n200")


async def test_what_the_engine_cannot_use_is_nacked_and_the_last_good_one_stays(node: AgentNode) -> None:
    await node.web("web\n200")
    bad = {"match": {"safeRegex": {"regex": "(unclosed"}}, "route": {"cluster": CANARY}, "name": "broken"}
    node.route(bad)
    await eventually(lambda: bool(node.mesh.nacks), node)
    (type_url, message) = node.mesh.nacks[0]
    assert type_url == VIRTUAL_HOST
    assert "broken" in message
    assert "(unclosed" in message
    assert await node.curl(f"http://{VIP}:8080/", "-H", "Host: web") == "web\n200"


async def test_killed_and_started_without_control_plane_it_serves_within_a_second(node: AgentNode) -> None:
    await node.web("web\n200")
    await asyncio.sleep(1.5)  # until the last good configuration is on disk
    await node.mesh.stop()
    assert node.agent is not None
    node.agent.stop(signal.SIGKILL)
    assert await node.curl(f"http://{VIP}:8080/", "-H", "Host: web") == "000"
    loop = asyncio.get_running_loop()
    await node.start_and_enrol()
    ready = loop.time()
    assert await node.curl(f"http://{VIP}:8080/", "-H", "Host: web") == "web\n200"
    assert loop.time() - ready < 1
    status = await node.ask("/status")
    assert status["snapshot"]["from_disk"]
    assert not status["control_plane"]["connected"]
    await node.mesh.start()
    node.route(xds.forward(CANARY))
    await node.web("canary\n200")


async def test_stopping_drains_and_leaves_capture_in_place(node: AgentNode) -> None:
    await node.web("web\n200")
    before = node.client.check(["nft", "list", "tables"])
    assert node.agent is not None
    assert await asyncio.to_thread(node.agent.stop, signal.SIGTERM) == 0
    assert node.client.check(["nft", "list", "tables"]) == before
    assert await node.curl(f"http://{node.servers[0].v4}:8080/") == "000"
    lines = [json.loads(line) for line in (node.directory / "access.log").read_text().splitlines()]
    assert any(line["upstream_cluster"] == OUTBOUND and line["response_code"] == 200 for line in lines)


async def test_a_guard_that_cannot_be_put_in_force_closes_its_port_only(node: AgentNode) -> None:
    folder = node.directory / "pod"
    folder.mkdir()
    (folder / "index.html").write_text("pod")
    for port in ("8080", "8081"):
        server = [sys.executable, "-m", "http.server", port, "--directory", str(folder)]
        node.client.start(server).wait_for_port(int(port))

    async def knock(port: int) -> str:
        url = f"http://{node.client.v4}:{port}/"
        return (await asyncio.to_thread(node.servers[0].exec, ["curl", "-s", "-m", "5", url])).stdout

    assert [await knock(8080), await knock(8081)] == ["pod", "pod"]
    guard = {
        "name": "envoy.filters.network.rbac",
        "typedConfig": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}},
    }
    chain = {
        "name": "0.0.0.0_8081",
        "filterChainMatch": {"destinationPort": 8081},
        "filters": [guard, xds.tcp_filter("inbound|8081||")],
    }
    node.mesh.put(LISTENER, "virtualInbound", xds.inbound_listener({8080: "http"}, [chain]))

    async def is_closed() -> bool:
        return await knock(8081) == "inbound configuration not in force"

    await eventually(is_closed, node)
    assert await knock(8080) == "pod"
    assert any("rbac" in warning for warning in (await node.ask("/status"))["warnings"])


async def test_a_control_plane_without_listeners_guards_by_its_l4_policies(node: AgentNode) -> None:
    node.client.start([sys.executable, "-m", "http.server", "8080"]).wait_for_port(8080)
    node.client.start([sys.executable, "-m", "http.server", "8081"]).wait_for_port(8081)
    assert node.agent is not None
    await asyncio.to_thread(node.agent.stop, signal.SIGKILL)
    shutil.rmtree(node.directory / "state", ignore_errors=True)
    node.mesh.drop(LISTENER, "virtualInbound")
    await node.start_and_enrol()

    async def knock(port: int) -> bool:
        """Whether a connection gets through."""
        url = f"http://{node.client.v4}:{port}/"
        asked = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url]
        return (await asyncio.to_thread(node.servers[0].exec, asked)).stdout == "200"

    async def is_open() -> bool:
        return await knock(8080) and await knock(8081)

    async def is_half_open() -> bool:
        return not await knock(8080) and await knock(8081)

    await eventually(is_open, node)
    denial = authorization_pb2.Authorization(
        name="no-8080", namespace="default", scope=authorization_pb2.NAMESPACE, action=authorization_pb2.DENY
    )
    denial.rules.add().clauses.add().matches.add().destination_ports.append(8080)
    node.mesh.put(AUTHORIZATION, "default/no-8080", denial)
    await eventually(is_half_open, node)
    (row,) = await node.ask("/policies")
    assert (row["name"], row["state"], row["workloads"]) == ("no-8080", "in force", ["default/client-1"])
    node.mesh.drop(AUTHORIZATION, "default/no-8080")
    await eventually(is_open, node)


async def test_letting_go_restores_plain_networking(node: AgentNode) -> None:
    await node.web("web\n200")
    node.zds.remove("uid-1")

    async def is_plain() -> bool:
        direct = await node.curl(f"http://{node.servers[0].v4}:8080/")
        return direct == "web\n200" and not node.client.check(["nft", "list", "tables"])

    async def is_forgotten() -> bool:
        return (await node.ask("/status"))["enrolment"]["workloads"] == []

    await eventually(is_plain, node)
    await eventually(is_forgotten, node)
    await eventually(lambda: len(node.mesh.clients) == 1, node)


async def test_status_tells_how_it_captures(node: AgentNode) -> None:
    await node.web("web\n200")
    capture = (await node.ask("/status"))["capture"]
    assert capture["mode"] == ("nft" if node.pins is None else "ebpf")
    assert "asked for" in capture["reason"]
    if node.pins is not None:
        assert capture["counters"]["captured"] >= 1
        assert capture["counters"]["no_listener"] == 0
    maps = {each["name"]: each for each in capture["maps"]}
    if node.pins is None:
        assert maps == {}
    else:
        assert (maps["workloads"]["entries"], maps["workloads"]["limit"]) == (1, 4096)
        assert maps["listeners"]["memory"] > 0
        assert not any(each["full"] for each in maps.values())


@pytest.mark.parametrize("pins", ["ebpf"], indirect=True)
async def test_workloads_that_went_meanwhile_are_forgotten(node: AgentNode) -> None:
    """Also the pins and programs of theirs: after a restart nothing is stale."""
    pins = node.pins
    assert pins is not None
    assert list(pins.glob("v*/netns/*"))
    assert node.agent is not None
    await asyncio.to_thread(node.agent.stop, signal.SIGKILL)
    node.zds.remove("uid-1")
    node.start()

    async def is_forgotten() -> bool:
        return not list(pins.glob("v*/netns/*"))

    await eventually(lambda: node.zds.connected, node)
    await eventually(is_forgotten, node)
