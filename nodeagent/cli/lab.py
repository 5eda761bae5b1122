"""Nodes and pods as network namespaces on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nodeagent.config.agent import CAPTURE_MODES, SWITCH
from nodeagent.config.lab import AgentOptions, check_lab_name
from nodeagent.errors import LabError
from nodeagent.lab import down as down_
from nodeagent.lab import rpc, sandbox
from nodeagent.lab import up as up_
from nodeagent.lab.manifests import read_manifests
from nodeagent.lab.names import LabNames

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_PROCESS_SECONDS: Final = 30.0
_FOLLOW_SECONDS: Final = 0.2

Name = Annotated[
    str, typer.Option("--name", help="Which lab, when there are several.", envvar="NODEAGENT_LAB")
]
Files = Annotated[list[Path], typer.Argument(metavar="PATH", help="YAML files, or folders of them.")]
Target = Annotated[str, typer.Argument(metavar="NAME", help="A node (its agent), or `controlplane`.")]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The lab file.")],
    name: Name = "default",
    plain: Annotated[
        bool, typer.Option("--plain", help="No control plane and no agents: plain networking.")
    ] = False,
    capture: Annotated[
        str,
        typer.Option("--capture", help="How agents capture: auto, ebpf or nft.", envvar="NODEAGENT_CAPTURE"),
    ] = "auto",
    bypass: Annotated[
        str,
        typer.Option(
            "--bypass",
            help="Whether TCP within a node passes the agents: on or off.",
            envvar="NODEAGENT_BYPASS",
        ),
    ] = "on",
    udp: Annotated[
        str,
        typer.Option("--udp", help="Services and policy for UDP: on or off.", envvar="NODEAGENT_UDP"),
    ] = "on",
    timeout: Annotated[float, typer.Option(help="Seconds to wait until all is ready.", min=1)] = 60.0,
) -> None:
    """Bring a lab up; returns when everything in it is ready."""
    from nodeagent.cli import lab_tables

    if capture not in CAPTURE_MODES:
        raise typer.BadParameter(
            f"{capture!r} is not one of {', '.join(CAPTURE_MODES)}", param_hint="--capture"
        )
    for option, value in (("--bypass", bypass), ("--udp", udp)):
        if value not in SWITCH:
            raise typer.BadParameter(f"{value!r} is neither on nor off", param_hint=option)
    names = _names(name)
    began = time.monotonic()
    options = AgentOptions(capture, bypass, udp)
    with lab_tables.progress() as progress, _interruptible():
        status = up_.bring_up(names, file, options, plain=plain, timeout=timeout, progress=progress)
        late = rpc.call(names.supervisor_socket, "settle")
    issues = rpc.call(names.supervisor_socket, "issues")
    lab_tables.print_pods(status)
    lab_tables.print_issues(issues)
    if late:
        print(f"warning: {late}", file=sys.stderr)
    print(f"lab {name} is up ({time.monotonic() - began:.1f} s)")


@app.command()
def down(name: Name = "default") -> None:
    """Take a lab down; nothing of it is left."""
    names = _names(name)
    up_.require_root()
    if not down_.exists(names):
        print(f"lab {name} is not up; nothing to remove")
        return
    down_.take_down(names)
    print(f"lab {name} is down")


@app.command("exec")
def exec_(
    pod: Annotated[str, typer.Argument(metavar="POD", help="NAME, or NAMESPACE/NAME.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run; put -- before it.")],
    name: Name = "default",
) -> None:
    """Run a command in a pod; the exit status is the command's.

    It has the pod's network, files of /etc, environment and cgroup.
    """
    import os

    spec = _call(_names(name), "exec", pod=pod, argv=command)
    for variable in ("TERM", "COLUMNS", "LINES"):
        if variable in os.environ:
            spec["env"].setdefault(variable, os.environ[variable])
    try:
        sandbox.become(spec)
    except OSError as error:
        print(f"nodeagent: {sandbox.explain(error, command)}", file=sys.stderr)
        not_found = isinstance(error, FileNotFoundError)
        raise typer.Exit(sandbox.EXIT_NOT_FOUND if not_found else sandbox.EXIT_NOT_EXECUTABLE) from None


@app.command()
def apply(files: Files, name: Name = "default") -> None:
    """Put objects in force.

    Kubernetes and Istio objects of YAML files; returns when the control plane and the agents have them.
    """
    objects = [manifest.pack() for manifest in read_manifests(files)]
    _report(_call(_names(name), "apply", objects=objects))


@app.command()
def delete(files: Files, name: Name = "default") -> None:
    """Take the objects of these files out of force."""
    keys = [
        [k.group, k.kind, k.namespace, k.name] for k in (manifest.key for manifest in read_manifests(files))
    ]
    _report(_call(_names(name), "delete", keys=keys))


@app.command()
def status(
    name: Name = "default",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Show processes, pods and services.

    The exit status is 1 while something is not ready.
    """
    from nodeagent.cli import lab_tables

    if output not in ("table", "json"):
        raise typer.BadParameter(f"{output!r} is not one of table, json", param_hint="-o")
    state = _call(_names(name), "status")
    if output == "json":
        print(json.dumps(state, indent=2))
    else:
        lab_tables.print_status(state)
    if state["pending"] or state["phase"] != "up":
        raise typer.Exit(1)


@app.command()
def logs(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="controlplane, supervisor, a node, or [NAMESPACE/]POD; none: all."
        ),
    ] = "",
    name: Name = "default",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
) -> None:
    """Print the output of the lab's processes."""
    names = _names(name)
    if not names.logs.is_dir():
        raise LabError(_not_up(name))
    if target:
        paths = {"": up_.log_of(names, target)}
        if not paths[""].exists():
            known = sorted(path.stem for path in names.logs.glob("*.log"))
            raise LabError(f"there is no log of {target!r}; there are: {', '.join(known)}")
    else:
        paths = {f"{path.stem} | ": path for path in sorted(names.logs.glob("*.log"))}
    _print_logs(paths, follow=follow)


@app.command()
def stop(target: Target, name: Name = "default") -> None:
    """Stop an agent or the control plane.

    To see what the rest does without it.
    """
    _call(_names(name), "stop", target=target)


@app.command()
def start(target: Target, name: Name = "default") -> None:
    """Start what was stopped; returns when it is ready."""
    _call(_names(name), "start", target=target, within=_PROCESS_SECONDS)


@app.command()
def restart(target: Target, name: Name = "default") -> None:
    """Stop and start; returns when it is ready."""
    _call(_names(name), "restart", target=target, within=_PROCESS_SECONDS)


def _names(name: str) -> LabNames:
    return LabNames(check_lab_name(name))


def _call(names: LabNames, verb: str, **arguments: Any) -> Any:
    try:
        return rpc.call(names.supervisor_socket, verb, **arguments)
    except ConnectionError:
        if down_.exists(names):
            raise LabError(
                f"lab {names.lab} has no supervisor any more; "
                f"`nodeagent lab down --name {names.lab}` cleans up"
            ) from None
        raise LabError(_not_up(names.lab)) from None


def _not_up(name: str) -> str:
    return f"lab {name} is not up; bring it up with `nodeagent lab up FILE --name {name}`"


def _report(answer: dict[str, Any]) -> None:
    from nodeagent.cli import lab_tables

    if not lab_tables.print_results(answer):
        raise typer.Exit(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM into what Ctrl-C does, so that `up` cleans up after both."""
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_logs(paths: dict[str, Path], *, follow: bool) -> None:
    positions = dict.fromkeys(paths, 0)
    while True:
        for prefix, path in paths.items():
            positions[prefix] = _print_from(path, positions[prefix], prefix)
        sys.stdout.flush()
        if not follow:
            return
        time.sleep(_FOLLOW_SECONDS)


def _print_from(path: Path, position: int, prefix: str) -> int:
    """Print a log from a position, whole lines only when prefixed; returns where to go on."""
    with path.open("rb") as file:
        if path.stat().st_size < position:
            position = 0  # it was cut back
        file.seek(position)
        for line in file:
            sys.stdout.write(prefix + line.decode(errors="replace"))
            if not line.endswith(b"\n") and prefix:
                sys.stdout.write("\n")
        return file.tell()
