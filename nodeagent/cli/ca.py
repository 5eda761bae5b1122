"""`nodeagent ca`: make a CA's folder, look at it, and replace its root."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nodeagent.cli.render import Output, OutputOption, document, duration, table
from nodeagent.config import ca as settings
from nodeagent.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

FolderOption = Annotated[
    Path, typer.Option("--ca-dir", envvar="NODEAGENT_CA_DIR", help="Folder of the self-made root.")
]
TrustDomainOption = Annotated[
    str, typer.Option(envvar="NODEAGENT_TRUST_DOMAIN", help="SPIFFE trust domain, part of the root's name.")
]


@app.callback()
def ca() -> None:
    """Make a CA's folder, look at it, and replace its root."""


@app.command()
def create(
    folder: FolderOption = settings.DEFAULT_FOLDER,
    trust_domain: TrustDomainOption = "cluster.local",
) -> None:
    """Make a self-signed root, for control planes that are to share it; one by itself makes its own.

    The files have the names of Istio's `cacerts`: in Kubernetes, make a Secret of the folder. What is there stays.
    """
    from nodeagent.controlplane.ca.selfmade import ensure_root

    made = ensure_root(folder, trust_domain, datetime.datetime.now(datetime.UTC))
    print(f"{folder}: " + ("made a new root" if made else "there is a root already; nothing has changed"))


@app.command()
def show(folder: FolderOption = settings.DEFAULT_FOLDER, output: OutputOption = Output.TABLE) -> None:
    """Show who signs, which roots are trusted and what a rotation has to do next."""
    from nodeagent.controlplane.ca import rotation
    from nodeagent.controlplane.ca.folder import load_authority
    from nodeagent.model.certificate import serial_text

    now = datetime.datetime.now(datetime.UTC)
    authority = load_authority(folder, now)
    certificates = [("signer", authority.certificate), *(("root", root) for root in authority.roots)]
    step = rotation.next_step(folder).value
    if output in (Output.JSON, Output.YAML):
        rows = [{"role": role, **_describe(certificate)} for role, certificate in certificates]
        document({"certificates": rows, "next_step": step}, output)
        return
    table(
        ("ROLE", "SUBJECT", "SERIAL", "ENDS IN"),
        (
            (
                role,
                certificate.subject.rfc4514_string(),
                serial_text(certificate),
                duration((certificate.not_valid_after_utc - now).total_seconds()),
            )
            for role, certificate in certificates
        ),
    )
    print(f"\nnext step of a rotation: {step}")


def _describe(certificate: Certificate) -> dict[str, Any]:
    from nodeagent.model.certificate import serial_text

    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": serial_text(certificate),
        "not_after": certificate.not_valid_after_utc.timestamp(),
    }


@app.command()
def rotate(
    folder: FolderOption = settings.DEFAULT_FOLDER,
    trust_domain: TrustDomainOption = "cluster.local",
    overlap: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long certificates live: the least time between two steps."),
    ] = settings.DEFAULT_LIFETIME,
) -> None:
    """Take the next step in replacing the self-made root; three are needed, with time between them.

    trust: a new root is trusted beside the old one. sign: the new one signs. finish: the old one is trusted no more. A
    running control plane follows within a second.
    """
    from nodeagent.controlplane.ca import rotation

    if overlap < 0:
        raise ConfigError(f"--overlap {overlap:g}: must not be negative")
    if not folder.is_dir():
        raise ConfigError(
            f"--ca-dir {folder}: there is no such folder; the control plane makes it at its first start"
        )
    step = rotation.take_step(folder, trust_domain, overlap, datetime.datetime.now(datetime.UTC))
    following = rotation.next_step(folder)
    print(f"{step.value}: done")
    if step is not rotation.Step.FINISH:
        print(f"next: {following.value}, in {duration(overlap)} at the earliest")
