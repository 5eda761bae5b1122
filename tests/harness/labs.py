"""Labs for tests of the lab itself: every verb by the command line, with exit status and both outputs.

`LabUnderTest.footprint()` is what a lab has on the machine; it is empty before `up` and after `down`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from harness.cgroups import groups_named
from harness.pods import in_pod

NODEAGENT = [sys.executable, "-m", "nodeagent.cli.main"]

WITHOUT_ROOT = (
    "setpriv", "--reuid=65534", "--clear-groups",
    # A checkout may lie where only root can look.
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
"""Runs a program as somebody who is not root but can read what root can."""


class LabUnderTest:
    """A lab by name; `run` calls a verb, `must` also wants exit status 0."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder = folder
        self.name = name or f"lt{uuid.uuid4().hex[:8]}"

    def write(self, file: str, text: str) -> str:
        """Write a file of the lab; returns its path."""
        path = self.folder / file
        path.write_text(text)
        return str(path)

    def run(self, verb: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        command = [*NODEAGENT, "lab", verb, "--name", self.name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=90, check=False)

    def must(self, verb: str, *arguments: str) -> str:
        """Run a verb that has to succeed; returns its output."""
        done = self.run(verb, *arguments)
        assert done.returncode == 0, f"lab {verb} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def exec(self, pod: str, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in a pod."""
        return self.run("exec", pod, "--", *command, stdin=stdin)

    def inside(self, pod: str, *command: str) -> subprocess.CompletedProcess[str]:
        """The same, quicker: for tests of something else than the verb."""
        return subprocess.run(
            in_pod(self.name, pod, command), capture_output=True, text=True, timeout=90, check=False
        )

    def status(self) -> Any:
        """The lab's state; not being ready is no error here."""
        return json.loads(self.run("status", "-o", "json").stdout)

    def pod(self, name: str) -> Any:
        """A pod of the state, by namespace/name."""
        return next(p for p in self.status()["pods"] if f"{p['namespace']}/{p['name']}" == name)

    def virtual_ip(self, service: str, family: int = 4) -> str:
        """A virtual address of a service, by namespace/name."""
        found = next(s for s in self.status()["services"] if f"{s['namespace']}/{s['name']}" == service)
        return next(a for a in found["virtualIPs"] if (":" in a) == (family == 6))

    def is_up(self) -> bool:
        """Whether there is a lab of this name that answers."""
        return self.run("status").returncode == 0

    def footprint(self) -> list[str]:
        """Namespaces, cgroups, files and processes of the lab."""
        prefix = f"na.{self.name}"
        netns = Path("/run/netns")
        namespaces = [p.name for p in netns.iterdir()] if netns.is_dir() else []
        found = [name for name in namespaces if name == prefix or name.startswith(f"{prefix}.")]
        found += [str(path) for path in groups_named(f"nodeagent.lab.{self.name}")]
        found += [str(path) for path in [Path("/run/nodeagent/lab") / self.name] if path.exists()]
        found += [str(path) for path in Path("/sys/fs/bpf").glob(f"nodeagent-lab-{self.name}*")]
        return found + processes_of(self.name)


def processes_of(lab: str) -> list[str]:
    """Processes that carry the lab's name in their arguments, this one's verbs excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word == lab or f"/lab/{lab}/" in word for word in words):
            found.append(f"process {entry.name}: {' '.join(words)}")
    return found
