"""Guards xDS streams by the same tokens as the CA, or by its certificates: configuration goes to whom it concerns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, TypeAlias

import grpc
from cryptography import x509

from nodeagent.controlplane.ca.callers import Authenticators, Caller
from nodeagent.controlplane.ca.refusal import Refusal
from nodeagent.controlplane.view import Client
from nodeagent.controlplane.xds.guard import Admission, AuthContext, StreamDenied
from nodeagent.model.identity import Identity
from nodeagent.model.workload import Workload

ZTUNNEL: Final = "ztunnel"
# gRPC's name for the peer's leaf certificate.
_LEAF: Final = "x509_pem_cert"
WorkloadNamed: TypeAlias = Callable[[str, str], Workload | None]


class TokenGuard:
    """A node agent may open streams for its node and its node's pods; any other caller for its own namespace."""

    def __init__(self, authenticators: Authenticators, workload_named: WorkloadNamed) -> None:
        self._authenticators = authenticators
        self._workload_named = workload_named

    async def admit(self, metadata: Iterable[tuple[str, Any]], peer: AuthContext) -> Admission:
        """Know the caller by its token."""
        del peer
        try:
            caller = await self._authenticators.caller(metadata)
        except Refusal as refusal:
            raise StreamDenied(refusal.code, refusal.message) from refusal
        return Admission(lambda client: _check(caller, client, self._workload_named), caller.name)


class CertificateGuard:
    """A workload may open streams for its own namespace and service account, while its certificate is valid.

    That a CA of ours signed the certificate is the TLS listener's affair.
    """

    def __init__(self, trust_domains: Collection[str], workload_named: WorkloadNamed) -> None:
        self._trust_domains = trust_domains
        self._workload_named = workload_named

    async def admit(self, metadata: Iterable[tuple[str, Any]], peer: AuthContext) -> Admission:
        """Know the caller by the one SPIFFE ID in its certificate."""
        del metadata
        leaves = list(peer.get(_LEAF, ()))
        if len(leaves) != 1:
            raise _unauthenticated("no client certificate")
        certificate = x509.load_pem_x509_certificate(leaves[0])
        identity = self._identity(certificate)
        caller = Caller(f"workload {identity}", identity)
        ends = certificate.not_valid_after_utc.timestamp()
        return Admission(lambda client: _check(caller, client, self._workload_named), caller.name, ends)

    def _identity(self, certificate: x509.Certificate) -> Identity:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (x509.ExtensionNotFound, ValueError) as error:
            raise _unauthenticated(f"the client certificate names nobody: {error}") from error
        if len(uris) != 1:
            raise _unauthenticated(f"the client certificate has {len(uris)} URIs; it must have one")
        try:
            identity = Identity.parse(uris[0])
        except ValueError as error:
            raise _unauthenticated(f"the client certificate: {error}") from error
        if identity.trust_domain not in self._trust_domains:
            raise _unauthenticated(f"{identity} is of another trust domain")
        return identity


def _check(caller: Caller, client: Client, workload_named: WorkloadNamed) -> None:
    if caller.is_node and client.kind == ZTUNNEL:
        return
    pod = workload_named(client.namespace, client.pod)
    name = repr(f"{client.namespace}/{client.pod}")
    if caller.is_node:
        if pod is None or not caller.node or pod.node != caller.node:
            where = f"node {caller.node}" if caller.node else "its node, which is not known"
            raise _denied(f"{caller.name}: no pod {name} is known on {where}")
        return
    assert caller.identity is not None
    if client.namespace != caller.identity.namespace:
        raise _denied(f"{caller.name} cannot be a proxy of namespace {client.namespace!r}")
    if pod is not None and pod.service_account != caller.identity.service_account:
        raise _denied(f"{caller.name}: pod {name} has another service account")


def _denied(message: str) -> StreamDenied:
    return StreamDenied(grpc.StatusCode.PERMISSION_DENIED, message)


def _unauthenticated(message: str) -> StreamDenied:
    return StreamDenied(grpc.StatusCode.UNAUTHENTICATED, message)
