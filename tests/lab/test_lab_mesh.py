"""What the lab does with agents and control plane: enrolment, configuration, failures of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from harness import require
from harness.cgroups import groups_named
from harness.labs import LabUnderTest
from harness.mesh import eventually
from harness.xds_client import CDS, DeltaClient, node

pytestmark = pytest.mark.lab

LAB = """
nodes: [{name: node-a}]
pods:
- {name: web-v1, node: node-a, labels: {app: web, version: v1}, command: [nodeagent, echo, --http, "8080"]}
- {name: web-v2, node: node-a, labels: {app: web, version: v2}, command: [nodeagent, echo, --http, "8080"]}
- {name: sleep, node: node-a, labels: {app: sleep}}
- {name: outsider, node: node-a, mesh: false}
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"""
ROUTE = """
# to one version
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - route:
    - destination: {host: web, subset: %s}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    require("root", "nft", "ip", "curl", "engine")
    lab = LabUnderTest(tmp_path_factory.mktemp("mesh"))
    lab.write("services.yaml", SERVICES)
    lab.must("up", lab.write("lab.yaml", LAB))
    yield lab
    lab.must("down")
    assert lab.footprint() == []


def version(lab: LabUnderTest, pod: str = "sleep") -> str:
    """Which version answers the pod; the error number of curl when none does."""
    done = lab.inside(pod, "curl", "-s", "--max-time", "3", "http://web/")
    if done.returncode != 0 or not done.stdout.startswith("{"):
        return f"curl {done.returncode} {done.stdout}"
    return str(json.loads(done.stdout)["labels"]["version"])


def waiting(lab: LabUnderTest, *command: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What a command came to, and the seconds that it took more than one that waits for nothing."""
    began = time.monotonic()
    lab.run("status")
    asked = time.monotonic()
    done = lab.run(*command)
    return done, time.monotonic() - asked - (asked - began)


def route(lab: LabUnderTest, subset: str) -> str:
    return lab.write("route.yaml", ROUTE % subset)


def test_pods_are_enrolled_unless_the_file_says_no(lab: LabUnderTest) -> None:
    state = lab.status()
    mesh = {pod["name"]: pod["mesh"] for pod in state["pods"]}
    assert mesh == {"web-v1": "enrolled", "web-v2": "enrolled", "sleep": "enrolled", "outsider": "no"}
    assert state["nodes"][0]["agent"]["zds"]["connected"]
    assert state["controlplane"]["ready"]


def test_routes_come_change_and_go_live(lab: LabUnderTest) -> None:
    assert lab.must("apply", route(lab, "v2")) == "VirtualService default/web created\n"
    eventually(lambda: version(lab), lambda found: found == "v2", within=5)
    assert lab.must("apply", route(lab, "v1")) == "VirtualService default/web configured\n"
    eventually(lambda: version(lab), lambda found: found == "v1", within=5)
    assert lab.must("delete", route(lab, "v1")) == "VirtualService default/web deleted\n"
    eventually(lambda: {version(lab) for _ in range(8)}, lambda found: found == {"v1", "v2"}, within=15)


def test_a_change_is_in_force_when_the_command_returns(lab: LabUnderTest) -> None:
    for _ in range(5):
        for subset in ("v2", "v1"):
            lab.must("apply", route(lab, subset))
            assert version(lab) == subset
    lab.must("delete", route(lab, "v1"))


class Refusing:
    """A client of the lab's control plane that refuses, or never answers, clusters after the first ones."""

    def __init__(self, lab: LabUnderTest, error: str) -> None:
        self._target = f"unix:/run/nodeagent/lab/{lab.name}/controlplane/xds.sock"
        self._error = error
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        async with DeltaClient(self._target, node(pod="stubborn", address="10.0.0.77")) as client:
            await client.fetch(CDS)
            self._ready.set()
            with contextlib.suppress(asyncio.TimeoutError, AssertionError):
                response = await client.receive(CDS, timeout=20)
                if self._error:
                    await client.ask(CDS, nonce=response.nonce, error=self._error)
            await self._stop.wait()

    def __enter__(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


LATE = """
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {selector: {app: web}, ports: [{name: http, port: 82, targetPort: 8080}]}
"""


def test_who_refuses_a_change_is_named(lab: LabUnderTest) -> None:
    file = lab.write("late.yaml", LATE)
    with Refusing(lab, "no thanks"):
        done = lab.run("apply", file)
        assert (done.returncode, done.stdout) == (1, "Service default/late created\n")
        assert "error: default/stubborn refuses Cluster: no thanks" in done.stderr
        again = lab.run("apply", lab.write("other.yaml", LATE.replace("late", "other")))
        assert "refuses" not in again.stderr, "it was told before"
    lab.must("delete", file)
    lab.must("delete", lab.write("other.yaml", LATE.replace("late", "other")))


def test_who_does_not_take_a_change_is_named(lab: LabUnderTest) -> None:
    file = lab.write("late.yaml", LATE)
    with Refusing(lab, ""):
        done, seconds = waiting(lab, "apply", file)
        assert done.returncode == 0
        assert "warning: not taken within 5 s by default/stubborn" in done.stderr
        assert seconds < 8, "it is waited for once"
    lab.must("delete", file)


def test_a_control_plane_that_hangs_is_waited_for_once(lab: LabUnderTest) -> None:
    pid = lab.status()["controlplane"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        done, seconds = waiting(lab, "apply", route(lab, "v2"))
        assert seconds < 4, "any further question would take 5 s"
        assert "the control plane" in done.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: version(lab), lambda found: found == "v2", within=10)
    eventually(lambda: lab.status()["controlplane"]["ready"], bool, within=10)
    lab.must("delete", route(lab, "v2"))


def test_what_is_stopped_is_not_waited_for(lab: LabUnderTest) -> None:
    for target, why in (("controlplane", "not ready (stopped)"), ("node-a", "no agent is ready on node-a")):
        lab.must("stop", target)
        done, seconds = waiting(lab, "apply", route(lab, "v2"))
        lab.must("start", target)
        assert (done.returncode, seconds < 3) == (0, True), seconds
        assert why in done.stderr
        eventually(lambda: version(lab), lambda found: found == "v2", within=15)
        lab.must("delete", route(lab, "v2"))


def test_what_the_control_plane_finds_names_the_users_file_and_line(lab: LabUnderTest) -> None:
    file = lab.write("bad.yaml", (ROUTE % "v1").replace("subset: v1", "subst: v1"))
    done = lab.run("apply", file)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert f"{file}:3: VirtualService default/web: spec.http[0].route[0].destination.subst" in done.stderr
    assert {version(lab) for _ in range(4)} <= {"v1", "v2"}, "the rest works"
    lab.must("delete", file)


def test_a_route_to_a_missing_subset_is_told_of(lab: LabUnderTest) -> None:
    file = route(lab, "v9")
    done = lab.run("apply", file)
    assert "VirtualService default/web" in done.stderr
    assert "v9" in done.stderr
    lab.must("delete", file)


def test_a_label_takes_a_pod_out_of_the_mesh_and_back(lab: LabUnderTest) -> None:
    lab.must("apply", route(lab, "v2"))
    eventually(lambda: version(lab), lambda found: found == "v2", within=5)
    labels = "{app: sleep, istio.io/dataplane-mode: none}"
    pod = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: sleep, labels: {labels}}}\n"
    file = lab.write("pod.yaml", pod)
    lab.must("apply", file)
    eventually(lambda: lab.pod("default/sleep")["mesh"], lambda mesh: mesh == "no")
    eventually(lambda: {version(lab) for _ in range(8)}, lambda found: found == {"v1", "v2"}, within=15)
    lab.must("delete", file)
    eventually(lambda: lab.pod("default/sleep")["mesh"], lambda mesh: mesh == "enrolled")
    eventually(lambda: version(lab), lambda found: found == "v2", within=10)
    lab.must("delete", route(lab, "v2"))


def test_a_stopped_agent_is_fail_closed_and_a_started_one_serves(lab: LabUnderTest) -> None:
    lab.must("stop", "node-a")
    state = lab.status()
    assert state["nodes"][0]["agent"]["state"] == "stopped"
    assert "node-a" in [item["name"] for item in state["pending"]]
    assert version(lab).startswith("curl 7"), "refused, not let past the mesh"
    lab.must("start", "node-a")
    eventually(lambda: version(lab), lambda found: found in ("v1", "v2"), within=10)
    lab.must("restart", "node-a")
    eventually(lambda: version(lab), lambda found: found in ("v1", "v2"), within=10)


def test_a_killed_agent_is_started_again(lab: LabUnderTest) -> None:
    before = lab.status()["nodes"][0]["agent"]
    os.kill(before["pid"], signal.SIGKILL)

    def agent() -> dict[str, object]:
        found: dict[str, object] = lab.status()["nodes"][0]["agent"]
        return found

    after = eventually(agent, lambda now: now["ready"] and now["pid"] != before["pid"], within=20)
    assert after["lastExit"] == "killed by SIGKILL"
    eventually(lambda: lab.status()["pending"], lambda pending: pending == [], within=20)
    assert version(lab) in ("v1", "v2")


def test_without_control_plane_the_mesh_goes_on(lab: LabUnderTest) -> None:
    lab.must("apply", route(lab, "v1"))
    eventually(lambda: version(lab), lambda found: found == "v1", within=5)
    lab.must("stop", "controlplane")
    assert version(lab) == "v1"
    done = lab.run("apply", route(lab, "v2"))
    assert done.returncode == 0
    assert "the control plane is not ready (stopped); it takes this when it is" in done.stderr
    assert version(lab) == "v1"
    lab.must("start", "controlplane")
    eventually(lambda: version(lab), lambda found: found == "v2", within=25)
    lab.must("delete", route(lab, "v2"))


def test_the_agents_own_cgroup_holds_only_the_agent(lab: LabUnderTest) -> None:
    (whole,) = groups_named(f"nodeagent.lab.{lab.name}")
    group = whole / "node-a.agent"
    agent = lab.status()["nodes"][0]["agent"]
    assert (group / "cgroup.procs").read_text().split() == [str(agent["pid"])]


def test_names_of_nodes_that_are_not_there(lab: LabUnderTest) -> None:
    done = lab.run("stop", "node-z")
    assert done.returncode == 1
    assert "there is no node 'node-z'; did you mean node-a?" in done.stderr


def test_outsiders_reach_the_mesh(lab: LabUnderTest) -> None:
    assert {version(lab, "outsider") for _ in range(10)} == {"v1", "v2"}
