"""A root of the control plane's own, made at the first start and kept in its folder."""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nodeagent.controlplane.ca.authority import BACKDATING, pem
from nodeagent.controlplane.ca.files import PUBLIC, SECRET, write_atomically
from nodeagent.controlplane.ca.folder import CERTIFICATE, KEY, ROOTS, read_certificates, read_key
from nodeagent.errors import ConfigError

ROOT_LIFETIME: Final = datetime.timedelta(days=3650)
"""Istio's CITADEL_SELF_SIGNED_CA_CERT_TTL."""


def ensure_root(folder: Path, trust_domain: str, now: datetime.datetime) -> bool:
    """Make what is missing of a self-made root; True if the key is new.

    Each file follows from the one before it, so a crash in between is made good at the next start. A missing key is
    made only in a folder that never had one: another root would cut off everybody who trusts the present one.
    """
    _make_folder(folder)
    with locked(folder):
        key_path, certificate_path, roots_path = folder / KEY, folder / CERTIFICATE, folder / ROOTS
        is_new = not key_path.exists()
        if is_new:
            for path in (certificate_path, roots_path):
                if path.exists():
                    raise ConfigError(
                        f"{key_path}: is missing, but {path.name} is there; restore the key, or remove "
                        "the folder's files to begin with a new root that agents must be given"
                    )
            write_atomically(key_path, make_key(), SECRET)
        if not certificate_path.exists():
            write_atomically(certificate_path, make_certificate(key_path, trust_domain, now).encode(), PUBLIC)
        if not roots_path.exists():
            write_atomically(roots_path, pem(read_certificates(certificate_path)[0]).encode(), PUBLIC)
    return is_new


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"--ca-dir {folder}: cannot be made: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the folder meanwhile."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_key() -> bytes:
    """A new P-256 key as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_certificate(key_path: Path, trust_domain: str, now: datetime.datetime) -> str:
    """A self-signed root certificate of a key, as PEM. Its name tells it from other roots of the trust domain."""
    key = read_key(key_path)
    public_key = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"nodeagent root {identifier.digest.hex()[:8]}"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(x509.random_serial_number())
        .public_key(public_key)
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_root_usage(), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
        .sign(key, hashes.SHA256())
    )
    return pem(certificate)


def _root_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
