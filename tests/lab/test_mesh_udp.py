"""UDP of pods: services' addresses, and who may send to whom, by the programs in the kernel."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from harness.mesh import Mesh, eventually
from harness.meshes import running_mesh

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.lab.names import LabNames, netns_path

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

ECHO = """
import json, os, socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", int(sys.argv[1])))
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(json.dumps([os.environ["POD_NAME"], peer[0].removeprefix("::ffff:"), data.decode()]).encode(), peer)
"""
LAB = """
identity: {}
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: alice, node: node-a, serviceAccount: alice}
- {name: bob, namespace: shop, node: node-a, serviceAccount: bob}
- {name: near, node: node-a, labels: {app: udp, at: near}, command: [{python}, {script}, "9999"]}
- {name: far, node: node-b, labels: {app: udp, at: far}, command: [{python}, {script}, "9999"]}
- {name: out, node: node-b, mesh: false, command: [{python}, {script}, "9999"]}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: udp}
spec: {selector: {app: udp}, ports: [{name: data, port: 99, targetPort: 9999, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{name: data, port: 99, protocol: UDP}]}
"""


class Pods:
    """Datagrams from pods, sent by this process in their namespaces."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.names = LabNames(mesh.name)
        state = mesh.state()
        self.vip = {
            each["name"]: {6 if ":" in address else 4: address for address in each["virtualIPs"]}
            for each in state["services"]
        }
        self.ip = {
            each["name"]: {6 if ":" in address else 4: address for address in each["ips"]}
            for each in state["pods"]
        }

    def socket(self, pod: str, family: int, namespace: str = "default") -> socket.socket:
        """An unconnected one."""
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        with NetworkNamespace.open(netns_path(self.names.pod_netns(namespace, pod))) as inside:
            made = inside.run(lambda: socket.socket(kind, socket.SOCK_DGRAM))
        made.settimeout(3)
        return made

    def outcome(self, to: tuple[str, int], pod: str = "alice", namespace: str = "default") -> str:
        """Who answers a datagram, or the kind of error."""
        with self.socket(pod, 6 if ":" in to[0] else 4, namespace) as client:
            try:
                client.sendto(b"hello", to)
                answer, peer = client.recvfrom(2048)
            except OSError as error:
                return type(error).__name__
        assert peer[:2] == to, "the answer comes from where it was asked"
        return str(json.loads(answer)[0])

    def counters(self) -> dict[str, int]:
        """Of node-a."""
        return dict(self.mesh.status("node-a")["udp"]["counters"])


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("mesh-udp")
    script = folder / "echo.py"
    script.write_text(ECHO)
    lab = LAB.replace("{python}", "/usr/bin/python3").replace("{script}", str(script))
    with running_mesh("tud", folder, lab, "--capture", "ebpf", "--udp", "on", services=SERVICES) as mesh:
        made = Pods(mesh)
        eventually(lambda: mesh.status("node-a")["udp"]["endpoints"], lambda count: count == 4)
        yield made


@pytest.mark.parametrize("family", [4, 6])
def test_a_services_address_means_its_endpoints_on_all_nodes(pods: Pods, family: int) -> None:
    to = pods.vip["udp"][family], 99
    before = pods.counters()
    seen = Counter(pods.outcome(to) for _ in range(40))
    assert set(seen) == {"near", "far"}
    assert pods.counters()["allowed"] - before["allowed"] >= 40, "and the answers of those on this node"


@pytest.mark.parametrize("family", [4, 6])
def test_a_connected_socket_keeps_its_endpoint_and_names_the_service(pods: Pods, family: int) -> None:
    to = pods.vip["udp"][family], 99
    with pods.socket("alice", family) as client:
        client.connect(to)
        assert client.getpeername()[:2] == to
        seen = set()
        for _ in range(10):
            client.send(b"hello")
            name, peer, _ = json.loads(client.recv(2048))
            seen.add(name)
            assert peer == pods.ip["alice"][family], "the client's address is kept"
    assert len(seen) == 1


def test_a_socket_that_is_not_connected_keeps_its_endpoint(pods: Pods) -> None:
    with pods.socket("alice", 4) as client:
        seen = set()
        for _ in range(10):
            client.sendto(b"hello", (pods.vip["udp"][4], 99))
            seen.add(json.loads(client.recv(2048))[0])
    assert len(seen) == 1


def test_a_v6_socket_may_speak_v4(pods: Pods) -> None:
    with pods.socket("alice", 6) as client:
        to = f"::ffff:{pods.vip['udp'][4]}", 99
        client.sendto(b"hello", to)
        answer, peer = client.recvfrom(2048)
    assert json.loads(answer)[0] in ("near", "far")
    assert peer[:2] == to


def policy(rules: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: udp}}
spec: {{selector: {{matchLabels: {{app: udp}}}}, {rules}}}
"""


ONLY_ALICE = policy("rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/alice]}}]}]")
NOT_BOB = policy(
    "action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['9999']}}]}]"
)
ONLY_NEAR = SERVICES.split("---")[0].replace("{app: udp}", "{app: udp, at: near}")
OTHER_PORT = policy("action: DENY, rules: [{to: [{operation: {ports: ['1234']}}]}]")


@pytest.mark.parametrize("text", [ONLY_ALICE, NOT_BOB])
def test_policies_say_who_may_send(pods: Pods, text: str) -> None:
    """To workloads of either node, by the service's address or their own."""
    targets = [(pods.vip["udp"][4], 99), *((pods.ip[name][6], 9999) for name in ("near", "far"))]
    for to in targets:
        assert pods.outcome(to, "bob", "shop") in ("near", "far")
    before = pods.counters()["denied"]
    pods.mesh.apply(text)
    try:
        for to in targets:
            eventually(
                lambda to=to: pods.outcome(to, "bob", "shop"), lambda found: found == "PermissionError"
            )
            assert pods.outcome(to) in ("near", "far")
        with pods.socket("bob", 4, "shop") as client, pytest.raises(PermissionError):
            client.connect(targets[0])
        assert pods.counters()["denied"] - before >= 4
        pods.mesh.apply(OTHER_PORT)
        for to in targets:
            eventually(lambda to=to: pods.outcome(to, "bob", "shop"), lambda found: found in ("near", "far"))
    finally:
        pods.mesh.delete(OTHER_PORT)


def test_a_connected_socket_ends_when_a_policy_forbids_it(pods: Pods) -> None:
    """And no other one does; what denies is counted by its name."""
    to = pods.ip["far"][4], 9999
    with pods.socket("alice", 4) as alice, pods.socket("bob", 4, "shop") as bob:
        for client in (alice, bob):
            client.connect(to)
            assert answers(client) == "far"
        pods.mesh.apply(NOT_BOB)
        try:
            eventually(lambda: answers(bob), lambda found: found == "EDESTADDRREQ")
            with pytest.raises(PermissionError):
                bob.connect(to)
            assert answers(alice) == "far"
            metrics = pods.mesh.metrics("node-a")
        finally:
            pods.mesh.delete(NOT_BOB)
    assert re.search(
        r'^nodeagent_udp_denied_by_policy_total\{policy="[^"]*default[^"]*udp[^"]*"\} [1-9]', metrics, re.M
    )
    assert re.search(r"^nodeagent_udp_sockets_ended_total [1-9]", metrics, re.M)


def test_a_connected_socket_ends_with_its_endpoint(pods: Pods) -> None:
    """It is given another one when it connects again, as its application is told to by the error."""
    to = pods.vip["udp"][4], 99
    clients = []
    with contextlib.ExitStack() as closing:
        for _ in range(20):
            clients.append(closing.enter_context(pods.socket("alice", 4)))
            clients[-1].connect(to)
        at = {client: answers(client) for client in clients}
        assert set(at.values()) == {"near", "far"}
        pods.mesh.apply(ONLY_NEAR)
        try:
            for client, name in at.items():
                if name == "far":
                    eventually(lambda client=client: answers(client), lambda found: found == "EDESTADDRREQ")
                    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
                    client.connect(to)
                assert answers(client) == "near"
        finally:
            pods.mesh.apply(SERVICES)
    eventually(lambda: pods.mesh.status("node-a")["udp"]["endpoints"], lambda count: count == 4)


def answers(client: socket.socket) -> str:
    """Who answers a connected socket, or the kind of error."""
    try:
        client.send(b"hello")
        return str(json.loads(client.recv(2048))[0])
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def test_strict_lets_those_in_for_whom_their_node_vouches(pods: Pods) -> None:
    text = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}
"""
    pods.mesh.apply(text)
    try:
        eventually(lambda: pods.mesh.status("node-a")["udp"]["receivers"], lambda count: count > 0)
        assert pods.outcome((pods.vip["udp"][4], 99), "bob", "shop") in ("near", "far")
    finally:
        pods.mesh.delete(text)


def test_outsiders_are_let_in_as_policy_says(pods: Pods) -> None:
    """As the node's own programs are."""
    to = pods.ip["near"][4], 9999

    def outcome() -> str:
        with NetworkNamespace.open(netns_path(pods.names.node_netns("node-a"))) as node:
            client = node.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with client:
            client.settimeout(3)
            client.connect(to)
            return answers(client)

    assert outcome() == "near"
    pods.mesh.apply(ONLY_ALICE)
    try:
        eventually(outcome, lambda found: found == "ECONNREFUSED")
        assert pods.counters()["outsider"] > 0
        assert pods.outcome(to) == "near"
    finally:
        pods.mesh.delete(ONLY_ALICE)
    eventually(outcome, lambda found: found == "near")


def test_whom_policy_lets_nobody_in_to_gets_answers(pods: Pods) -> None:
    """And may ask pods outside the mesh, where policy is in force for nobody."""
    nothing = policy("").replace("name: udp", "name: nothing").replace("spec: {", "spec: {} #")
    targets = [(pods.ip[name][family], 9999) for name in ("near", "far", "out") for family in (4, 6)]
    pods.mesh.apply(ONLY_ALICE + "---" + nothing)
    try:
        eventually(lambda: pods.outcome(targets[0], "bob", "shop"), lambda found: found == "PermissionError")
        with pods.socket("bob", 4, "shop") as bob, pytest.raises(PermissionError):
            bob.sendto(b"hello", (pods.ip["alice"][4], 9999))
        assert [pods.outcome(to) for to in targets] == ["near", "near", "far", "far", "out", "out"]
    finally:
        pods.mesh.delete(ONLY_ALICE + "---" + nothing)


def test_who_is_no_workload_may_be_sent_anything(pods: Pods) -> None:
    name = ("10.96.0.10", 53)
    assert pods.outcome(name) in ("TimeoutError", "ConnectionRefusedError")


def test_a_service_without_endpoints_is_the_networks(pods: Pods) -> None:
    assert pods.outcome((pods.vip["nobody"][4], 99)) not in ("near", "far", "PermissionError")


def test_what_was_said_holds_while_the_agent_is_away(pods: Pods) -> None:
    to = pods.vip["udp"][4], 99
    pods.mesh.apply(ONLY_ALICE)
    try:
        eventually(lambda: pods.outcome(to, "bob", "shop"), lambda found: found == "PermissionError")
        pods.mesh.lab("stop", "node-a")
        assert pods.outcome(to, "bob", "shop") == "PermissionError"
        assert pods.outcome(to) in ("near", "far")
        pods.mesh.lab("start", "node-a")
        for _ in range(20):
            assert pods.outcome(to, "bob", "shop") == "PermissionError"
            assert pods.outcome(to) in ("near", "far")
    finally:
        pods.mesh.delete(ONLY_ALICE)
