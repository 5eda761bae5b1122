"""Keys and certificate signing requests, as Istio's CA expects them."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeagent.model.identity import Identity


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A new key, and the request to certify it. PEM."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    csr: str

    @property
    def key_pem(self) -> str:
        """The key, unencrypted: for the engine, never for a disk."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def make_request(identity: Identity) -> KeyRequest:
    """Make a P-256 key in memory and a request with one URI SAN and no subject."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    return KeyRequest(key, csr.public_bytes(Encoding.PEM).decode("ascii"))
