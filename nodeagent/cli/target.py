"""Which agent or control plane a command means, and how to ask it."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import typer

from nodeagent.errors import AdminError
from nodeagent.lab import names

DEFAULT_ADMIN: Final = Path("/run/nodeagent/admin.sock")
CONTROL_PLANE: Final = "controlplane"
TIMEOUT_SECONDS: Final = 15.0
MAX_ANSWER_BYTES: Final = 512 << 20

LAB_VARIABLE: Final = "NODEAGENT_LAB"
"""As of `nodeagent lab`."""
AdminOption = Annotated[
    Path | None,
    typer.Option(
        "--admin",
        metavar="PATH",
        help=f"Admin socket to ask. Default: $NODEAGENT_ADMIN, else {DEFAULT_ADMIN}.",
        show_default=False,
    ),
]
NodeOption = Annotated[
    str | None, typer.Option("--node", metavar="NODE", help="A lab node's agent, or `controlplane`.")
]
LabOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="LAB",
        help=f"The lab; default: ${LAB_VARIABLE}, else the only one that has the node.",
    ),
]


@dataclass(frozen=True, slots=True)
class Target:
    """An admin socket, and what is behind it in words."""

    path: Path
    description: str


def resolve(admin: Path | None, node: str | None, lab: str | None) -> Target:
    """Return the socket that the options mean; AdminError if there is no such lab or node."""
    if admin is not None and node is not None:
        raise typer.BadParameter("--admin and --node both name an agent; give one of them")
    if node is None:
        if lab is not None:
            raise typer.BadParameter(f"--name {lab} needs --node NODE. {_known()}")
        return Target(admin or Path(os.environ.get("NODEAGENT_ADMIN") or DEFAULT_ADMIN), "agent")
    lab = lab or os.environ.get(LAB_VARIABLE)
    labs = [lab] if lab else [name for name in _labs() if node in _nodes(name)]
    if not labs:
        raise AdminError(f"no lab has a node {node!r}. {_known()}")
    if len(labs) > 1:
        raise AdminError(f"several labs have a node {node!r}: {', '.join(labs)}; choose one by --name LAB")
    if node not in _nodes(labs[0]):
        raise AdminError(f"lab {labs[0]!r} has no node {node!r}. {_known()}")
    folder = names.LabNames(labs[0])
    place = folder.controlplane if node == CONTROL_PLANE else folder.node(node)
    what = "control plane" if node == CONTROL_PLANE else f"agent of node {node!r}"
    return Target(place / "admin.sock", f"{what} of lab {labs[0]!r}")


def _labs() -> list[str]:
    try:
        return sorted(entry.name for entry in names.LABS.iterdir() if entry.is_dir())
    except OSError:
        return []


def _nodes(lab: str) -> list[str]:
    folder = names.LabNames(lab)
    try:
        nodes = sorted(entry.name for entry in (folder.root / "node").iterdir() if entry.is_dir())
    except OSError:
        nodes = []
    return [*nodes, CONTROL_PLANE] if folder.controlplane.is_dir() else nodes


def _known() -> str:
    """Say in a sentence what labs there are."""
    labs = [f"{lab} (--node {' | '.join(_nodes(lab)) or 'none yet'})" for lab in _labs()]
    return f"Labs on this machine: {', '.join(labs)}." if labs else "No lab is up on this machine."


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def lab_agents(lab: str | None) -> list[Target]:
    """The agents of a lab, or of the only one on this machine; none if there is no lab. AdminError if it is not
    there, or if there are several to choose from."""
    labs, lab = _labs(), lab or os.environ.get(LAB_VARIABLE)
    if not lab and len(labs) > 1:
        raise AdminError(f"there are several labs: {', '.join(labs)}; choose one by --name LAB")
    if lab and lab not in labs:
        raise AdminError(f"no lab {lab!r}. {_known()}")
    chosen = [lab] if lab else labs
    return [resolve(None, node, name) for name in chosen for node in _nodes(name) if node != CONTROL_PLANE]


def ask(
    target: Target, path: str, query: dict[str, str] | None = None, *, headers: Sequence[str] = ()
) -> Any:
    """GET a path of the admin API and return its JSON; AdminError saying what is wrong and what to do. `headers` are
    repeated parameters of an explanation, `name:value`."""
    parameters = [*(query or {}).items(), *(("header", each) for each in headers)]
    where = f"{path}?{urlencode(parameters)}" if parameters else path
    connection = _UnixConnection(target.path)
    try:
        connection.request("GET", where)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise AdminError(f"{target.path}: {_reason(target, error)}") from error
    finally:
        connection.close()
    if response.status != 200:
        said = body.decode("utf-8", "replace").strip().removeprefix("error: ")
        raise AdminError(f"{target.path}: {target.description} answers {response.status}: {said}")
    if len(body) > MAX_ANSWER_BYTES:
        raise AdminError(f"{target.path}: {where}: answer over {MAX_ANSWER_BYTES} bytes; narrow it by name")
    try:
        return json.loads(body)
    except ValueError as error:
        raise AdminError(f"{target.path}: {where}: the answer is no JSON: {error}") from error


def _reason(target: Target, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such socket: is the {target.description} running? {_known()}"
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens: the {target.description} has ended; see its log"
    if isinstance(error, PermissionError):
        return "permission denied: run this as root"
    if isinstance(error, TimeoutError):
        return f"the {target.description} does not answer within {TIMEOUT_SECONDS:.0f} s"
    return f"the {target.description} cannot be asked: {error or type(error).__name__}"
