"""Certificates for peers that cannot obtain their own: signed by a CA that lives as long as the benchmark."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeagent.controlplane.ca.folder import load_authority
from nodeagent.controlplane.ca.selfmade import ensure_root

_TRUST_DOMAIN: Final = "cluster.local"
_LIFETIME: Final = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certified:
    """A workload's files in PEM, and its SPIFFE ID. P-256, as those of nodeagent's workloads."""

    uri: str
    chain: Path
    key: Path
    roots: Path


def certify(folder: Path, account: str) -> Certified:
    """A certificate for a service account of the namespace `default`; the folder's CA is made when it is needed."""
    now = datetime.datetime.now(datetime.UTC)
    ca = folder / "ca"
    ensure_root(ca, _TRUST_DOMAIN, now)
    authority = load_authority(ca, now)
    uri = f"spiffe://{_TRUST_DOMAIN}/ns/default/sa/{account}"
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue(key.public_key(), [x509.UniformResourceIdentifier(uri)], _LIFETIME, now)
    found = Certified(uri, *(folder / f"{account}.{part}.pem" for part in ("chain", "key", "roots")))
    found.chain.write_text("".join(issued.chain[:-1]))
    found.key.touch(0o600)
    found.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    found.roots.write_text(authority.bundle)
    return found
