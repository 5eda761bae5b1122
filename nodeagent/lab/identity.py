"""Identities in a lab: a token per node, and how control plane and agents are told to use them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.config.lab import IdentitySpec
from nodeagent.lab.names import LabNames
from nodeagent.lab.plan import FABRIC4

TLS_PORT: Final = 15012
MUTUAL_TLS_PORT: Final = 15013
_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LabIdentity:
    """Where a lab keeps what identities need; all of it is gone with the lab."""

    folder: Path
    cert_lifetime: int
    """Seconds."""

    @property
    def root_certificates(self) -> Path:
        """The trust bundle, written by the control plane."""
        return self.folder / "root-cert.pem"

    def token(self, node: str) -> Path:
        """The file with a node's token."""
        return self.folder / "tokens" / node

    def controlplane_options(self) -> tuple[str, ...]:
        """What makes the control plane a CA."""
        return (
            "--listen-tls", f"{FABRIC4}:{TLS_PORT}",
            "--listen-mtls", f"{FABRIC4}:{MUTUAL_TLS_PORT}",
            "--tls-name", str(FABRIC4),
            "--ca-dir", str(self.folder / "ca"),
            "--root-cert-out", str(self.root_certificates),
            "--node-tokens", str(self.folder / "tokens"),
        )  # fmt: skip

    def agent_options(self, node: str) -> tuple[str, ...]:
        """What makes a node's agent obtain certificates."""
        return (
            "--ca", f"{FABRIC4}:{TLS_PORT}",
            "--xds-mtls", f"{FABRIC4}:{MUTUAL_TLS_PORT}",
            "--ca-root", str(self.root_certificates),
            "--token", str(self.token(node)),
            "--cert-lifetime", str(self.cert_lifetime),
        )  # fmt: skip


def make_identity(names: LabNames, spec: IdentitySpec, nodes: Iterable[str]) -> LabIdentity:
    """Write a token for each node."""
    identity = LabIdentity(names.identity, spec.cert_lifetime)
    (identity.folder / "tokens").mkdir(parents=True, mode=0o700)
    for node in nodes:
        descriptor = os.open(identity.token(node), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    return identity
