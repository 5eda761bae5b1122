"""What the mesh does when a part of it is gone, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness.cgroups import groups_named
from harness.mesh import Mesh, eventually, run

pytestmark = pytest.mark.lab

REVIEWS = "http://reviews:9080/"


def answered(mesh: Mesh, url: str = REVIEWS) -> str:
    return mesh.curl("client", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)


def test_killed_agent_recovers(mesh: Mesh) -> None:
    assert answered(mesh) == "200"
    before = mesh.agent_pid("node-a")
    assert before
    os.kill(before, signal.SIGKILL)
    eventually(lambda: mesh.agent_pid("node-a"), lambda pid: pid not in (None, before), within=20)
    eventually(lambda: answered(mesh), lambda code: code == "200", within=20)


def test_traffic_is_refused_while_the_agent_is_down_unless_a_label_says_otherwise(mesh: Mesh) -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: reviews-v1, labels: {app: reviews, version: v1%s}}\n"
    mesh.apply(pod % ", nodeagent.io/fail-mode: open")

    def fail_modes() -> dict[str, str]:
        return {row["name"]: row["fail_mode"] for row in mesh.status("node-a")["enrolment"]["workloads"]}

    try:
        eventually(fail_modes, lambda modes: modes == {"client": "closed", "reviews-v1": "open"})
        mesh.lab("stop", "node-a")
        assert answered(mesh) == "000"
        assert mesh.exec("client", "sh", "-c", "nc -z -w 2 tcp-echo 9000; echo $?").strip() != "0"
        assert mesh.curl("reviews-v1", "-o", "/dev/null", "-w", "%{http_code}", "http://plain:9080/") == "200"
    finally:
        mesh.lab("start", "node-a")
        mesh.apply(pod % "")
    eventually(lambda: answered(mesh), lambda code: code == "200", within=20)
    eventually(fail_modes, lambda modes: set(modes.values()) == {"closed"})


def test_agent_starts_from_its_last_configuration_without_a_control_plane(mesh: Mesh) -> None:
    assert answered(mesh) == "200"
    # What the agent keeps is written shortly after it came.
    eventually(lambda: mesh.status("node-a"), lambda status: bool(status), within=5)
    mesh.lab("stop", "controlplane")
    try:
        mesh.lab("restart", "node-a")
        eventually(lambda: answered(mesh), lambda code: code == "200", within=20)
    finally:
        mesh.lab("start", "controlplane")
    eventually(lambda: mesh.status("node-a")["control_plane"]["connected"], bool, within=30)
    # Certificates do not outlive an agent: tunnels to the other node are there when there is one again.
    eventually(lambda: mesh.statuses("client", 10, REVIEWS), lambda codes: set(codes) == {"200"}, within=20)


UNUSED = """
apiVersion: v1
kind: Service
metadata: {name: unused, namespace: default}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
"""


def test_a_service_that_was_never_used_is_reached_at_once_without_a_control_plane(mesh: Mesh) -> None:
    mesh.apply(UNUSED)
    mesh.lab("stop", "controlplane")
    try:
        eventually(lambda: mesh.status("node-a")["control_plane"]["connected"], lambda there: not there)
        time.sleep(4)  # HOPE in app/agent.py: it might have been restarted
        code, seconds = mesh.curl(
            "client", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", "http://unused:9080/"
        ).split()
        assert code == "200"
        assert float(seconds) < 1, "it waits two seconds for configuration"
    finally:
        mesh.lab("start", "controlplane")
    eventually(lambda: mesh.status("node-a")["control_plane"]["connected"], bool, within=30)
    eventually(lambda: answered(mesh, "http://unused:9080/"), lambda code: code == "200")
    mesh.delete(UNUSED)


def test_label_takes_a_pod_out_of_the_mesh_and_back(mesh: Mesh) -> None:
    def pod(extra: str) -> str:
        return f"""
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: default, labels: {{app: client{extra}}}}}
"""

    def ruleset() -> str:
        return mesh.exec("client", "nft", "list", "ruleset")

    assert "nodeagent" in ruleset()
    mesh.apply(pod(', "istio.io/dataplane-mode": none'))
    try:
        eventually(ruleset, lambda text: "nodeagent" not in text)
        assert answered(mesh) == "200"
        assert "fwmark" not in mesh.exec("client", "ip", "rule")
    finally:
        mesh.apply(pod(""))
    eventually(ruleset, lambda text: "nodeagent" in text)
    eventually(lambda: answered(mesh), lambda code: code == "200")


def leftovers(name: str) -> dict[str, list[str]]:
    """What exists of a lab outside its own files."""
    netns = [str(path) for path in Path("/run/netns").glob(f"*{name}*")]
    groups = [str(path) for path in groups_named(f"*{name}*")]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    processes = [
        line
        for line in run("ps", "-eo", "pid,args").splitlines()
        if name in line and str(os.getpid()) not in line.split()[0] and "ps -eo" not in line
    ]
    links = [line for line in run("ip", "-o", "link").splitlines() if name in line]
    state = [str(path) for path in Path("/run/nodeagent/lab").glob(f"*{name}*")]
    return {
        "netns": netns,
        "cgroups": groups,
        "mounts": mounts,
        "processes": processes,
        "links": links,
        "state": state,
    }


SMALL = """
nodes: [{name: node-a}]
pods:
- {name: client, node: node-a}
- {name: server, node: node-a, labels: {app: server}, command: [nodeagent, echo, --http, "9080"]}
"""


@pytest.mark.parametrize("crash", [False, True], ids=["clean", "supervisor-killed"])
def test_down_leaves_nothing(tmp_path: Path, crash: bool) -> None:
    host_before = (
        run("ip", "-o", "link"),
        run("nft", "list", "ruleset"),
        run("ip", "rule"),
        run("ip", "route"),
    )
    mesh = Mesh(f"gone{os.getpid()}", tmp_path)
    try:
        mesh.up(SMALL)
        assert leftovers(mesh.name)["netns"], "the test would see nothing"
        if crash:
            os.kill(mesh.state()["supervisor"]["pid"], signal.SIGKILL)
    finally:
        mesh.down()
    assert not any(leftovers(mesh.name).values()), leftovers(mesh.name)
    host_after = (
        run("ip", "-o", "link"),
        run("nft", "list", "ruleset"),
        run("ip", "rule"),
        run("ip", "route"),
    )
    assert host_after == host_before
    mesh.down()  # again: nothing to do is no error


def test_failed_up_cleans_up(tmp_path: Path) -> None:
    mesh = Mesh(f"half{os.getpid()}", tmp_path)
    bad = SMALL.replace('[nodeagent, echo, --http, "9080"]', "[/does/not/exist]")
    (tmp_path / "lab.yaml").write_text(bad)
    result = subprocess.run(
        [
            str(Path(os.sys.executable).with_name("nodeagent")),
            "lab",
            "up",
            "--name",
            mesh.name,
            "--timeout",
            "4",
            str(tmp_path / "lab.yaml"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    try:
        assert result.returncode != 0
        assert "server" in result.stderr
        assert not any(leftovers(mesh.name).values())
    finally:
        mesh.lab("down", check=False)
