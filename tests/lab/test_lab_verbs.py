"""The verbs on a plain lab: exec, apply, delete, status, logs; pods that crash, change labels, get ready."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import require
from harness.cgroups import groups_named
from harness.labs import NODEAGENT, LabUnderTest
from harness.mesh import eventually

pytestmark = pytest.mark.lab

LAB = """
nodes: [{name: node-a}]
pods:
- name: web
  node: node-a
  serviceAccount: account
  labels: {app: web, version: v1}
  command: [nodeagent, echo, --http, "8080"]
  env: {GREETING: "hello world"}
- {name: spare, node: node-a, labels: {app: spare}, command: [nodeagent, echo, --http, "8080"]}
- {name: job, node: node-a, command: [sh, -c, "sleep 999 & echo done once"], restart: never}
- name: mortal
  node: node-a
  labels: {app: mortal}
  command: [nodeagent, echo, --http, "8080"]
  restart: never
- {name: sleep, node: node-a}
config: [services.yaml, labels.yaml]
"""
LABELS = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleep, labels: {from: config}}\n"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {selector: {app: %s}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    require("root", "nft", "ip", "curl")
    lab = LabUnderTest(tmp_path_factory.mktemp("verbs"))
    lab.write("services.yaml", SERVICE % ("web", "web"))
    lab.write("labels.yaml", LABELS)
    lab.must("up", lab.write("lab.yaml", LAB), "--plain")
    yield lab
    lab.must("down")
    assert lab.footprint() == []


def code(lab: LabUnderTest, url: str) -> int:
    """curl's exit status: 0 answered, 6 no such name, 7 refused."""
    return lab.inside("sleep", "curl", "-s", "-o", "/dev/null", "--max-time", "3", url).returncode


# -- exec --


def test_exec_passes_status_output_and_input(lab: LabUnderTest) -> None:
    done = lab.exec("sleep", "sh", "-c", "cat; echo out; echo err >&2; exit 7", stdin="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\nout\n", "err\n")


def test_exec_is_in_the_pod(lab: LabUnderTest) -> None:
    pod = lab.pod("default/web")
    script = "hostname; cat /proc/self/cgroup; readlink /proc/self/ns/net; cat /etc/hostname; env"
    lines = lab.exec("web", "sh", "-c", script).stdout.splitlines()
    assert lines[0] == "web"
    assert f"0::/nodeagent.lab.{lab.name}/pod.default.web/exec" in lines
    assert f"net:[{(Path('/run/netns') / pod['netns']).stat().st_ino}]" in lines
    for expected in (
        "HOSTNAME=web",
        "POD_NAME=web",
        "POD_NAMESPACE=default",
        "POD_LABELS=app=web,version=v1",
        "SERVICE_ACCOUNT=account",
        "NODE_NAME=node-a",
        f"POD_IP={pod['ips'][0]}",
        f"POD_IPS={','.join(pod['ips'])}",
        "GREETING=hello world",
    ):
        assert expected in lines


def test_the_machines_own_files_are_untouched(lab: LabUnderTest) -> None:
    before = {name: Path("/etc", name).read_bytes() for name in ("resolv.conf", "hosts", "hostname")}
    inside = lab.exec("sleep", "cat", "/etc/resolv.conf").stdout
    assert inside.startswith("search default.svc.cluster.local svc.cluster.local cluster.local\n")
    assert "options ndots:5" in inside
    assert {name: Path("/etc", name).read_bytes() for name in before} == before


def test_signals_that_the_interpreter_ignores_are_not_ignored(lab: LabUnderTest) -> None:
    ignored = "grep SigIgn /proc/self/status"
    assert (
        int(lab.exec("sleep", "sh", "-c", ignored).stdout.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    )


@pytest.mark.parametrize(
    ("pod", "command", "status", "message"),
    [
        ("sleep", "nosuch", 127, "nosuch: command not found"),
        ("sleep", "/etc/hosts", 126, "cannot start /etc/hosts: /etc/hosts: Permission denied"),
        ("slep", "true", 1, "no pod default/slep; did you mean default/sleep?"),
        ("other/sleep", "true", 1, "no pod other/sleep; known: default/job, default/mortal"),
    ],
)
def test_exec_explains(lab: LabUnderTest, pod: str, command: str, status: int, message: str) -> None:
    done = lab.exec(pod, command)
    assert done.returncode == status
    assert message in done.stderr


# -- apply and delete --


def test_a_service_comes_and_goes_live(lab: LabUnderTest) -> None:
    file = lab.write("late.yaml", SERVICE % ("late", "spare"))
    assert code(lab, "http://late/") == 6
    assert lab.must("apply", file) == "Service default/late created\n"
    assert code(lab, "http://late/") == 0
    address = lab.virtual_ip("default/late")
    assert lab.must("apply", file) == "Service default/late unchanged\n"
    lab.write("late.yaml", (SERVICE % ("late", "spare")).replace("port: 80,", "port: 81,"))
    assert lab.must("apply", file) == "Service default/late configured\n"
    assert (code(lab, "http://late:81/"), code(lab, "http://late/")) == (0, 7)
    assert lab.virtual_ip("default/late") == address
    assert lab.must("delete", file) == "Service default/late deleted\n"
    assert code(lab, "http://late/") == 6
    gone = lab.run("delete", file)
    assert (gone.returncode, gone.stdout) == (1, "Service default/late not found\n")
    assert "error: Service default/late: there is no such object" in gone.stderr


def test_one_bad_object_does_not_keep_others_out(lab: LabUnderTest) -> None:
    bad = SERVICE.replace("port: 80", "port: 80000") % ("bad", "web")
    good = SERVICE % ("good", "web")
    done = lab.run("apply", lab.write("mixed.yaml", f"{bad}---{good}"))
    assert done.returncode == 1
    assert "Service default/bad refused" in done.stdout
    assert "Service default/good created" in done.stdout
    assert "mixed.yaml:2: Service default/bad: spec.ports[0].port: 80000 is not a port number" in done.stderr
    assert code(lab, "http://good/") == 0
    lab.must("delete", lab.write("good.yaml", good))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "broken.yaml:1: not valid YAML"),
        ("kind: Service", "broken.yaml:1: apiVersion: missing"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: nosuch}",
            "Pod default/nosuch: the lab has no such pod",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: spare, labels: {version: 2}}",
            "metadata.labels: label 'version': 2 is not a string; quote it",
        ),
    ],
)
def test_apply_explains(lab: LabUnderTest, text: str, message: str) -> None:
    done = lab.run("apply", lab.write("broken.yaml", text))
    assert done.returncode == 1
    assert message in done.stderr


def test_labels_may_come_with_the_first_configuration(lab: LabUnderTest) -> None:
    assert lab.pod("default/sleep")["labels"] == {"from": "config"}


def test_labels_of_a_pod_move_it_between_services(lab: LabUnderTest) -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: spare, labels: {app: web}}\n"
    file = lab.write("pod.yaml", pod)
    assert lab.must("apply", file) == "Pod default/spare configured\n"
    assert lab.pod("default/spare")["labels"] == {"app": "web"}
    assert endpoints(lab, "web") == 4, "two pods, two families"
    assert lab.must("apply", file) == "Pod default/spare unchanged\n"
    assert lab.must("delete", file) == "Pod default/spare reset to the lab file\n"
    assert endpoints(lab, "web") == 2


def endpoints(lab: LabUnderTest, service: str) -> int:
    found = next(s for s in lab.status()["services"] if s["name"] == service)
    return sum(len(port["endpoints"]) for port in found["ports"])


# -- pods --


def test_a_job_runs_once(lab: LabUnderTest) -> None:
    pod = lab.pod("default/job")
    assert (pod["completed"], pod["restarts"], pod["lastExit"]) == (True, 0, "exited with status 0")
    assert lab.must("logs", "job").splitlines() == ["done once", "[lab] exited with status 0"]


def test_a_killed_pod_comes_back(lab: LabUnderTest) -> None:
    before = lab.pod("default/web")
    os.kill(before["pid"], signal.SIGKILL)
    after = eventually(
        lambda: lab.pod("default/web"), lambda pod: pod["ready"] and pod["pid"] != before["pid"], within=15
    )
    assert (after["restarts"], after["lastExit"]) == (before["restarts"] + 1, "killed by SIGKILL")
    assert code(lab, "http://web/") == 0


def test_a_pod_that_is_gone_serves_nobody(lab: LabUnderTest) -> None:
    file = lab.write("mortal.yaml", SERVICE % ("mortal", "mortal"))
    lab.must("apply", file)
    assert code(lab, "http://mortal/") == 0
    os.kill(lab.pod("default/mortal")["pid"], signal.SIGKILL)
    eventually(lambda: endpoints(lab, "mortal"), lambda count: count == 0, within=5)
    assert code(lab, "http://mortal/") == 7
    assert lab.run("status").returncode == 1, "something is not ready"
    lab.must("delete", file)


def test_what_a_program_leaves_running_ends_with_it(lab: LabUnderTest) -> None:
    (group,) = groups_named(f"nodeagent.lab.{lab.name}")
    main = group / "pod.default.job" / "main"
    assert (main / "cgroup.procs").read_text() == "", "the job has left a sleep in the background"


def test_a_service_with_a_wrong_port_does_not_make_a_pod_unready(lab: LabUnderTest) -> None:
    wrong = (SERVICE % ("wrong", "web")).replace("targetPort: 8080", "targetPort: 9")
    lab.must("apply", lab.write("wrong.yaml", wrong))
    time.sleep(1.2)  # a round of looks at what is ready
    assert lab.pod("default/web")["ready"]
    assert code(lab, "http://web/") == 0
    assert code(lab, "http://wrong/") == 7
    lab.must("delete", lab.write("wrong.yaml", wrong))


# -- status and logs --


def test_status_in_both_forms(lab: LabUnderTest) -> None:
    table = lab.run("status").stdout
    assert table.splitlines()[0].split() == [
        "NAMESPACE",
        "POD",
        "NODE",
        "IPS",
        "MESH",
        "READY",
        "RESTARTS",
        "PID",
    ]
    state = json.loads(lab.run("status", "-o", "json").stdout)
    assert (state["lab"], state["phase"]) == (lab.name, "up")
    assert lab.run("status", "-o", "yaml").returncode == 2


def test_logs(lab: LabUnderTest) -> None:
    assert "echo default/web: http 8080" in lab.must("logs", "web")
    assert lab.must("logs", "default/web") == lab.must("logs", "web")
    assert "pod.default.web | echo default/web: http 8080" in lab.must("logs")
    done = lab.run("logs", "nosuch")
    assert done.returncode == 1
    assert "there is no log of 'nosuch'; there are: pod.default.job, " in done.stderr


def test_logs_are_followed(lab: LabUnderTest) -> None:
    command = [*NODEAGENT, "lab", "logs", "--name", lab.name, "-f", "web"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "echo default/web: http 8080\n"
        log = Path(lab.pod("default/web")["log"])
        with log.open("a") as file:
            file.write("a line of later\n")
        assert any(line == "a line of later\n" for line in process.stdout)
        process.terminate()


def test_plain_labs_have_no_agents_to_stop(lab: LabUnderTest) -> None:
    done = lab.run("stop", "node-a")
    assert done.returncode == 1
    assert "a plain lab has no control plane and no agents" in done.stderr
