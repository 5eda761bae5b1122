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
    prefix: str
    """Of the paths of all files, as load generator and back end take it."""

    @property
    def chain(self) -> Path:
        """Leaf first."""
        return Path(f"{self.prefix}.chain.pem")

    @property
    def key(self) -> Path:
        """Private."""
        return Path(f"{self.prefix}.key.pem")

    @property
    def roots(self) -> Path:
        """Whom it trusts."""
        return Path(f"{self.prefix}.roots.pem")

    @property
    def pair(self) -> Path:
        """Chain and key in one file, as HAProxy wants them."""
        return Path(f"{self.prefix}.pair.pem")


def certify(folder: Path, account: str) -> Certified:
    """A certificate for a service account of the namespace `default`; the folder's CA is made when it is needed."""
    now = datetime.datetime.now(datetime.UTC)
    ca = folder / "ca"
    ensure_root(ca, _TRUST_DOMAIN, now)
    authority = load_authority(ca, now)
    uri = f"spiffe://{_TRUST_DOMAIN}/ns/default/sa/{account}"
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue(key.public_key(), [x509.UniformResourceIdentifier(uri)], _LIFETIME, now)
    found = Certified(uri, str(folder / account))
    chain = "".join(issued.chain[:-1])
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for file, text in ((found.key, secret), (found.pair, chain + secret)):
        file.touch(0o600)
        file.write_text(text)
    found.chain.write_text(chain)
    found.roots.write_text(authority.bundle)
    return found
