"""The authority: a signing certificate with its key, what links it to a root, and the roots to trust."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeagent.errors import IdentityError
from nodeagent.model.certificate import serial_text

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
LeafKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

BACKDATING: Final = datetime.timedelta(minutes=2)
"""Clocks of others may be this much behind (Istio's ClockSkewGracePeriod)."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate with what its holder needs beside it. PEM."""

    certificate: x509.Certificate
    chain: tuple[str, ...]
    """The leaf, the certificates between, and last all roots in one."""

    @property
    def serial(self) -> str:
        """The serial number in hexadecimal."""
        return serial_text(self.certificate)


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs leaf certificates. Immutable: a rotation makes another one."""

    certificate: x509.Certificate
    key: PrivateKey
    between: tuple[x509.Certificate, ...]
    """What leads from a leaf to a root: empty if the signing certificate is itself a root."""
    roots: tuple[x509.Certificate, ...]

    @property
    def bundle(self) -> str:
        """The trust bundle."""
        return "".join(map(pem, self.roots))

    def issue(
        self,
        public_key: LeafKey,
        names: Iterable[x509.GeneralName],
        lifetime: datetime.timedelta,
        now: datetime.datetime,
    ) -> Issued:
        """Sign a leaf that is valid from a little before `now` for `lifetime`, at most as long as the signer is."""
        signer_ends = self.certificate.not_valid_after_utc
        if now >= signer_ends:
            raise IdentityError(
                f"the CA's own certificate expired at {signer_ends:%Y-%m-%dT%H:%M:%SZ}", "expired"
            )
        begin = max(now - BACKDATING, self.certificate.not_valid_before_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .serial_number(x509.random_serial_number())
            .public_key(public_key)
            .not_valid_before(begin)
            .not_valid_after(min(now + lifetime, signer_ends))
        )
        for extension, critical in self._extensions(public_key, names):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(self.key, _hash_for(self.key))
        return Issued(certificate, (pem(certificate), *map(pem, self.between), self.bundle))

    def _extensions(
        self, public_key: LeafKey, names: Iterable[x509.GeneralName]
    ) -> Iterable[tuple[x509.ExtensionType, bool]]:
        """Those of Istio's leaves. There is no subject, so the SAN is critical (RFC 5280, 4.2.1.6)."""
        yield x509.SubjectAlternativeName(names), True
        yield leaf_usage(), True
        yield (
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            False,
        )
        yield x509.BasicConstraints(ca=False, path_length=None), True
        yield key_identifier_of(self.certificate), False
        yield x509.SubjectKeyIdentifier.from_public_key(public_key), False


def pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def leaf_usage() -> x509.KeyUsage:
    """digitalSignature and keyEncipherment, as Istio's leaves have."""
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def key_identifier_of(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What a certificate says of its issuer's key: the issuer's own identifier, if it has one."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        public_key = issuer.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _hash_for(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """The hash to sign with: as strong as the key; none for Ed25519, which has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384()
    return hashes.SHA256()
