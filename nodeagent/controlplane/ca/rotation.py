"""Replacing a self-made root without cutting anybody off, in three steps with time between them.

    trust   a new root joins the bundle; it does not sign yet. Agents learn of it with their next certificate.
    sign    the new root signs from now on; the old one is still trusted.
    finish  the old root leaves the bundle.

Between two steps every certificate must have been renewed once, or somebody would meet a root that it does not know:
each step is refused until `overlap` has passed since the last one. A running control plane sees the files change.
With a plugged-in CA the same is done by changing its files: root-cert.pem, then ca-cert.pem with ca-key.pem and
cert-chain.pem, then root-cert.pem.
"""

from __future__ import annotations

import datetime
import enum
from pathlib import Path
from typing import Final

from cryptography import x509

from nodeagent.controlplane.ca.authority import pem
from nodeagent.controlplane.ca.files import PUBLIC, SECRET, write_atomically
from nodeagent.controlplane.ca.folder import CERTIFICATE, KEY, ROOTS, load_authority, read_certificates
from nodeagent.controlplane.ca.selfmade import locked, make_certificate, make_key
from nodeagent.errors import ConfigError

NEXT_CERTIFICATE: Final = f"next-{CERTIFICATE}"
NEXT_KEY: Final = f"next-{KEY}"
_HOUR: Final = 3600.0


class Step(enum.StrEnum):
    """A step of a rotation."""

    TRUST = "trust"
    SIGN = "sign"
    FINISH = "finish"


def next_step(folder: Path) -> Step:
    """What is to be done next: begins anew when no rotation is under way."""
    if (folder / NEXT_CERTIFICATE).exists():
        trusted = read_certificates(folder / ROOTS)
        joined = read_certificates(folder / NEXT_CERTIFICATE)[0] in trusted
        return Step.SIGN if joined else Step.TRUST
    return Step.FINISH if len(read_certificates(folder / ROOTS)) > 1 else Step.TRUST


def take_step(folder: Path, trust_domain: str, overlap: float, now: datetime.datetime) -> Step:
    """Take the next step of a rotation; ConfigError if the last one was less than `overlap` seconds ago."""
    with locked(folder):
        _resume(folder)
        step = next_step(folder)
        if step is not Step.TRUST:
            _check_overlap(folder, step, overlap, now)
        match step:
            case Step.TRUST:
                _trust(folder, trust_domain, now)
            case Step.SIGN:
                _sign(folder)
            case Step.FINISH:
                _finish(folder, now)
        return step


def resume(folder: Path) -> None:
    """Complete a `sign` that was interrupted: key and certificate would not match for ever."""
    with locked(folder):
        _resume(folder)


def _resume(folder: Path) -> None:
    under_way = (folder / NEXT_CERTIFICATE).exists() and (folder / NEXT_KEY).exists()
    if under_way and (folder / NEXT_KEY).read_bytes() == (folder / KEY).read_bytes():
        _sign(folder)


def _check_overlap(folder: Path, step: Step, overlap: float, now: datetime.datetime) -> None:
    last = max((folder / name).stat().st_mtime for name in (CERTIFICATE, ROOTS))
    left = last + overlap - now.timestamp()
    if left > 0:
        due = f"{left / _HOUR:.1f} h" if left >= _HOUR else f"{left:.0f} s"
        raise ConfigError(
            f"{folder}: step {step.value!r} is due in {due}: certificates in use may know nothing "
            "of the last step yet (--overlap SECONDS sets how long they live)"
        )


def _trust(folder: Path, trust_domain: str, now: datetime.datetime) -> None:
    load_authority(folder, now)  # a rotation must not start from a folder that is broken
    key, certificate = folder / NEXT_KEY, folder / NEXT_CERTIFICATE
    if not certificate.exists():
        # Never a key that lies there: it may be the one that a rotation before this one left.
        write_atomically(key, make_key(), SECRET)
        write_atomically(certificate, make_certificate(key, trust_domain, now).encode(), PUBLIC)
    joined = [*read_certificates(folder / ROOTS), *read_certificates(certificate)]
    _write_roots(folder, joined)


def _sign(folder: Path) -> None:
    """Key first: until the certificate follows, the two do not match and a running control plane keeps what it has.

    The `next` files go last, so that a step that was interrupted is taken again from its start.
    """
    write_atomically(folder / KEY, (folder / NEXT_KEY).read_bytes(), SECRET)
    write_atomically(folder / CERTIFICATE, (folder / NEXT_CERTIFICATE).read_bytes(), PUBLIC)
    (folder / NEXT_CERTIFICATE).unlink()
    (folder / NEXT_KEY).unlink()


def _finish(folder: Path, now: datetime.datetime) -> None:
    _write_roots(folder, [load_authority(folder, now).certificate])


def _write_roots(folder: Path, roots: list[x509.Certificate]) -> None:
    bundle = "".join(pem(certificate) for certificate in dict.fromkeys(roots))
    write_atomically(folder / ROOTS, bundle.encode(), PUBLIC)
