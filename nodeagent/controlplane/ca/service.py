"""The gRPC service istio.v1.auth.IstioCertificateService."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from typing import Any, Final

import grpc
from cryptography import x509

from nodeagent.controlplane.ca.authority import Issued
from nodeagent.controlplane.ca.callers import Authenticators, Caller
from nodeagent.controlplane.ca.csr import SigningRequest, read_csr
from nodeagent.controlplane.ca.grants import Grants
from nodeagent.controlplane.ca.keeper import AuthorityKeeper, utc_now
from nodeagent.controlplane.ca.limits import LOG_RATE, Gate, TokenBucket
from nodeagent.controlplane.ca.metrics import CaMetrics
from nodeagent.controlplane.ca.refusal import Refusal, invalid
from nodeagent.errors import IdentityError
from nodeagent.model.identity import Identity
from nodeagent.proto import ca_pb2, ca_pb2_grpc

log = logging.getLogger(__name__)

IMPERSONATED: Final = "ImpersonatedIdentity"


class CertificateService(ca_pb2_grpc.IstioCertificateServiceServicer):
    """Answers CreateCertificate: who calls, may they have it, is the request sound; then signs and logs."""

    def __init__(
        self,
        keeper: AuthorityKeeper,
        authenticators: Authenticators,
        grants: Grants,
        metrics: CaMetrics,
        lifetimes: tuple[float, float],
        gate: Gate | None = None,
    ) -> None:
        self._keeper = keeper
        self._authenticators = authenticators
        self._grants = grants
        self._metrics = metrics
        self._default_lifetime, self._max_lifetime = lifetimes
        self._gate = gate or Gate()
        self._log_bucket = TokenBucket(LOG_RATE, LOG_RATE)
        self._unlogged = 0

    async def CreateCertificate(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Sign a request."""
        began = time.monotonic()
        try:
            self._gate.admit_call()
            caller = await self._authenticators.caller(context.invocation_metadata() or ())
            self._gate.admit_caller(caller.name)
            issued = await self._create(request, caller, context.peer())
        except Refusal as refusal:
            self._note(refusal, context.peer())
            await context.abort(refusal.code, refusal.message)
        except IdentityError as error:
            self._metrics.requests.labels("INTERNAL", error.reason).inc()
            log.error("cannot issue: %s", error)
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        except Exception:
            self._metrics.requests.labels("INTERNAL", "defect").inc()
            log.exception("CreateCertificate of %s", context.peer())
            await context.abort(grpc.StatusCode.INTERNAL, "a defect of the CA; its log tells more")
        self._metrics.requests.labels("OK", "").inc()
        self._metrics.seconds.observe(time.monotonic() - began)
        return ca_pb2.IstioCertificateResponse(cert_chain=issued.chain)

    async def _create(self, request: Any, caller: Caller, peer: str) -> Issued:
        csr = read_csr(request.csr)
        identity = self._grants.decide(caller, _impersonated(request))
        csr.check_identity(identity)
        lifetime = self._lifetime(request.validity_duration)
        async with self._gate.signing():
            issued = await asyncio.to_thread(self._sign, csr, identity, lifetime)
        ends = issued.certificate.not_valid_after_utc
        log.info(
            "issued %s to %s (%s): serial %s, until %s",
            identity,
            caller.name,
            peer,
            issued.serial,
            f"{ends:%Y-%m-%dT%H:%M:%SZ}",
        )
        return issued

    def _sign(self, csr: SigningRequest, identity: Identity, lifetime: datetime.timedelta) -> Issued:
        name = x509.UniformResourceIdentifier(str(identity))
        return self._keeper.authority.issue(csr.public_key, [name], lifetime, utc_now())

    def _lifetime(self, asked: int) -> datetime.timedelta:
        if asked < 0:
            raise invalid(f"validity_duration {asked}: is negative", "lifetime")
        if asked > self._max_lifetime:
            raise invalid(
                f"validity_duration {asked} s: certificates live at most {self._max_lifetime:g} s "
                "(--max-cert-lifetime)",
                "lifetime",
            )
        return datetime.timedelta(seconds=asked or self._default_lifetime)

    def _note(self, refusal: Refusal, peer: str) -> None:
        """Count and log; what anybody can cause is logged only so often."""
        self._metrics.requests.labels(refusal.code.name, refusal.reason).inc()
        if not self._log_bucket.take():
            self._unlogged += 1
            return
        more = f" ({self._unlogged} refusals before this one not logged)" if self._unlogged else ""
        self._unlogged = 0
        log.warning("refused %s: %s: %s%s", peer, refusal.code.name, refusal.message, more)


def _impersonated(request: Any) -> str:
    fields = request.metadata.fields
    if IMPERSONATED not in fields:
        return ""
    value = fields[IMPERSONATED]
    if value.WhichOneof("kind") != "string_value" or not value.string_value:
        raise invalid(f"metadata {IMPERSONATED}: is not a string that names an identity")
    return str(value.string_value)
