"""Connections to the control plane: in plain text, or over TLS with a bearer token, as Istio's proxies connect.

Root certificates and token are read again for each connection and call: both are replaced under running processes.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from nodeagent.errors import ConfigError, IdentityError

SYSTEM: Final = "SYSTEM"
MAX_FILE_BYTES: Final = 1 << 20
_TLS_SCHEME: Final = "https://"
_PLAIN_SCHEME: Final = "http://"
_PEM: Final = "-----BEGIN"


def grpc_target(address: str) -> str:
    """The gRPC target of `host:port`, `[v6]:port` or `unix:PATH`; ConfigError if it is none of them."""
    if address.startswith("unix:"):
        if len(address) > len("unix:"):
            return address
    else:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and 0 < int(port) < 65536 and "/" not in host:
            return f"dns:///{address}"
    raise ConfigError(f"xDS address {address!r} is neither host:port nor unix:PATH")


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a client shows of itself, in PEM."""

    chain: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server is known, and how it knows us."""

    root: str
    """Path of a PEM file, PEM itself, or SYSTEM for the machine's roots."""
    token: str = ""
    """Path of the token's file (it begins with / or .), or the token itself; empty: none is sent."""
    hostname: str = ""
    """Name to look for in the server's certificate; empty: that of the address (Istio's ALT_CA_HOSTNAME)."""
    cluster_id: str = ""
    certificate: ClientCertificate | None = None
    """Shown where the server asks for one."""

    def roots(self) -> bytes:
        """The root certificates, in PEM; IdentityError if they cannot be read."""
        if self.root.lstrip().startswith(_PEM):
            return self.root.encode()
        path = Path(self.root)
        if self.root == SYSTEM:
            found = ssl.get_default_verify_paths()
            path = Path(found.cafile or found.openssl_cafile)
        content = _read(path, "root certificates of the control plane", "root")
        if _PEM.encode() not in content:
            raise IdentityError(f"{path}: no PEM certificates to know the control plane by", "root")
        return content

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Call metadata that says who we are; IdentityError if the token cannot be read."""
        cluster = (("clusterid", self.cluster_id),) if self.cluster_id else ()
        if not self.token:
            return cluster
        token = self.token
        if token.startswith(("/", ".")):
            token = _read(Path(token), "token", "token").decode("ascii", "replace").strip()
            if not token:
                raise IdentityError(f"{self.token}: the token file is empty", "token")
        if not token.isascii() or not token.isprintable():
            raise IdentityError("the token has characters that a header cannot carry", "token")
        return (("authorization", f"Bearer {token}"), *cluster)


def _read(path: Path, what: str, reason: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise IdentityError(f"{path}: the {what} cannot be read: {error.strerror}", reason) from error
    if len(content) > MAX_FILE_BYTES:
        raise IdentityError(f"{path}: over {MAX_FILE_BYTES} bytes; is it the right file?", reason)
    return content


@dataclass(frozen=True, slots=True)
class Transport:
    """How an address is connected to. `tls` is None for plain text, over which no token is ever sent."""

    address: str
    tls: Tls | None = None

    def __post_init__(self) -> None:
        grpc_target(self.address)

    @classmethod
    def parse(cls, address: str, tls: Tls) -> Transport:
        """Over TLS for `https://host:port`, in plain text for `host:port`, `http://host:port` and `unix:PATH`."""
        if address.startswith(_TLS_SCHEME):
            return cls(address.removeprefix(_TLS_SCHEME).rstrip("/"), tls)
        return cls(address.removeprefix(_PLAIN_SCHEME).rstrip("/"))

    def channel(self, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A new channel; IdentityError if what TLS needs cannot be read."""
        target = grpc_target(self.address)
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        if self.tls.hostname:
            options = (*options, ("grpc.ssl_target_name_override", self.tls.hostname))
        shown = self.tls.certificate
        credentials = grpc.ssl_channel_credentials(
            self.tls.roots(),
            shown.key.encode() if shown is not None else None,
            shown.chain.encode() if shown is not None else None,
        )
        return grpc.aio.secure_channel(target, credentials, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of each call."""
        return self.tls.metadata() if self.tls is not None else ()

    def explain(self, details: str) -> tuple[str, str]:
        """What gRPC says of a failed connection: its reason in one word (tls or unreachable), and a text that
        names the mend."""
        if self.tls is not None:
            root = "the PEM given" if self.tls.root.lstrip().startswith(_PEM) else self.tls.root
            if "CERTIFICATE_VERIFY_FAILED" in details:
                cause = details.rpartition("CERTIFICATE_VERIFY_FAILED")[2].strip(": )]}")
                why = f" ({cause})" if cause else ""
                return (
                    "tls",
                    f"the certificate of {self.address} cannot be verified{why} by the roots of {root}",
                )
            if "ostname" in details and "erif" in details:
                name = self.tls.hostname or self.address.rpartition(":")[0]
                return "tls", f"the certificate of {self.address} is not for {name}; its names are others"
            if "handshake" in details.lower():
                return "tls", f"no TLS with {self.address}; is it a port in plain text? ({details})"
        return "unreachable", details
