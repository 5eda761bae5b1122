"""DNS in pods of a mesh, asked by dig and by the C library: answered by the node's agent, or by the lab's name server
through it."""

from __future__ import annotations

import re

import pytest
from harness import require
from harness.mesh import Mesh, counted, eventually

REVIEWS = "reviews.default.svc.cluster.local"
AGENT_TTL, SERVER_TTL = 30, 5
HEADLESS = """
apiVersion: v1
kind: Service
metadata: {name: banner-pods, namespace: default}
spec:
  clusterIP: None
  selector: {app: banner}
  ports: [{name: smtp-like, port: 9001}]
"""


@pytest.fixture(autouse=True)
def _dig() -> None:
    require("dig")


def dig(mesh: Mesh, pod: str, *arguments: str) -> str:
    return mesh.exec(pod, "dig", "+tries=1", "+time=3", *arguments)


def ttls(answer: str) -> set[int]:
    """Times to live of the records in dig's answer section."""
    return {int(found) for found in re.findall(r"^\S+\s+(\d+)\s+IN", answer, re.MULTILINE)}


def virtual_ips(mesh: Mesh, name: str) -> set[str]:
    services = mesh.state()["services"]
    return set(next(each["virtualIPs"] for each in services if each["name"] == name))


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("type_", ["A", "AAAA"])
def test_a_service_is_answered_by_the_agent(mesh: Mesh, transport: str, type_: str) -> None:
    answer = dig(mesh, "client", transport, "+noall", "+answer", "+stats", REVIEWS, type_)
    assert ttls(answer) == {AGENT_TTL}
    assert set(re.findall(rf"IN\s+{type_}\s+(\S+)", answer)) <= virtual_ips(mesh, "reviews")
    assert "SERVER: 10.96.0.10#53" in answer, "as if it came from the name server"


def test_pods_outside_the_mesh_ask_for_themselves(mesh: Mesh) -> None:
    assert ttls(dig(mesh, "outsider", "+noall", "+answer", REVIEWS)) == {SERVER_TTL}


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_what_is_not_of_the_mesh_goes_to_the_name_server(mesh: Mesh, transport: str) -> None:
    before = counted(mesh, "node-a", "istio_dns_upstream_requests_total")
    assert "NXDOMAIN" in dig(mesh, "client", transport, "nobody.example.com")
    assert dig(mesh, "client", transport, "+short", "dns-version.cluster.local", "TXT") == '"1.1.0"\n'
    assert counted(mesh, "node-a", "istio_dns_upstream_requests_total") == before + 2


@pytest.mark.parametrize("name", ["reviews", "reviews.default", "reviews.default.svc", REVIEWS])
def test_the_c_library_finds_services(mesh: Mesh, name: str) -> None:
    found = {line.split()[0] for line in mesh.exec("client", "getent", "ahosts", name).splitlines()}
    assert found == virtual_ips(mesh, "reviews")


def test_a_headless_service_is_its_pods_from_when_it_comes_until_it_goes(mesh: Mesh) -> None:
    name = "banner-pods.default.svc.cluster.local"
    pod = next(each for each in mesh.state()["pods"] if each["name"] == "banner")
    mesh.apply(HEADLESS)
    try:
        answer = eventually(
            lambda: dig(mesh, "client", "+noall", "+answer", name), lambda text: ttls(text) == {AGENT_TTL}
        )
        assert re.findall(r"IN\s+A\s+(\S+)", answer) == [each for each in pod["ips"] if "." in each]
    finally:
        mesh.delete(HEADLESS)
    eventually(lambda: dig(mesh, "client", name), lambda text: "NXDOMAIN" in text)


def test_metrics_count_questions(mesh: Mesh) -> None:
    names = (
        "istio_dns_requests_total",
        "nodeagent_engine_dns_answered_total",
        "istio_dns_upstream_requests_total",
    )
    before = [counted(mesh, "node-a", name) for name in names]
    dig(mesh, "client", REVIEWS)
    dig(mesh, "client", "nobody.example.com")
    after = [counted(mesh, "node-a", name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1]
