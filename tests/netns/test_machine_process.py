"""Services of two machines in a mesh, as real processes: agents that know them from files, and a control plane with a
CA that knows them by WorkloadEntries."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Network, Process, require, scratch_cgroup
from harness.cgroups import ScratchCgroup
from harness.machine import GroupProcess
from harness.netns import Namespace
from harness.peer import dial, peer_server, read_line
from harness.processes import wait_until

from nodeagent.dataplane.ebpf_node import unload

pytestmark = pytest.mark.netns

FABRIC = "10.99.0.254"
VIP = "10.96.0.1"
PORT, PLAIN = 8080, 2222
STARTED = 60  # seconds, on a machine that has much to do
NODEAGENT = (sys.executable, "-m", "nodeagent.cli.main")
ENTRY = """\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, labels: {{networking.istio.io/tunnel: http}}, annotations: {{nodeagent.io/node: {node}}}}}
spec: {{address: {address}, serviceAccount: {name}, labels: {{app: {name}}}}}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: {vip}, selector: {{app: {name}}}, ports: [{{name: tcp, port: 80, targetPort: {port}}}]}}
"""
STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
"""
ONLY_NOBODY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: nobody}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/default/sa/nobody]}}}}]}}]
"""
HOSTED = """\
apiVersion: v1
kind: Pod
metadata: {{name: hosted, labels: {{app: hosted}}}}
spec: {{nodeName: web, serviceAccountName: hosted, hostNetwork: true}}
status: {{podIP: {address}, conditions: [{{type: Ready, status: "True"}}]}}
"""


class Machine:
    """A namespace with an agent and one service, by its cgroup."""

    def __init__(self, name: str, namespace: Namespace, root: Path, stack: ExitStack) -> None:
        self.name = name
        self.namespace = namespace
        self.folder = root / name
        self.folder.mkdir()
        self.token = root / "tokens" / name
        self.token.write_text(secrets.token_urlsafe(32))
        self.token.chmod(0o600)
        self.root = root
        self.pins = Path(f"/sys/fs/bpf/nodeagent-test-{name}-{root.name}")
        stack.callback(unload, self.pins)
        self.agent_group: ScratchCgroup = stack.enter_context(scratch_cgroup("agent"))
        self.slice: ScratchCgroup = stack.enter_context(scratch_cgroup(f"{name}.slice"))
        self.agent: Process | None = None
        stack.callback(self.stop)  # before its group is to go
        self.workloads = self.folder / "workloads.yaml"

    def say(self, *extra: str, ports: str = "[]", fail_mode: str = "closed") -> None:
        """Write the file of workloads, as an editor does."""
        scratch = self.folder / "new"
        scratch.write_text(
            f"workloads:\n- {{name: {self.name}, namespace: default, serviceAccount: {self.name}, "
            f"cgroup: {self.slice.path}/service, ports: {ports}, failMode: {fail_mode}}}\n" + "".join(extra)
        )
        scratch.rename(self.workloads)

    def start(self) -> None:
        options = {
            "node": self.name,
            "zds": "none",
            "workloads": str(self.workloads),
            "xds": f"https://{FABRIC}:15012",
            "ca": f"{FABRIC}:15012",
            "ca-root": str(self.root / "root-cert.pem"),
            "token": str(self.token),
            "admin": str(self.folder / "admin.sock"),
            "state": str(self.folder / "state"),
            "metrics": "127.0.0.1:15020",
            "ready": "",
            "drain": "0.2",
            "bpf-pins": str(self.pins),
        }
        argv = [*NODEAGENT, "run", *(part for key, value in options.items() for part in (f"--{key}", value))]
        self.agent = self.namespace.start(argv, prepare=self.agent_group.join)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.agent is not None:
            self.agent.stop(how)

    def status(self) -> dict[str, Any]:
        command = [
            "curl",
            "-sf",
            "-m",
            "5",
            "--unix-socket",
            str(self.folder / "admin.sock"),
            "http://agent/status",
        ]
        done = self.namespace.exec(command)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.status().get("enrolment", {}).get("workloads", ())}

    def is_served(self) -> bool:
        """Whether the service is enrolled, with a certificate."""
        answer = self.status()
        states = [row["state"] for row in answer.get("enrolment", {}).get("workloads", ())]
        certificates = [row["state"] for row in answer.get("certificates", ())]
        return states == ["enrolled"] and certificates == ["Available"]

    def output(self) -> str:
        return self.agent.output if self.agent is not None else ""


class Mesh:
    """Machine `api` calls machine `web`, which serves PORT and, unknown to the mesh, PLAIN."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root = root
        self.config = root / "config"
        for folder in (self.config, root / "tokens"):
            folder.mkdir()
        network = stack.enter_context(Network("machines"))
        self.outside = network.add("out", default_route=True)
        self.fabric = network.fabric
        self.api, self.web = (
            Machine(name, network.add(name, default_route=True), root, stack) for name in ("api", "web")
        )
        web = SERVICE.format(name="web", vip=VIP, port=PORT)
        self.put("mesh", web, *(self.entry(each.name, each) for each in (self.api, self.web)))
        options = (
            "--config", str(self.config), "--listen", "127.0.0.1:15010", "--admin", str(root / "cp.sock"),
            "--listen-tls", f"{FABRIC}:15012", "--tls-name", FABRIC, "--ca-dir", str(root / "ca"),
            "--root-cert-out", str(root / "root-cert.pem"), "--node-tokens", str(root / "tokens"),
        )  # fmt: skip
        self.plane = self.fabric.start([*NODEAGENT, "controlplane", *options])
        self.plane.wait_for_port(15012)
        stack.enter_context(peer_server(self.web.namespace, PORT))
        stack.enter_context(peer_server(self.web.namespace, PLAIN))
        self.api.say()
        self.web.say(ports=f"[{PORT}]")
        for each in (self.api, self.web):
            each.start()
        for each in (self.api, self.web):
            wait_until(each.is_served, f"{each.name} is served: {each.output()}", STARTED)

    def entry(self, name: str, machine: Machine) -> str:
        return ENTRY.format(name=name, node=machine.name, address=machine.namespace.v4)

    def put(self, name: str, *documents: str) -> None:
        scratch = self.root / "scratch"
        scratch.write_text("---\n".join(documents))
        scratch.rename(self.config / f"{name}.yaml")

    def drop(self, name: str) -> None:
        (self.config / f"{name}.yaml").unlink(missing_ok=True)

    def plaintext(self, port: int = PORT) -> str:
        """What somebody outside the mesh is answered by web's port; "" if the connection is refused or reset."""
        try:
            with dial(self.outside, self.web.namespace.v4, port) as client:
                return read_line(client)
        except (OSError, AssertionError):
            return ""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    require("root", "nft", "engine", "curl", "nsenter")
    with ExitStack() as stack:
        yield Mesh(tmp_path_factory.mktemp("machines"), stack)


@pytest.fixture
def service(mesh: Mesh) -> Iterator[GroupProcess]:
    """A process of api's service, which systemd would have started: its cgroup is new."""
    with scratch_cgroup("service", mesh.api.slice, exact=True) as group:
        process = GroupProcess(mesh.api.namespace, group)
        try:
            yield process
        finally:
            process.close()


def _reaches(process: GroupProcess, address: str, port: int) -> str:
    try:
        with process.dial(address, port) as client:
            return read_line(client)
    except (OSError, AssertionError):
        return ""


def test_services_of_machines_meet_in_tunnels(mesh: Mesh, service: GroupProcess) -> None:
    wait_until(lambda: bool(_reaches(service, VIP, 80)), f"api reaches web: {mesh.api.output()}")
    assert _reaches(service, VIP, 80).split()[0] == mesh.web.namespace.v4, (
        "asked from the machine's own address"
    )
    assert _reaches(service, mesh.web.namespace.v4, PORT), "by its address, too"
    assert _reaches(service, mesh.web.namespace.v4, PLAIN), "where nobody is who could answer a tunnel"
    assert mesh.plaintext(), "others are let in without"
    mesh.put("strict", STRICT)
    try:
        wait_until(lambda: not mesh.plaintext(), "plaintext is refused")
        assert _reaches(service, VIP, 80), "who comes by a tunnel is somebody"
        with dial(mesh.outside, mesh.web.namespace.v4, PLAIN) as client:
            assert read_line(client), "a port that nobody declared is nobody's business"
        mesh.put("nobody", ONLY_NOBODY.format(app="web"))
        wait_until(lambda: not _reaches(service, VIP, 80), "policy denies api")
        mesh.drop("nobody")
        wait_until(lambda: bool(_reaches(service, VIP, 80)), "policy denies nobody")
    finally:
        mesh.drop("strict")
    wait_until(lambda: bool(mesh.plaintext()), "plaintext is let in again")


def test_services_of_one_machine_answer_each_for_itself(mesh: Mesh, service: GroupProcess) -> None:
    """With a certificate of its own on its own port, since who answers on HBONE's could not be said."""
    other_vip, other_port = "10.96.0.2", 9090
    names = "name: more, namespace: default, serviceAccount: more"
    more = f"- {{{names}, cgroup: {mesh.web.slice.path}/more, ports: [{other_port}]}}\n"
    mesh.put(
        "more", SERVICE.format(name="more", vip=other_vip, port=other_port), mesh.entry("more", mesh.web)
    )
    mesh.put("strict", STRICT)
    mesh.web.say(more, ports=f"[{PORT}]")
    try:
        with peer_server(mesh.web.namespace, other_port):
            for vip in (other_vip, VIP):
                wait_until(
                    lambda vip=vip: bool(_reaches(service, vip, 80)), f"{vip}: {mesh.web.output()}", STARTED
                )
            certificates = {
                row["identity"].rpartition("/")[2]: row["state"] for row in mesh.web.status()["certificates"]
            }
            assert certificates == {"web": "Available", "more": "Available"}
            assert not mesh.plaintext(other_port)
            assert not mesh.plaintext()
    finally:
        mesh.drop("more")
        mesh.drop("strict")
        mesh.web.say(ports=f"[{PORT}]")
    wait_until(lambda: set(mesh.web.rows()) == {"web"}, "more is let go")
    wait_until(lambda: bool(mesh.plaintext()), "plaintext is let in again")


def test_a_pod_in_its_host_s_network_is_a_workload_by_its_cgroup(mesh: Mesh) -> None:
    port = 7070
    names = "name: hosted, namespace: default, serviceAccount: hosted"
    mesh.put("hosted", HOSTED.format(address=mesh.web.namespace.v4))
    mesh.web.say(f"- {{{names}, cgroup: {mesh.web.slice.path}/hosted, ports: [{port}]}}\n", ports=f"[{PORT}]")
    try:
        with peer_server(mesh.web.namespace, port):
            wait_until(
                lambda: mesh.plaintext(port).startswith(mesh.web.namespace.v4), mesh.web.output(), STARTED
            )
            names_of = {
                row["identity"].rpartition("/")[2]: row["state"] for row in mesh.web.status()["certificates"]
            }
            assert names_of == {"web": "Available", "hosted": "Available"}
            mesh.put("nobody", ONLY_NOBODY.format(app="hosted"))
            wait_until(lambda: not mesh.plaintext(port), "its policy denies")
            assert mesh.plaintext(), "which is not the other's"
    finally:
        for name in ("hosted", "nobody"):
            mesh.drop(name)
        mesh.web.say(ports=f"[{PORT}]")
    wait_until(lambda: set(mesh.web.rows()) == {"web"}, "it is let go")


def test_an_open_service_goes_on_without_its_agent_while_policy_lets_it(mesh: Mesh) -> None:
    mesh.web.say(ports=f"[{PORT}]", fail_mode="open")

    def fail_mode() -> str:
        return str(mesh.web.rows().get("web", {}).get("fail_mode", ""))

    try:
        wait_until(lambda: fail_mode() == "open", f"open: {mesh.web.output()}")
        mesh.put("strict", STRICT)
        wait_until(lambda: fail_mode() == "closed", "policy closes it")
        mesh.drop("strict")
        wait_until(lambda: fail_mode() == "open", "policy opens it")
        mesh.web.stop(signal.SIGKILL)
        assert mesh.plaintext().split()[0] == mesh.outside.v4, "nobody is in between"
    finally:
        mesh.web.say(ports=f"[{PORT}]")
        mesh.web.start()
    wait_until(mesh.web.is_served, f"web is served again: {mesh.web.output()}", STARTED)
    assert mesh.plaintext().split()[0] == mesh.web.namespace.v4
    mesh.web.stop(signal.SIGKILL)
    assert not mesh.plaintext(), "closed as the file says now"
    mesh.web.start()
    wait_until(mesh.web.is_served, f"web is served again: {mesh.web.output()}", STARTED)


def test_the_file_is_followed_and_its_errors_are_shown(mesh: Mesh) -> None:
    names = "name: more, namespace: default, serviceAccount: web"
    more = f"- {{{names}, cgroup: {mesh.web.slice.path}/more, ports: [{PLAIN}]}}\n"
    mesh.web.say(more, ports=f"[{PORT}]")
    wait_until(lambda: mesh.web.rows().get("more", {}).get("state") == "enrolled", "more is enrolled")
    assert "default/more: there is no cgroup" in "\n".join(mesh.web.status()["warnings"])
    mesh.web.say("nonsense: true\n", ports=f"[{PORT}]")
    wait_until(lambda: "unknown field" in mesh.web.status()["enrolment"]["file_error"], "the error is shown")
    assert set(mesh.web.rows()) == {"web", "more"}, "the last good file is in force"
    page = mesh.web.namespace.check(["curl", "-s", "http://127.0.0.1:15020/metrics"])
    assert "nodeagent_workload_file_failures_total 1.0" in page
    assert "nodeagent_workloads_enrolled 2.0" in page
    mesh.web.say(ports=f"[{PORT}]")
    wait_until(lambda: set(mesh.web.rows()) == {"web"}, "more is let go")
    assert not mesh.web.status()["enrolment"]["file_error"]

    def peer_of_plain() -> str:
        return mesh.plaintext(PLAIN).partition(" ")[0]

    assert peer_of_plain() == mesh.outside.v4
    for ports, peer in ((f"[{PORT}, {PLAIN}]", mesh.web.namespace.v4), (f"[{PORT}]", mesh.outside.v4)):
        mesh.web.say(ports=ports)
        wait_until(lambda peer=peer: peer_of_plain() == peer, f"ports {ports}: {mesh.web.output()}", STARTED)
