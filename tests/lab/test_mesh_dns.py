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

ENTRIES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: partner, namespace: default}}
spec: {{hosts: [partner.example.com], {static}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: wildcard, namespace: default}}
spec: {{hosts: ["*.example.net"], addresses: [240.7.7.7], {static}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: elsewhere, namespace: default}}
spec: {{hosts: [elsewhere.example.org], resolution: DNS, ports: [{{number: 9080, name: http, protocol: HTTP}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: elsewhere, namespace: default}}
spec:
  hosts: [elsewhere.example.org]
  http:
  - headers: {{request: {{set: {{x-routed: "yes"}}}}}}
    route: [{{destination: {{host: elsewhere.example.org}}}}]
"""
STATIC = """resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 9080}}],
  endpoints: [{{address: {endpoint}}}]"""


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
def test_a_service_is_answered_by_the_agent(mesh: Mesh, transport: str) -> None:
    questions = (REVIEWS, "A", REVIEWS, "AAAA")
    answer = dig(mesh, "client", transport, "+noall", "+answer", "+stats", *questions)
    assert ttls(answer) == {AGENT_TTL}
    assert set(re.findall(r"IN\s+A+\s+(\S+)", answer)) == virtual_ips(mesh, "reviews")
    assert answer.count("SERVER: 10.96.0.10#53") == 2, "as if it came from the name server"


def test_pods_outside_the_mesh_ask_for_themselves(mesh: Mesh) -> None:
    assert ttls(dig(mesh, "outsider", "+noall", "+answer", REVIEWS)) == {SERVER_TTL}


def test_what_is_not_of_the_mesh_goes_to_the_name_server(mesh: Mesh) -> None:
    names = (
        "istio_dns_requests_total",
        "nodeagent_engine_dns_answered_total",
        "istio_dns_upstream_requests_total",
    )
    before = [counted(mesh, "node-a", name) for name in names]
    elsewhere = ("+tcp", "nobody.example.com", "+notcp", "nobody.example.com")
    answer = dig(mesh, "client", *elsewhere, "dns-version.cluster.local", "TXT", REVIEWS)
    assert answer.count("NXDOMAIN") == 2
    assert '"1.1.0"' in answer
    after = [counted(mesh, "node-a", name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [4, 1, 3]


def test_the_c_library_finds_services(mesh: Mesh) -> None:
    names = f"reviews reviews.default reviews.default.svc {REVIEWS}"
    loop = f"for name in {names}; do getent ahosts $name || exit; echo end; done"
    *found, _ = mesh.exec("client", "sh", "-c", loop).split("end\n")
    addresses = [{line.split()[0] for line in text.splitlines()} for text in found]
    assert addresses == [virtual_ips(mesh, "reviews")] * 4


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


def test_hosts_of_service_entries_are_found_and_lead_to_their_endpoints(mesh: Mesh) -> None:
    """With the address that they are given, or with their own; also when the resolver appends its domains."""
    plain = next(each for each in mesh.state()["pods"] if each["name"] == "plain")
    endpoint = next(each for each in plain["ips"] if "." in each)
    text = ENTRIES.format(static=STATIC.format(endpoint=endpoint))
    mesh.apply(text)
    try:
        questions = (
            "+short",
            "partner.example.com",
            "a.b.example.net",
            "x.example.net.default.svc.cluster.local",
        )
        found = eventually(lambda: dig(mesh, "client", *questions).split(), lambda found: len(found) == 4)
        assert found[0].startswith("240.240.")
        assert found[1:] == ["240.7.7.7", "x.example.net.", "240.7.7.7"]
        answers = mesh.answering_pods("client", 1, "http://{partner.example.com,a.b.example.net}/x")
        assert answers == {"plain": 2}
        resolved = f"elsewhere.example.org:9080:{endpoint}"
        answer = mesh.ask("client", "--resolve", resolved, "http://elsewhere.example.org:9080/")
        assert answer["pod"] == "plain"
        assert ["x-routed", "yes"] in answer["headers"], "rules hold for hosts of name servers, too"
    finally:
        mesh.delete(text)
