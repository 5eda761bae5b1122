"""Brings a lab up: checks all that can be checked, prepares its folder, starts its supervisor, waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from nodeagent.config.lab import AgentOptions, check_capture, load_lab_file
from nodeagent.config.yaml_fields import read_text
from nodeagent.errors import CapabilityError, LabError
from nodeagent.lab import cgroups, down, rpc
from nodeagent.lab.manifests import Manifest, read_manifests
from nodeagent.lab.names import LABS, LabNames
from nodeagent.lab.pods import ETC_FILES
from nodeagent.lab.registry import check_manifests

_LOOK_SECONDS: Final = 0.1
_LOG_LINES: Final = 8

Status = dict[str, Any]
Progress = Callable[[Status], None]


def bring_up(
    names: LabNames,
    file: Path,
    options: AgentOptions,
    *,
    plain: bool,
    timeout: float,
    progress: Progress,
) -> Status:
    """Bring a lab up and return its status once all is ready; on any failure nothing of it is left."""
    require_root()
    lab = load_lab_file(file)
    if not plain:
        check_capture(lab, options)
    manifests = read_manifests(lab.config)
    check_manifests(manifests, [pod.key for pod in lab.pods])
    _require_machine()
    _claim(names)
    try:
        _prepare(names, read_text(file), manifests, {"plain": plain, "options": asdict(options)})
        supervisor = _start_supervisor(names)
        return _wait(names, supervisor, timeout, progress)
    except BaseException:
        down.take_down(names)
        raise


def require_root() -> None:
    """Raise CapabilityError unless root."""
    if os.geteuid() != 0:
        raise CapabilityError(
            "a lab makes network namespaces and cgroups, for which it must be root; use sudo"
        )


def _require_machine() -> None:
    """Raise CapabilityError for what a lab needs and the machine lacks."""
    cgroups.require_writable()
    for name in ETC_FILES:
        if not Path("/etc", name).is_file():
            raise CapabilityError(
                f"there is no /etc/{name} for a pod's own to cover; make one: touch /etc/{name}"
            )


def _claim(names: LabNames) -> None:
    """Make the lab's folder, which only one `up` can."""
    if down.exists(names):
        try:
            rpc.call(names.supervisor_socket, "status", timeout=5)
        except (ConnectionError, LabError):
            raise LabError(
                f"lab {names.lab} has left something behind; "
                f"`nodeagent lab down --name {names.lab}` removes it"
            ) from None
        raise LabError(
            f"lab {names.lab} is up already; take it down with `nodeagent lab down --name {names.lab}`, "
            "or use another --name"
        )
    LABS.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        names.root.mkdir(mode=0o755)
    except FileExistsError:
        raise LabError(f"lab {names.lab} is being brought up by someone else") from None


def _prepare(names: LabNames, lab_file: str, manifests: list[Manifest], options: dict[str, Any]) -> None:
    names.logs.mkdir()
    names.lab_file.write_text(lab_file)
    (names.root / "options.json").write_text(json.dumps(options))
    (names.root / "initial.json").write_text(json.dumps([manifest.pack() for manifest in manifests]))


def _start_supervisor(names: LabNames) -> subprocess.Popen[bytes]:
    with names.log("supervisor").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *names.supervisor_arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # outlives the terminal that it was started from
        )


def _wait(names: LabNames, supervisor: subprocess.Popen[bytes], timeout: float, progress: Progress) -> Status:
    deadline = time.monotonic() + timeout
    status: Status = {}
    while True:
        if supervisor.poll() is not None:
            raise LabError(f"the lab's supervisor ended:\n{tail(names.log('supervisor'))}")
        try:
            status = rpc.call(names.supervisor_socket, "status", timeout=10)
        except ConnectionError:
            status = {"phase": "starting", "pending": []}
        if status["phase"] == "failed":
            raise LabError(f"the lab cannot come up: {status['error']}")
        if status["phase"] == "up" and not status["pending"]:
            return status
        if any(item.get("final") for item in status["pending"]):
            raise LabError(
                _why_not(names, status, "something of the lab has ended and is not to be restarted")
            )
        if time.monotonic() > deadline:
            late = f"the lab was not ready within {timeout:g} s; raise --timeout if it only needs longer"
            raise LabError(_why_not(names, status, late))
        progress(status)
        time.sleep(_LOOK_SECONDS)


def _why_not(names: LabNames, status: Status, problem: str) -> str:
    """Say what was not ready, with the last lines of its log; first what never will be."""
    lines = [problem]
    for item in sorted(status["pending"], key=lambda item: not item.get("final"))[:5]:
        lines.append(f"  {item['name']}: {item['reason']}")
        text = tail(log_of(names, item["name"]))
        lines += [f"    | {line}" for line in text.splitlines()]
    if len(status["pending"]) > 5:
        lines.append(f"  ... and {len(status['pending']) - 5} more")
    return "\n".join(lines)


def log_of(names: LabNames, name: str) -> Path:
    """Return the log file of what verbs call `name`: controlplane, supervisor, a node, or [NAMESPACE/]POD."""
    if name in ("controlplane", "supervisor"):
        return names.log(name)
    if "/" not in name and names.log(f"agent.{name}").exists():
        return names.log(f"agent.{name}")
    namespace, _, pod = name.rpartition("/")
    return names.log(f"pod.{namespace or 'default'}.{pod}")


def tail(log: Path, lines: int = _LOG_LINES) -> str:
    """Return the last lines of a log; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
