"""A lab with a mesh in it, driven through the command line as a user would (but for commands in pods: harness/pods.py).

`up` brings a lab up from the text of its files, `exec` runs commands in pods, `apply` and `delete` change
configuration from YAML text. Tests share one mesh and restore what they change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from harness.pods import in_pod

ROOT = Path(__file__).parents[2]
NODEAGENT = Path(sys.executable).with_name("nodeagent")
T = TypeVar("T")


class CommandError(AssertionError):
    """A command ended with another exit status than 0; carries what it printed."""


class Mesh:
    """One lab of a test session."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    # -- the lab's verbs --

    def lab(self, verb: str, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """Run `nodeagent lab VERB --name NAME ARGUMENTS...`; its standard output."""
        return run(str(NODEAGENT), "lab", verb, "--name", self.name, *arguments, check=check, timeout=timeout)

    def up(self, lab_file: str, *options: str, **files: str) -> None:
        """Bring the lab up from the text of a lab file and of the files that it names (`services` becomes
        services.yaml); `options` are `lab up`'s."""
        for stem, text in files.items():
            (self.folder / f"{stem}.yaml").write_text(text)
        path = self.folder / "lab.yaml"
        path.write_text(lab_file)
        self.lab("up", *options, str(path))

    def down(self) -> None:
        """Take the lab down."""
        self.lab("down")

    def exec(self, pod: str, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Run a command in a pod; its standard output."""
        return run(*in_pod(self.name, pod, command), check=check, timeout=timeout)

    def popen(self, pod: str, *command: str) -> subprocess.Popen[str]:
        """Start a command in a pod with pipes."""
        return subprocess.Popen(
            in_pod(self.name, pod, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def apply(self, text: str, *, check: bool = True) -> str:
        """`lab apply` of YAML text; what it printed on both outputs."""
        path = self.folder / "apply.yaml"
        path.write_text(text)
        command = (str(NODEAGENT), "lab", "apply", "--name", self.name, str(path))
        return run(*command, check=check, both=True)

    def delete(self, text: str) -> str:
        """`lab delete` of what is in the YAML text."""
        path = self.folder / "delete.yaml"
        path.write_text(text)
        return self.lab("delete", str(path))

    # -- looking --

    def get(self, kind: str, node: str, *arguments: str) -> Any:
        """`nodeagent get KIND --node NODE -o json`."""
        return json.loads(self._agent("get", kind, node, *arguments))

    def status(self, node: str) -> Any:
        """`nodeagent status --node NODE -o json`; an agent that is not ready is no error here."""
        return json.loads(self._agent("status", None, node, check=False))

    def _agent(self, verb: str, kind: str | None, node: str, *arguments: str, check: bool = True) -> str:
        target = ["--name", self.name, "--node", node, "-o", "json"]
        return run(str(NODEAGENT), verb, *([kind] if kind else []), *target, *arguments, check=check)

    def metrics(self, node: str) -> str:
        """The Prometheus text of a node's agent, over its admin socket."""
        admin = Path("/run/nodeagent/lab", self.name, "node", node, "admin.sock")
        return run("curl", "-sS", "--unix-socket", str(admin), "http://agent/stats/prometheus")

    def state(self) -> Any:
        """`nodeagent lab status -o json`."""
        return json.loads(self.lab("status", "-o", "json", check=False))

    def agent_pid(self, node: str) -> int | None:
        """The process id of a node's agent; None while there is none."""
        agent = next(entry["agent"] for entry in self.state()["nodes"] if entry["name"] == node)
        return agent["pid"] if agent["state"] == "running" else None

    # -- asking --

    def curl(self, pod: str, *arguments: str, check: bool = True) -> str:
        """curl in a pod, quiet, with a time limit."""
        return self.exec(pod, "curl", "-sS", "--max-time", "10", *arguments, check=check)

    def ask(self, pod: str, *arguments: str) -> Any:
        """curl in a pod, the answer as JSON (the echo workload's)."""
        return json.loads(self.curl(pod, *arguments))

    def statuses(self, pod: str, count: int, url: str, *arguments: str) -> Counter[str]:
        """The status codes of `count` requests of one curl."""
        out = self.curl(
            pod, "-o", "/dev/null", "-w", "%{http_code}\\n", *arguments, f"{url}?n=[1-{count}]", check=False
        )
        return Counter(out.split())

    def answering_pods(self, pod: str, count: int, url: str, *arguments: str) -> Counter[str]:
        """Which pods answered `count` requests of one curl."""
        out = self.curl(pod, *arguments, f"{url}?n=[1-{count}]")
        decoder, position, seen = json.JSONDecoder(), 0, Counter[str]()
        while position < len(out):
            assert out[position] == "{", (
                f"no answer of the echo workload's: {out[position : position + 200]!r}"
            )
            answer, position = decoder.raw_decode(out, position)
            seen[answer["pod"]] += 1
            while position < len(out) and out[position].isspace():
                position += 1
        return seen


def run(*command: str, check: bool = True, timeout: float = 120, both: bool = False) -> str:
    """Run a command; its standard output, or `both`. CommandError when it fails and `check` is set."""
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, env=os.environ
    )
    printed = f"{result.stdout}{result.stderr}"
    if check and result.returncode != 0:
        raise CommandError(f"{' '.join(command)}: exit status {result.returncode}\n{printed}")
    return printed if both else result.stdout


def eventually(probe: Callable[[], T], wanted: Callable[[T], bool], *, within: float = 10.0) -> T:
    """Call `probe` until `wanted` holds of what it returns; an AssertionError with the last value if not."""
    deadline = time.monotonic() + within
    while True:
        value = probe()
        if wanted(value):
            return value
        assert time.monotonic() < deadline, f"not within {within} s; the last value was {value!r}"
        time.sleep(0.1)


def counted(mesh: Mesh, node: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples at a node that have these labels."""
    socket = Path("/run/nodeagent/lab", mesh.name, "node", node, "admin.sock")
    page = run("curl", "-sS", "--unix-socket", str(socket), "http://agent/stats/prometheus")
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
