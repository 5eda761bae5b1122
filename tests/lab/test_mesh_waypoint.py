"""A waypoint in a mesh: what is for its service comes to it through a tunnel, and it learns who asks for what."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.mesh import Mesh, eventually
from harness.meshes import running_mesh
from harness.sniffer import sniffing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

PROXY_PORT = 15088
LAB = """
identity: {{certLifetime: 60}}
nodes: [{{name: node-a}}, {{name: node-b}}]
pods:
- {{name: client, node: node-a, serviceAccount: client, labels: {{app: client}}}}
- name: web
  node: node-a
  serviceAccount: web
  labels: {{app: web}}
  command: [nodeagent, echo, --http, "8080", --tcp, "9000"]
- name: way
  node: node-b
  serviceAccount: way
  labels: {{gateway.networking.k8s.io/gateway-name: way}}
  command: [{python}, {program}, "{port}"]
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {{name: web, labels: {{istio.io/use-waypoint: way}}}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp, port: 9000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: way, labels: {{gateway.istio.io/managed: istio.io-mesh-controller}}}}
spec: {{selector: {{gateway.networking.k8s.io/gateway-name: way}}, ports: [{{name: mesh, port: 15008}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: way
  annotations: {{ambient.istio.io/waypoint-inbound-binding: PROXY/{port}}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
"""
# As little of a waypoint as can be: it reads the PROXY header, says what is in it, and goes on to the service.
PROGRAM = """
import asyncio, ipaddress, struct, sys

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()

async def serve(reader, writer):
    head = await reader.readexactly(16)
    assert head[:13] == b"\\r\\n\\r\\n\\0\\r\\nQUIT\\n\\x21", head
    body = await reader.readexactly(struct.unpack("!H", head[14:])[0])
    size = 4 if head[13] == 0x11 else 16
    target = ipaddress.ip_address(body[size : 2 * size])
    (port,) = struct.unpack("!H", body[2 * size + 2 : 2 * size + 4])
    kind, length = struct.unpack("!BH", body[2 * size + 4 : 2 * size + 7])
    identity = body[2 * size + 7 : 2 * size + 7 + length].decode()
    print(f"{kind:#x} {identity} asks for {target} {port}", flush=True)
    to_reader, to_writer = await asyncio.open_connection(str(target), port)
    await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))
    to_writer.close()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh-waypoint")
    program = folder / "waypoint.py"
    program.write_text(PROGRAM)
    lab = LAB.format(python=sys.executable, program=program, port=PROXY_PORT)
    services = SERVICES.format(port=PROXY_PORT)
    with running_mesh("tw", folder, lab, hbone={"client", "web", "way"}, services=services) as mesh:
        yield mesh


def asked(mesh: Mesh) -> list[str]:
    """What the waypoint has been asked, by whom."""
    log = Path("/run/nodeagent/lab", mesh.name, "logs", "pod.default.way.log").read_text()
    return [line for line in log.splitlines() if "asks for" in line]


def ips(mesh: Mesh, name: str) -> list[str]:
    return next(list(pod["ips"]) for pod in mesh.state()["pods"] if pod["name"] == name)


def test_requests_for_the_service_come_by_way_of_its_waypoint(mesh: Mesh) -> None:
    with sniffing(f"na.{mesh.name}.node-a") as segments:
        answer = mesh.ask("client", "http://web/through-the-waypoint")
    assert answer["pod"] == "web"
    assert answer["remote"]["ip"] in ips(mesh, "way"), "it is the waypoint that comes to the service"
    line = asked(mesh)[-1]
    assert line.startswith("0xd0 spiffe://cluster.local/ns/default/sa/client asks for ")
    assert line.endswith(" 80")
    assert not [each for each in segments if b"through-the-waypoint" in each.data and each.target_port == 80]
    services = {row["name"]: row["waypoint"] for row in mesh.get("services", "node-a")}
    assert services["web"]
    assert not services["way"]
    rows = [row for row in mesh.get("endpoints", "node-a") if row["cluster"].startswith("waypoint|")]
    assert {row["via"] for row in rows} == {f"{ips(mesh, 'way')[0]}:15008"}


def test_other_protocols_do_too(mesh: Mesh) -> None:
    before = len(asked(mesh))
    assert mesh.exec("client", "sh", "-c", "echo hello | nc -N -w 5 web 9000").strip() == "hello"
    (line,) = asked(mesh)[before:]
    assert line.endswith(" 9000")


def test_a_pods_own_address_needs_no_waypoint_of_its_service(mesh: Mesh) -> None:
    before = len(asked(mesh))
    address = ips(mesh, "web")[0]
    assert mesh.ask("client", f"http://{address}:8080/")["pod"] == "web"
    assert len(asked(mesh)) == before


def test_a_service_goes_without_when_it_asks_for_none_any_more(mesh: Mesh) -> None:
    service = SERVICES.format(port=PROXY_PORT).split("---")[0]

    def goes_by_the_waypoint() -> bool:
        before = len(asked(mesh))
        assert mesh.ask("client", "http://web/")["pod"] == "web"
        return len(asked(mesh)) > before

    assert goes_by_the_waypoint()
    mesh.apply(service.replace("use-waypoint: way", "use-waypoint: none"))
    try:
        eventually(goes_by_the_waypoint, lambda by: not by)
    finally:
        mesh.apply(service)
    eventually(goes_by_the_waypoint, lambda by: by)


def test_without_its_waypoint_the_service_is_out_of_reach(mesh: Mesh) -> None:
    """Its policies are the waypoint's to enforce: to go around it would be to go past them."""
    before = len(asked(mesh))
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: way, labels: {%s}}\n"
    mesh.apply(pod % "app: nothing")
    try:
        eventually(
            lambda: mesh.curl("client", "-o", "/dev/null", "-w", "%{http_code}", "http://web/", check=False),
            lambda code: code in ("000", "503"),
        )
    finally:
        mesh.apply(pod % "gateway.networking.k8s.io/gateway-name: way")
    eventually(
        lambda: mesh.curl("client", "-o", "/dev/null", "-w", "%{http_code}", "http://web/", check=False),
        lambda code: code == "200",
    )
    assert len(asked(mesh)) > before
