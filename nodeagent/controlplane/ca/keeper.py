"""Keeps the authority in step with its files: a root may be replaced, or an intermediate renewed, while it runs."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from nodeagent.config.ca import CaConfig
from nodeagent.controlplane.ca import rotation
from nodeagent.controlplane.ca.authority import Authority
from nodeagent.controlplane.ca.files import PUBLIC, write_atomically
from nodeagent.controlplane.ca.folder import FILES, load_authority
from nodeagent.controlplane.ca.selfmade import ensure_root
from nodeagent.errors import ConfigError
from nodeagent.model.certificate import serial_text

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
EXPIRY_WARNING: Final = datetime.timedelta(days=30)
WARNING_PERIOD: Final = datetime.timedelta(days=1)


class AuthorityKeeper:
    """Owns the authority in force. Files that do not fit together leave the last good one in force."""

    def __init__(self, config: CaConfig, trust_domain: str) -> None:
        self._config = config
        self._trust_domain = trust_domain
        self._folder = config.plugged_in or config.folder
        self.on_change: Callable[[], None] = lambda: None
        self.last_error = ""
        self.reloads = 0
        self.failures = 0
        self._stamp: object = None
        self._warn_at = utc_now()
        self.authority = self._open()

    def _open(self) -> Authority:
        """The first load, which has to succeed."""
        now = utc_now()
        if self._config.plugged_in is None:
            if ensure_root(self._folder, self._trust_domain, now):
                log.warning("made a new root in %s; keep this folder: agents trust it", self._folder)
            rotation.resume(self._folder)
        self._stamp = self._look()
        authority = load_authority(self._folder, now)
        self._tell(authority)
        self._publish(authority)
        return authority

    async def run(self) -> None:
        """Follow the files until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.check()
            self._warn_of_expiry()

    def check(self) -> None:
        """Take what the files say, if they have changed and fit together."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            authority = load_authority(self._folder, utc_now())
            self._publish(authority)
        except ConfigError as error:
            # Seen in the middle of a change, or broken: looked at again as long as it is so.
            self._note_failure(str(error))
            return
        self._stamp, self.last_error = stamp, ""
        self.reloads += 1
        self.authority = authority
        self._tell(authority)
        self.on_change()

    def _note_failure(self, message: str) -> None:
        if message != self.last_error:
            self.failures += 1
            log.error("%s; the CA goes on with what it has", message)
        self.last_error = message

    def _look(self) -> list[object]:
        stamps: list[object] = []
        for name in FILES:
            try:
                found = (self._folder / name).stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                stamps.append(None)
        return stamps

    def _publish(self, authority: Authority) -> None:
        path = self._config.root_out
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, authority.bundle.encode(), PUBLIC)
        except OSError as error:
            raise ConfigError(f"--root-cert-out {path}: cannot be written: {error.strerror}") from error

    def _tell(self, authority: Authority) -> None:
        log.info(
            "CA %s from %s, until %s; %d root(s) trusted",
            authority.certificate.subject.rfc4514_string(),
            self._folder,
            f"{authority.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            len(authority.roots),
        )

    def _warn_of_expiry(self) -> None:
        """Say once a day that the signing certificate, or a root, ends soon."""
        now = utc_now()
        if now < self._warn_at:
            return
        self._warn_at = now + WARNING_PERIOD
        for certificate in (self.authority.certificate, *self.authority.roots):
            ends = certificate.not_valid_after_utc
            if ends - now < EXPIRY_WARNING:
                name = certificate.subject.rfc4514_string()
                log.warning("%s ends soon: replace it before %s", name, f"{ends:%Y-%m-%dT%H:%M:%SZ}")

    def describe(self) -> dict[str, Any]:
        """The CA for people."""
        authority = self.authority
        return {
            "folder": str(self._folder),
            "plugged_in": self._config.plugged_in is not None,
            "signer": _describe(authority.certificate),
            "roots": [_describe(root) for root in authority.roots],
            "reloads": self.reloads,
            "last_error": self.last_error,
        }


def utc_now() -> datetime.datetime:
    """The time, as certificates have it."""
    return datetime.datetime.now(datetime.UTC)


def _describe(certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": serial_text(certificate),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "not_after": certificate.not_valid_after_utc.timestamp(),
    }
