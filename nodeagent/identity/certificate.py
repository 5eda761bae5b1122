"""A workload's certificate, and what has to hold of a CA's answer for it to become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nodeagent.errors import IdentityError
from nodeagent.identity.request import KeyRequest
from nodeagent.model.certificate import is_issued_by, san_names, serial_text
from nodeagent.model.identity import Identity

MAX_ANSWER_BYTES: Final = 1 << 20
MAX_CERTIFICATES: Final = 100


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate in force with its key. PEM; times are seconds since the epoch."""

    identity: Identity
    chain_pem: str
    """The leaf, then what leads to a root."""
    key_pem: str = field(repr=False)
    bundle_pem: str
    """Roots to know peers by: several while one is being replaced."""
    serial: str
    not_before: float
    not_after: float


def accept_answer(identity: Identity, request: KeyRequest, answer: Sequence[str], now: float) -> Certificate:
    """Check a CA's answer: the leaf first, the trust bundle last. IdentityError says what is wrong with it."""
    leaf, between, roots = _read(answer)
    if leaf.public_key() != request.key.public_key():
        raise IdentityError("the CA answered with a certificate of another key", "answer")
    names = [name.value for name in san_names(leaf)]
    if names != [str(identity)]:
        raise IdentityError(f"the CA answered with a certificate of {names}, not of {identity}", "answer")
    _check_chain(leaf, between, roots)
    certificate = Certificate(
        identity,
        "".join(map(_pem, (leaf, *between))),
        request.key_pem,
        "".join(map(_pem, roots)),
        serial_text(leaf),
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
    )
    _check_times(certificate, now)
    return certificate


def _read(
    answer: Sequence[str],
) -> tuple[x509.Certificate, list[x509.Certificate], list[x509.Certificate]]:
    if sum(map(len, answer)) > MAX_ANSWER_BYTES:
        raise IdentityError(f"the CA's answer has more than {MAX_ANSWER_BYTES} bytes", "answer")
    if len(answer) < 2:
        raise IdentityError(
            f"the CA's answer has {len(answer)} elements; at least leaf and root are needed", "answer"
        )
    try:
        parts = [x509.load_pem_x509_certificates(part.encode()) for part in answer]
    except (ValueError, x509.InvalidVersion) as error:
        raise IdentityError(f"the CA's answer is not PEM certificates: {error}", "answer") from error
    if sum(map(len, parts)) > MAX_CERTIFICATES:
        raise IdentityError(f"the CA's answer has more than {MAX_CERTIFICATES} certificates", "answer")
    roots = list(dict.fromkeys(parts[-1]))
    first, *rest = [certificate for part in parts[:-1] for certificate in part]
    return first, [certificate for certificate in rest if certificate not in roots], roots


def _check_chain(
    leaf: x509.Certificate, between: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> None:
    """Each certificate is issued by the next, the last by one of the roots: else no peer would accept it."""
    current = leaf
    for above in between:
        if not is_issued_by(current, above):
            raise IdentityError(
                "the CA's answer is no chain: a certificate is not issued by the next", "answer"
            )
        current = above
    if not any(is_issued_by(current, root) for root in roots):
        raise IdentityError(
            "the CA's certificate does not lead to the root that it names; is a rotation half done?", "answer"
        )


def _check_times(certificate: Certificate, now: float) -> None:
    if now >= certificate.not_after:
        late = now - certificate.not_after
        raise IdentityError(
            f"the new certificate expired {late:.0f} s ago by this node's clock; check the clocks of node and CA",
            "clock",
        )
    if now < certificate.not_before:
        early = certificate.not_before - now
        raise IdentityError(
            f"the new certificate is valid in {early:.0f} s by this node's clock; check the clocks of node and CA",
            "clock",
        )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
