"""Reading certificate signing requests. Only the key is taken from one; names are the server's to decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nodeagent.controlplane.ca.authority import LeafKey
from nodeagent.controlplane.ca.refusal import Refusal, denied, invalid
from nodeagent.model.certificate import san_names
from nodeagent.model.identity import Identity

MAX_CSR_BYTES: Final = 16 << 10
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
"""Verifying costs with the cube of it."""
_BEGIN: Final = "-----BEGIN CERTIFICATE REQUEST-----"
_END: Final = "-----END CERTIFICATE REQUEST-----"
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A request that is sound: its signature proves that the caller has the key."""

    public_key: LeafKey
    requested: str
    """The URI that it asks for; empty: none."""

    def check_identity(self, identity: Identity) -> None:
        """Refuse a request for somebody else than was decided."""
        if self.requested and self.requested != str(identity):
            raise denied(f"the CSR asks for {self.requested!r}; this caller may have {identity}", "san")


def read_csr(text: str) -> SigningRequest:
    """Check a PKCS#10 request in PEM; Refusal says what is wrong with it."""
    csr = _parse(text)
    try:
        public_key = _acceptable_key(csr.public_key())
        sound = csr.is_signature_valid
        names = san_names(csr)
        _refuse_ca(csr)
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise _bad(f"the CSR cannot be read: {error}") from error
    if not sound:
        raise _bad("the CSR's signature is not by the key in it")
    if not isinstance(csr.signature_hash_algorithm, _HASHES):
        raise _bad("the CSR is signed with a hash other than SHA-256, SHA-384 and SHA-512")
    return SigningRequest(public_key, _requested(names))


def _bad(message: str) -> Refusal:
    return invalid(message, "csr")


def _parse(text: str) -> x509.CertificateSigningRequest:
    if len(text) > MAX_CSR_BYTES:
        raise _bad(f"the CSR has {len(text)} bytes; at most {MAX_CSR_BYTES} are taken")
    stripped = text.strip()
    whole = stripped.startswith(_BEGIN) and stripped.endswith(_END)
    if not whole or stripped.count("-----BEGIN") != 1 or not stripped.isascii():
        raise _bad("csr is not one PKCS#10 request in PEM (CERTIFICATE REQUEST)")
    try:
        return x509.load_pem_x509_csr(stripped.encode("ascii"))
    except (ValueError, x509.InvalidVersion) as error:
        raise _bad(f"the CSR cannot be read: {error}") from error


def _acceptable_key(key: object) -> LeafKey:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise _bad(f"the CSR's key is on curve {key.curve.name}; use P-256")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise _bad(f"the CSR's RSA key has {key.key_size} bits; use {MIN_RSA_BITS} to {MAX_RSA_BITS}")
        return key
    raise _bad("the CSR's key is neither ECDSA P-256 nor RSA")


def _refuse_ca(csr: x509.CertificateSigningRequest) -> None:
    try:
        constraints = csr.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return
    if constraints.value.ca:
        raise _bad("the CSR asks to be a CA; only leaf certificates are issued")


def _requested(names: list[x509.GeneralName]) -> str:
    if not names:
        return ""
    if len(names) > 1:
        raise invalid(f"the CSR has {len(names)} subject alternative names; use one URI, or none", "san")
    name = names[0]
    if not isinstance(name, x509.UniformResourceIdentifier):
        kind = type(name).__name__
        raise invalid(f"the CSR has a subject alternative name of type {kind}; use one URI, or none", "san")
    return name.value
