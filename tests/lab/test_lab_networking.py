"""A plain lab's networking, for real: addresses, services and names, from pods and from nodes."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest
from harness import require
from harness.labs import NODEAGENT, LabUnderTest

pytestmark = pytest.mark.lab

LAB = """
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: web-1, node: node-a, labels: {app: web}, command: [nodeagent, echo, --http, "8080"]}
- {name: web-2, node: node-b, labels: {app: web}, command: [nodeagent, echo, --http, "8080"]}
- name: named
  namespace: other
  node: node-b
  labels: {app: named}
  command: [nodeagent, echo, --http, "8088"]
  ports: [{name: web, containerPort: 8088}]
- name: udp
  node: node-b
  labels: {app: udp}
  command: &server
  - python3
  - -c
  - |
    import os, socket
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", 7000))
    while True:
        data, client = server.recvfrom(999)
        server.sendto(os.environ["POD_NAME"].encode() + b":" + data, client)
- {name: udp-2, node: node-a, labels: {app: udp-2}, command: *server}
- {name: sleep, node: node-a}
- {name: sleep, namespace: other, node: node-b}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: named, namespace: other}
spec: {clusterIP: 10.96.200.1, selector: {app: named}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: udp}
spec: {selector: {app: udp}, ports: [{name: u, port: 53, targetPort: 7000, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    require("root", "nft", "ip", "curl")
    lab = LabUnderTest(tmp_path_factory.mktemp("plain"))
    lab.write("services.yaml", SERVICES)
    lab.must("up", lab.write("lab.yaml", LAB), "--plain")
    yield lab
    lab.must("down")
    assert lab.footprint() == []


def answering(lab: LabUnderTest, pod: str, url: str, *arguments: str) -> str:
    done = lab.inside(pod, "curl", "-sS", "--max-time", "5", *arguments, url)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["pod"])


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    ("pod", "host"),
    [
        ("sleep", "web"),
        ("sleep", "web.default"),
        ("sleep", "web.default.svc"),
        ("sleep", "web.default.svc.cluster.local"),
        ("sleep", "web.default.svc.cluster.local."),
        ("other/sleep", "web.default"),
        ("web-1", "web"),
        ("sleep", "web-headless:8080"),
    ],
)
def test_services_answer_by_every_name(lab: LabUnderTest, pod: str, host: str, family: str) -> None:
    assert answering(lab, pod, f"http://{host}/", family) in ("web-1", "web-2")


def test_a_short_name_is_of_ones_own_namespace(lab: LabUnderTest) -> None:
    assert answering(lab, "other/sleep", "http://named/") == "named"
    assert answering(lab, "sleep", "http://named.other/") == "named"
    assert lab.inside("sleep", "curl", "-s", "--max-time", "5", "http://named/").returncode == 6, (
        "cannot resolve"
    )


@pytest.mark.parametrize("family", [4, 6])
def test_connections_spread_over_the_endpoints(lab: LabUnderTest, family: int) -> None:
    address = lab.virtual_ip("default/web", family)
    host = f"[{address}]" if family == 6 else address
    script = f"for n in $(seq 60); do curl -gsS 'http://{host}/'; done"
    done = lab.inside("sleep", "sh", "-c", script)
    pods = Counter(json.loads(line)["pod"] for line in done.stdout.splitlines() if line.startswith("{"))
    assert pods.total() == 60
    assert min(pods["web-1"], pods["web-2"]) >= 10, "six standard deviations would be 7"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_virtual_addresses_work_from_nodes(lab: LabUnderTest, node: str, family: int) -> None:
    address = lab.virtual_ip("default/web", family)
    host = f"[{address}]" if family == 6 else address
    done = in_netns(f"na.{lab.name}.{node}", "curl", "-gsS", "--max-time", "5", f"http://{host}/")
    assert json.loads(done.stdout)["pod"] in ("web-1", "web-2")


def test_a_fixed_address_is_kept(lab: LabUnderTest) -> None:
    assert lab.virtual_ip("other/named") == "10.96.200.1"
    assert answering(lab, "sleep", "http://10.96.200.1/") == "named"


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_pod_reaches_itself_by_its_service(lab: LabUnderTest, family: str) -> None:
    script = f"for n in $(seq 12); do curl -sS {family} --max-time 3 http://web/ || exit 1; done"
    done = lab.inside("web-1", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "web-1" in {json.loads(line)["pod"] for line in done.stdout.splitlines()}, "2 ** -12 to be unlucky"


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    ("url", "why"), [("http://nobody/", "no endpoint"), ("http://web:81/", "no such port")]
)
def test_what_nobody_serves_is_refused_at_once(lab: LabUnderTest, url: str, why: str, family: str) -> None:
    done = lab.inside("sleep", "curl", "-sS", family, "--max-time", "5", "-w", "%{time_total}", url)
    assert done.returncode == 7, f"{why}: {done.stderr}"
    assert float(done.stdout) < 0.9, "before the second SYN"


def test_pods_see_each_others_true_addresses(lab: LabUnderTest) -> None:
    addresses = {name: lab.pod(f"default/{name}")["ips"] for name in ("sleep", "web-2")}
    for index in (0, 1):
        target = addresses["web-2"][index]
        url = f"http://[{target}]:8080/" if ":" in target else f"http://{target}:8080/"
        done = lab.inside("sleep", "curl", "-gsS", "--max-time", "5", url)
        assert json.loads(done.stdout)["remote"]["ip"] == addresses["sleep"][index]


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_udp_services(lab: LabUnderTest, family: str) -> None:
    program = (
        "import socket; f = socket." + family + "; s = socket.socket(f, socket.SOCK_DGRAM); s.settimeout(3);"
        "s.connect(socket.getaddrinfo('udp', 53, f, socket.SOCK_DGRAM)[0][4]);"
        "s.send(b'hi'); print(s.recv(99))"
    )
    done = lab.inside("sleep", "python3", "-c", program)
    assert done.stdout.strip() == "b'udp:hi'", done.stderr


def test_names_of_the_lab_by_the_machines_own_resolver(lab: LabUnderTest) -> None:
    found = {line.split()[0] for line in lab.inside("sleep", "getent", "ahosts", "web").stdout.splitlines()}
    assert found == {lab.virtual_ip("default/web", 4), lab.virtual_ip("default/web", 6)}
    headless = {
        line.split()[0]
        for line in lab.inside("sleep", "getent", "ahosts", "web-headless").stdout.splitlines()
    }
    assert headless == {a for name in ("web-1", "web-2") for a in lab.pod(f"default/{name}")["ips"]}
    back = lab.inside("sleep", "getent", "hosts", lab.virtual_ip("default/web"))
    assert back.stdout.split()[1] == "web.default.svc.cluster.local"
    assert lab.inside("sleep", "getent", "hosts", "web-2.web-headless").returncode == 0
    assert lab.inside("sleep", "getent", "hosts", "example.com").returncode == 2


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("server", ["10.96.0.10", "fd00:10:96::a"])
def test_dns_by_udp_and_tcp(lab: LabUnderTest, server: str, tcp: bool) -> None:
    program = (
        "import dnslib; q = dnslib.DNSRecord.question('_http._tcp.web.default.svc.cluster.local', 'SRV');"
        f"r = dnslib.DNSRecord.parse(q.send('{server}', 53, tcp={tcp}, timeout=3, ipv6={':' in server}));"
        "print(r.short())"
    )
    done = lab.inside("sleep", "python3", "-c", program)
    assert done.stdout.strip() == "0 100 80 web.default.svc.cluster.local.", done.stderr


def test_many_clients_at_once(lab: LabUnderTest) -> None:
    request = "curl -sS -o /dev/null -w '%{http_code}\\n' --max-time 5 http://web/"
    script = f"for n in $(seq 40); do {request} & done; wait"
    done = lab.inside("sleep", "sh", "-c", script)
    assert Counter(done.stdout.split()) == {"200": 40}, done.stderr


def in_netns(netns: str, *command: str) -> subprocess.CompletedProcess[str]:
    command = ("ip", "netns", "exec", netns, *command)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_udp_flows_leave_an_endpoint_that_is_gone(lab: LabUnderTest, family: str) -> None:
    """One client socket all along: its flow is translated anew when the pod behind the service changes."""
    program = (
        "import socket, sys; f = socket."
        + family
        + "; s = socket.socket(f, socket.SOCK_DGRAM); s.settimeout(0.3)\n"
        "s.connect(socket.getaddrinfo('udp', 53, f, socket.SOCK_DGRAM)[0][4])\n"
        "for line in sys.stdin:\n"
        "  try: s.send(b'hi'); print(s.recv(99).decode(), flush=True)\n"
        "  except OSError as error: print(type(error).__name__, flush=True)\n"
    )
    command = [*NODEAGENT, "lab", "exec", "--name", lab.name, "sleep", "--", "python3", "-c", program]
    file = lab.write(
        "relabel.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: udp, labels: {app: none}}\n"
    )
    other = "apiVersion: v1\nkind: Pod\nmetadata: {name: udp-2, labels: {app: udp}}\n"
    other_file = lab.write("other.yaml", other)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None

        def ask() -> str:
            client.stdin.write("\n")  # type: ignore[union-attr]
            client.stdin.flush()  # type: ignore[union-attr]
            return client.stdout.readline().strip()  # type: ignore[union-attr]

        try:
            assert ask() == "udp:hi"
            lab.must("apply", file)
            assert ask() != "udp:hi", "nobody serves now"
            lab.must("apply", other_file)
            assert ask() == "udp-2:hi"
        finally:
            lab.must("delete", file, other_file)
            client.stdin.close()
