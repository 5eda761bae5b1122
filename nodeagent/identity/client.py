"""Asking a CA: the Protocol, and Istio's own (`istio.v1.auth.IstioCertificateService`) over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from nodeagent.errors import ConfigError, IdentityError
from nodeagent.model.identity import Identity
from nodeagent.xds.transport import Transport

CALL_TIMEOUT: Final = 10.0
_METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_OPTIONS: Final = (
    # Each call has a connection of its own, so that a failure of one is not told to another as stale news.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 1 << 21),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)
_REASONS: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "denied",
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "limited",
    grpc.StatusCode.UNIMPLEMENTED: "invalid",
}


class CaClient(Protocol):
    """Has requests signed."""

    async def sign(self, csr: str, identity: Identity, lifetime: float) -> Sequence[str]:
        """The chain of a new certificate in PEM: leaf first, roots last. IdentityError says why there is none."""
        ...


class IstioCaClient:
    """Asks istiod, or our control plane, for the identity of a workload of this node."""

    def __init__(self, transport: Transport) -> None:
        if transport.tls is None:
            raise ConfigError(f"--ca {transport.address}: certificates are obtained over TLS only")
        self._transport = transport

    async def sign(self, csr: str, identity: Identity, lifetime: float) -> Sequence[str]:
        """One call; roots and token are read anew for it."""
        from nodeagent.proto import ca_pb2

        request = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=round(lifetime))
        request.metadata.update({"ImpersonatedIdentity": str(identity)})
        metadata = self._transport.metadata()
        async with self._transport.channel(_OPTIONS) as channel:
            call = channel.unary_unary(
                _METHOD,
                request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
                response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
            )
            try:
                response: Any = await call(request, metadata=metadata, timeout=CALL_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                raise self._failure(error) from error
        return tuple(response.cert_chain)

    def _failure(self, error: grpc.aio.AioRpcError) -> IdentityError:
        details = error.details() or ""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            reason, text = self._transport.explain(details)
            return IdentityError(f"CA {self._transport.address}: {text}", reason)
        reason = _REASONS.get(error.code(), "other")
        return IdentityError(f"CA {self._transport.address}: {error.code().name}: {details}", reason)
