"""A CA's folder, with Istio's `cacerts` file names, read and checked as a whole.

ca-cert.pem     the signing certificate, a root or an intermediate
ca-key.pem      its key
root-cert.pem   the roots to trust: several while one is being replaced
cert-chain.pem  what links ca-cert.pem to a root; needs to be there only if an intermediate is
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from nodeagent.controlplane.ca.authority import Authority, PrivateKey
from nodeagent.errors import ConfigError
from nodeagent.model.certificate import is_issued_by

CERTIFICATE: Final = "ca-cert.pem"
KEY: Final = "ca-key.pem"
ROOTS: Final = "root-cert.pem"
CHAIN: Final = "cert-chain.pem"
FILES: Final = (CERTIFICATE, KEY, ROOTS, CHAIN)
MAX_FILE_BYTES: Final = 1 << 20
MIN_RSA_BITS: Final = 2048


def load_authority(folder: Path, now: datetime.datetime) -> Authority:
    """Read a CA's folder; ConfigError names the file that is missing or does not fit the others."""
    certificate = read_certificates(folder / CERTIFICATE)[0]
    key = read_key(folder / KEY)
    roots = read_certificates(folder / ROOTS)
    chain = folder / CHAIN
    extra = read_certificates(chain) if chain.exists() and chain.stat().st_size else []
    _check_signer(folder, certificate, key, now)
    return Authority(certificate, key, _link(folder, certificate, extra, roots), tuple(roots))


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file; at least one."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{path}: no PEM certificates: {error}") from error


def read_key(path: Path) -> PrivateKey:
    """A private key without passphrase: ECDSA, RSA of at least 2048 bits, or Ed25519."""
    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError as error:
        raise ConfigError(f"{path}: the key has a passphrase; store it without one, mode 0600") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no private key in PEM: {error}") from error
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < MIN_RSA_BITS:
        raise ConfigError(f"{path}: an RSA key of {key.key_size} bits; it must have at least {MIN_RSA_BITS}")
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path}: keys of this kind cannot sign here; use ECDSA or RSA")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: over {MAX_FILE_BYTES} bytes; is it the right file?")
    return content


def _check_signer(
    folder: Path, certificate: x509.Certificate, key: PrivateKey, now: datetime.datetime
) -> None:
    where = folder / CERTIFICATE
    if not _same_key(certificate, key):
        raise ConfigError(f"{where}: is not the certificate of the key in {KEY}")
    if not _may_sign(certificate):
        raise ConfigError(f"{where}: is not a CA certificate (basicConstraints CA, keyUsage keyCertSign)")
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(f"{where}: expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    if now < certificate.not_valid_before_utc:
        begin = certificate.not_valid_before_utc
        raise ConfigError(
            f"{where}: is valid from {begin:%Y-%m-%dT%H:%M:%SZ}; is this machine's clock right?"
        )


def _same_key(certificate: x509.Certificate, key: PrivateKey) -> bool:
    def encoded(public_key: object) -> bytes:
        found: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
        return found

    return encoded(certificate.public_key()) == encoded(key.public_key())


def _may_sign(certificate: x509.Certificate) -> bool:
    extensions = certificate.extensions
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid


def _link(
    folder: Path,
    certificate: x509.Certificate,
    extra: Iterable[x509.Certificate],
    roots: list[x509.Certificate],
) -> tuple[x509.Certificate, ...]:
    """What leads from a leaf to a root: the signing certificate and those above it, less the root itself."""
    candidates = [each for each in extra if each != certificate and each not in roots]
    path: list[x509.Certificate] = []
    current = certificate
    while current not in roots:
        path.append(current)
        if any(is_issued_by(current, root) for root in roots):
            return tuple(path)
        above = next((each for each in candidates if is_issued_by(current, each)), None)
        if above is None:
            raise ConfigError(
                f"{folder / ROOTS}: does not lead to {CERTIFICATE}: nothing in it or in {CHAIN} "
                f"issued {current.subject.rfc4514_string() or 'it'}"
            )
        candidates.remove(above)
        current = above
    return tuple(path)
