"""`nodeagent analyze`: judge configuration without a running control plane."""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeagent.cli.render import Output, OutputOption, document, word

if TYPE_CHECKING:
    from nodeagent.controlplane.report import Issue

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Threshold(StrEnum):
    """The mildest finding that makes the command fail."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders of Kubernetes and Istio YAML.")],
    mesh_config: Annotated[Path | None, typer.Option(help="File with Istio's MeshConfig.")] = None,
    root_namespace: Annotated[str, typer.Option(help="As the control plane's option.")] = "",
    trust_domain: Annotated[str, typer.Option(help="As the control plane's option.")] = "",
    domain: Annotated[str, typer.Option(help="As the control plane's option.")] = "cluster.local",
    ca: Annotated[bool, typer.Option(help="Whether the control plane issues certificates.")] = True,
    failure_threshold: Annotated[
        Threshold, typer.Option(help="Exit with 1 if there is a finding as bad as this.")
    ] = Threshold.ERROR,
    output: OutputOption = Output.TABLE,
) -> None:
    """Find what is wrong with configuration before it is applied: as the control plane reads it, across resources.

    Each finding names the object, its file and line, the field and how to mend it.
    """
    # Findings are logged as well where a control plane runs.
    logging.disable(logging.CRITICAL)
    from nodeagent.app.analysis import analyze as judge
    from nodeagent.config.controlplane import ControlPlaneConfig

    config = ControlPlaneConfig(
        config=tuple(paths),
        domain=domain,
        trust_domain=trust_domain,
        root_namespace=root_namespace,
        mesh_config=mesh_config,
    )
    found = asyncio.run(judge(config, has_ca=ca))
    if output in (Output.JSON, Output.YAML):
        document([_row(issue) for issue in found.issues], output)
    else:
        for issue in found.issues:
            print(_line(issue))
        if not found.issues:
            print(f"nothing is wrong with {found.objects} objects of {found.files} files")
    bad = [item.value for item in Threshold][: list(Threshold).index(failure_threshold) + 1]
    if any(issue.severity.value in bad for issue in found.issues):
        raise typer.Exit(1)


def _line(issue: Issue) -> str:
    """As istioctl has it: `error [IST0101] (Kind namespace/name file:line) field: message`."""
    where = " ".join(filter(None, (issue.resource, issue.source)))
    text = ": ".join(filter(None, (issue.path, issue.message)))
    return f"{word(issue.severity.value)} [{issue.code}] ({where}) {text}"


def _row(issue: Issue) -> dict[str, str]:
    return {
        "severity": issue.severity.value,
        "code": issue.code,
        "resource": issue.resource,
        "source": issue.source,
        "path": issue.path,
        "message": issue.message,
    }
