"""Up and down of plain labs: leaving nothing, whatever went wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import require
from harness.cgroups import groups_named
from harness.labs import NODEAGENT, WITHOUT_ROOT, LabUnderTest
from harness.mesh import eventually

pytestmark = pytest.mark.lab

LAB = """
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: web, node: node-a, labels: {app: web}, command: [nodeagent, echo, --http, "8080"]}
- {name: sleep, node: node-b}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""

NewLab = Callable[[], LabUnderTest]


@pytest.fixture
def new_lab(tmp_path: Path) -> Iterator[NewLab]:
    require("root", "nft", "ip", "curl")
    labs: list[LabUnderTest] = []

    def make() -> LabUnderTest:
        folder = tmp_path / f"lab{len(labs)}"
        folder.mkdir()
        labs.append(LabUnderTest(folder))
        labs[-1].write("services.yaml", SERVICES)
        labs[-1].write("lab.yaml", LAB)
        return labs[-1]

    yield make
    for lab in labs:
        lab.must("down")
        assert lab.footprint() == []


def up(lab: LabUnderTest, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.run("up", str(lab.folder / "lab.yaml"), "--plain", *arguments)


def host_network() -> str:
    """What the machine itself has: links, addresses, routes, rules and nft tables."""
    commands = ("ip link", "ip -4 addr", "ip route", "ip -6 route", "ip rule", "nft list tables")
    return "".join(
        subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
        for command in commands
    )


def test_two_labs_at_once_leave_each_other_and_the_machine_alone(new_lab: NewLab) -> None:
    before = host_network()
    first, second = new_lab(), new_lab()
    assert up(first).returncode == 0
    assert up(second).returncode == 0
    assert host_network() == before
    for lab in (first, second):
        assert (
            lab.exec("sleep", "curl", "-sS", "-o", "/dev/null", "--max-time", "3", "http://web/").returncode
            == 0
        )
    first.must("down")
    assert first.footprint() == []
    done = second.exec("sleep", "curl", "-sS", "-o", "/dev/null", "--max-time", "3", "http://web/")
    assert done.returncode == 0, done.stderr
    second.must("down")
    assert host_network() == before


def test_a_second_up_is_refused_and_harmless(new_lab: NewLab) -> None:
    lab = new_lab()
    assert up(lab).returncode == 0
    again = up(lab)
    assert again.returncode == 1
    assert (
        f"lab {lab.name} is up already; take it down with `nodeagent lab down --name {lab.name}`"
        in again.stderr
    )
    assert lab.exec("sleep", "true").returncode == 0


def test_down_may_be_repeated(new_lab: NewLab) -> None:
    lab = new_lab()
    assert lab.must("down") == f"lab {lab.name} is not up; nothing to remove\n"
    assert up(lab).returncode == 0
    assert lab.must("down") == f"lab {lab.name} is down\n"
    assert lab.must("down") == f"lab {lab.name} is not up; nothing to remove\n"


@pytest.mark.parametrize(
    ("lab_text", "services", "message"),
    [
        (LAB.replace("node: node-a", "node: node-x"), SERVICES,
         "lab.yaml:4: pods[0].node: there is no node 'node-x'"),
        (LAB.replace("services.yaml", "nothing.yaml"), SERVICES, "nothing.yaml: no such file"),
        (LAB, "a: [", "services.yaml:1: not valid YAML"),
        (LAB, SERVICES.replace("port: 80", "port: x"),
         "services.yaml:2: Service default/web: spec.ports[0].port"),
        (LAB, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}", "Pod default/x: the lab has no such pod"),
    ],
)  # fmt: skip
def test_wrong_files_make_nothing(new_lab: NewLab, lab_text: str, services: str, message: str) -> None:
    lab = new_lab()
    lab.write("lab.yaml", lab_text)
    lab.write("services.yaml", services)
    done = up(lab)
    assert done.returncode == 1
    assert message in done.stderr
    assert lab.footprint() == []


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            'echo, --http, "8080"',
            'echo, --http, "8081"',
            ["default/web: waits for a listener on TCP port 8080", "| echo default/web: http 8081"],
        ),
        (
            'nodeagent, echo, --http, "8080"',
            "nosuch-program",
            ["default/web: waits for its process (nosuch-program: command not found)"],
        ),
        (
            'nodeagent, echo, --http, "8080"',
            'sh, -c, "echo giving up; exit 3"',
            ["default/web: waits for its process (exited with status 3)", "| giving up"],
        ),
    ],
)
def test_what_is_not_ready_in_time_is_named_and_removed(
    new_lab: NewLab, old: str, new: str, messages: list[str]
) -> None:
    lab = new_lab()
    lab.write("lab.yaml", LAB.replace(old, new))
    done = up(lab, "--timeout", "4")
    assert done.returncode == 1
    for message in ["the lab was not ready within 4 s", *messages]:
        assert message in done.stderr
    assert lab.footprint() == []


def test_a_port_that_stays_closed_does_not_hold_the_lab_up(new_lab: NewLab) -> None:
    """As in Kubernetes, where a pod without a readiness probe is ready when it runs."""
    lab = new_lab()
    another = "ports: [{name: b, port: 81, targetPort: 8099}, {name: a, "
    lab.write("services.yaml", SERVICES.replace("ports: [{", another))
    done = up(lab)
    assert done.returncode == 0, done.stderr
    assert "warning: default/web lacks a listener on TCP port 8099" in done.stdout
    assert lab.exec("sleep", "curl", "-s", "--max-time", "5", "http://web/").returncode == 0
    assert lab.exec("sleep", "curl", "-s", "--max-time", "5", "http://web:81/").returncode == 7  # refused


def test_a_job_that_fails_ends_the_up_at_once(new_lab: NewLab) -> None:
    lab = new_lab()
    job = '- {name: job, node: node-a, command: [sh, -c, "echo oh no; exit 4"], restart: never}\n'
    lab.write("lab.yaml", LAB.replace("- {name: sleep", f"{job}- {{name: sleep"))
    began = time.monotonic()
    done = up(lab, "--timeout", "60")
    assert done.returncode == 1
    assert "default/job: waits for its process (exited with status 4)\n    | oh no\n" in done.stderr
    assert time.monotonic() - began < 20
    assert lab.footprint() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(new_lab: NewLab, number: signal.Signals) -> None:
    lab = new_lab()
    lab.write("lab.yaml", LAB.replace('"8080"', '"8081"'))  # never ready
    command = [*NODEAGENT, "lab", "up", "--name", lab.name, "--plain", str(lab.folder / "lab.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: (Path("/run/netns") / f"na.{lab.name}.node-b").exists(), bool)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(20) == 130
    assert lab.footprint() == []


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.35, 0.5, 0.7])
def test_an_up_interrupted_at_any_time_leaves_nothing(new_lab: NewLab, delay: float) -> None:
    lab = new_lab()
    command = [*NODEAGENT, "lab", "up", "--name", lab.name, "--plain", str(lab.folder / "lab.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    if lab.is_up():
        lab.must("down")  # it was up before the signal came
    time.sleep(1)  # whatever was only starting would be seen by now
    assert lab.footprint() == []


def test_a_killed_up_and_supervisor_leave_a_lab_that_down_removes(new_lab: NewLab) -> None:
    lab = new_lab()
    assert up(lab).returncode == 0
    os.kill(lab.status()["supervisor"]["pid"], signal.SIGKILL)
    done = lab.exec("sleep", "true")
    assert done.returncode == 1
    assert "has no supervisor any more" in done.stderr
    assert "has left something behind" in up(lab).stderr
    lab.must("down")
    assert lab.footprint() == []
    assert up(lab).returncode == 0, "and it comes up again"


def test_down_finds_a_lab_that_lost_its_folder(new_lab: NewLab) -> None:
    lab = new_lab()
    assert up(lab).returncode == 0
    folder = Path("/run/nodeagent/lab") / lab.name
    folder.rename(folder.with_name(f"{lab.name}.lost"))
    subprocess.run(["rm", "-rf", str(folder.with_name(f"{lab.name}.lost"))], check=True)
    lab.must("down")
    assert lab.footprint() == []


def test_down_ends_processes_that_left_their_cgroup(new_lab: NewLab) -> None:
    lab = new_lab()
    assert up(lab).returncode == 0
    pid = lab.pod("default/web")["pid"]
    root = groups_named(f"nodeagent.lab.{lab.name}")[0].parent
    (root / "cgroup.procs").write_text(str(pid))
    lab.must("down")
    assert not Path(f"/proc/{pid}").exists()


def test_half_a_lab_is_removed(new_lab: NewLab) -> None:
    lab = new_lab()
    subprocess.run(["ip", "netns", "add", f"na.{lab.name}.node-a"], check=True)
    assert "has left something behind" in up(lab).stderr
    lab.must("down")
    assert lab.footprint() == []


def test_without_root_it_says_so(new_lab: NewLab) -> None:
    lab = new_lab()
    command = [*WITHOUT_ROOT, *NODEAGENT, "lab", "up", "--plain", "lab.yaml"]
    done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "must be root" in done.stderr
