"""The control plane's own TLS certificate: issued by its own CA, renewed in time, swapped under running listeners."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import threading
from collections.abc import Iterable
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeagent.controlplane.ca.keeper import AuthorityKeeper, utc_now
from nodeagent.errors import ConfigError, IdentityError

log = logging.getLogger(__name__)

LIFETIME: Final = datetime.timedelta(hours=24)


class ServingCertificate:
    """What TLS listeners present. gRPC asks at each handshake, on threads of its own."""

    def __init__(self, keeper: AuthorityKeeper, names: Iterable[str]) -> None:
        self._keeper = keeper
        self._names = [_general_name(name) for name in names]
        self._lock = threading.Lock()
        self._stale = False
        self._renew_at = utc_now()
        self._current = self._make()

    def credentials(self, *, mutual: bool = False) -> grpc.ServerCredentials:
        """Credentials of one listener that always presents the present certificate.

        `mutual`: clients must present one that leads to the present roots. (gRPC's Python interface knows no listener
        that asks for certificates and does without.)
        """
        given = self._current

        def fetch() -> Any:
            """The configuration if it is another than the listener has, else None."""
            nonlocal given
            current = self._fresh()
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(given, fetch, require_client_authentication=mutual)

    def replace(self) -> None:
        """The authority has changed: the next handshake gets a certificate of the new one."""
        with self._lock:
            self._stale = True

    def _fresh(self) -> grpc.ServerCertificateConfiguration:
        with self._lock:
            if self._stale or utc_now() >= self._renew_at:
                self._renew()
            return self._current

    def _renew(self) -> None:
        self._stale = False
        try:
            self._current = self._make()
        except IdentityError as error:
            log.error("the control plane's own certificate cannot be renewed: %s", error)

    def _make(self) -> grpc.ServerCertificateConfiguration:
        key = ec.generate_private_key(ec.SECP256R1())
        now = utc_now()
        issued = self._keeper.authority.issue(key.public_key(), self._names, LIFETIME, now)
        self._renew_at = now + (issued.certificate.not_valid_after_utc - now) / 2
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # Roots are not part of a TLS chain: who connects has them.
        chain = "".join(issued.chain[:-1]).encode()
        log.info("serving certificate %s, until %s", issued.serial, issued.certificate.not_valid_after_utc)
        roots = self._keeper.authority.bundle.encode()
        return grpc.ssl_server_certificate_configuration([(key_pem, chain)], root_certificates=roots)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not name.isascii() or not name or len(name) > 253:
            raise ConfigError(f"--tls-name {name!r}: neither a DNS name nor an address") from None
        return x509.DNSName(name)
