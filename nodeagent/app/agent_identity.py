"""Identities of this node's workloads in the agent: who has which, and what people are shown of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeagent.admin.state import CertificateRow
from nodeagent.app.agent_access import ca_transport
from nodeagent.app.agent_ports import Engine
from nodeagent.config.agent import AgentConfig
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.errors import ConfigError
from nodeagent.model.identity import Identity, check_trust_domain
from nodeagent.xds.transport import ClientCertificate

if TYPE_CHECKING:
    # Imported only if a CA is given: an agent without identities does without the cryptography library.
    from nodeagent.identity.certificate import Certificate
    from nodeagent.identity.manager import Holding, IdentityManager

logger = logging.getLogger(__name__)


class Identities:
    """The identity manager, if a CA is given, with the enrolment's events turned into identities."""

    def __init__(self, config: AgentConfig) -> None:
        self._trust_domain = config.trust_domain
        aliases = config.trust_domain_aliases
        self._own = (config.trust_domain, *aliases) if aliases else ()
        self._trusted: tuple[str, ...] = self._own
        self._put: Callable[[Identity, Certificate | None], None] | None = None
        self.manager: IdentityManager | None = None
        if config.ca:
            try:
                for domain in (config.trust_domain, *config.trust_domain_aliases):
                    check_trust_domain(domain)
            except ValueError as error:
                raise ConfigError(f"--trust-domain, --trust-domain-aliases: {error}") from error
            from nodeagent.identity.client import IstioCaClient
            from nodeagent.identity.manager import IdentityManager

            self.manager = IdentityManager(IstioCaClient(ca_transport(config)), config.cert_lifetime)

    def serve(self, engine: Engine) -> None:
        """Keep an engine's certificates as they are here."""

        def put(identity: Identity, certificate: Certificate | None) -> None:
            if certificate is None:
                engine.remove_identity(str(identity))
            else:
                engine.set_identity(
                    str(identity),
                    certificate.chain_pem,
                    certificate.key_pem,
                    certificate.bundle_pem,
                    self._trusted,
                )

        self._put = put
        if self.manager is not None:
            self.manager.observe(put)

    def trust(self, domains: Sequence[str]) -> str:
        """Take members of these trust domains (MeshConfig's) for the mesh's own from now on, besides those of the
        settings; "" or why not. Certificates come into force anew, and with them tunnels; what was let in stays."""
        try:
            for domain in domains:
                check_trust_domain(domain)
        except ValueError as error:
            return str(error)
        mine = self._own or (self._trust_domain,)
        trusted = tuple(dict.fromkeys((*mine, *domains)))
        trusted = trusted if len(trusted) > 1 else ()
        if trusted == self._trusted:
            return ""
        self._trusted = trusted
        logger.info("members of these trust domains may connect: %s", ", ".join(trusted or mine))
        for holding in self._holdings():
            if holding.certificate is not None and self._put is not None:
                self._put(holding.identity, holding.certificate)
        return ""

    def follow(self, changed: Callable[[str], None]) -> None:
        """Call with each SPIFFE ID that has another certificate, or none any more."""
        if self.manager is not None:
            self.manager.observe(lambda identity, certificate: changed(str(identity)))

    def client_certificate(self, principal: str) -> ClientCertificate | None:
        """The certificate in force of a SPIFFE ID, to be shown to the control plane."""
        if self.manager is None:
            return None
        try:
            found = self.manager.get(Identity.parse(principal))
        except ValueError:
            return None  # no identity can have that name, and arrived() has said so
        return ClientCertificate(found.chain_pem, found.key_pem) if found is not None else None

    def start(self) -> None:
        """Begin, on the event loop."""
        if self.manager is not None:
            self.manager.start()

    async def stop(self) -> None:
        """End all requests."""
        if self.manager is not None:
            await self.manager.stop()

    def identity_of(self, pod: EnrolledPod) -> Identity | None:
        """Who a workload is; None if the CNI side has told no namespace, or a name that no identity can have."""
        try:
            return Identity(self._trust_domain, pod.namespace, pod.service_account or "default")
        except ValueError as error:
            logger.error("workload %s gets no certificate: %s", pod.uid, error)
            return None

    def arrived(self, pod: EnrolledPod) -> str:
        """A workload is about to be taken on: its certificate is obtained meanwhile. Returns its SPIFFE ID; empty
        if it has none."""
        if self.manager is None:
            return ""
        identity = self.identity_of(pod)
        if identity is None:
            return ""
        self.manager.acquire(pod.uid, identity)
        return str(identity)

    async def wait(self, identity: str, timeout: float) -> None:
        """Wait at most `timeout` seconds for the certificate of a SPIFFE ID that a workload here has."""
        if self.manager is not None and await self.manager.wait(Identity.parse(identity), timeout) is None:
            logger.warning("%s has no certificate yet: its tunnels are refused until it has", identity)

    def departed(self, pod: EnrolledPod) -> None:
        """A workload is gone."""
        if self.manager is not None:
            self.manager.release(pod.uid)

    # -- for people --

    def rows(self) -> Iterator[CertificateRow]:
        """Certificates, in order of identity."""
        for holding in self._holdings():
            certificate = holding.certificate
            yield CertificateRow(
                identity=str(holding.identity),
                state=holding.state.value,
                not_before=certificate.not_before if certificate is not None else 0.0,
                not_after=certificate.not_after if certificate is not None else 0.0,
                serial=certificate.serial if certificate is not None else "",
                workloads=len(holding.users),
                next_request=holding.next_request,
                error=holding.error,
            )

    def warnings(self) -> Iterator[str]:
        """Identities whose last request failed."""
        for holding in self._holdings():
            if not holding.error:
                continue
            standing = "no certificate"
            if holding.certificate is not None:
                left = max(0.0, holding.certificate.not_after - time.time())
                standing = f"the certificate cannot be renewed and is valid for {left:.0f} s more"
            elif holding.expired:
                standing = "the certificate has expired"
            yield f"{holding.identity}: {standing}: {holding.error}"

    def _holdings(self) -> list[Holding]:
        if self.manager is None:
            return []
        return sorted(self.manager, key=lambda holding: holding.identity)


class IdentityCollector(Collector):
    """Metrics of the certificates, read when Prometheus asks. Labels are bounded by the node's service accounts."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def collect(self) -> Iterator[Metric]:
        """All families; none without a CA."""
        manager = self._identities.manager
        if manager is None:
            return
        from nodeagent.identity.manager import State

        holdings = list(manager)
        states = GaugeMetricFamily("nodeagent_certificates", "Identities by state.", labels=["state"])
        for state in State:
            states.add_metric([state.value], sum(holding.state is state for holding in holdings))
        yield states
        yield from self._of_each([holding for holding in holdings if holding.certificate is not None])
        yield CounterMetricFamily(
            "nodeagent_certificates_issued", "Certificates obtained.", value=manager.counters.issued
        )
        failures = CounterMetricFamily(
            "nodeagent_certificate_failures", "Requests for certificates that failed.", labels=["reason"]
        )
        for reason, count in manager.counters.failures.items():
            failures.add_metric([reason], count)
        yield failures

    def _of_each(self, holdings: list[Holding]) -> Iterator[Metric]:
        now = time.time()
        age = GaugeMetricFamily(
            "nodeagent_certificate_age_seconds", "Since the certificate was obtained.", labels=["identity"]
        )
        expiry = GaugeMetricFamily(
            "nodeagent_certificate_expiry_timestamp_seconds", "When it expires.", labels=["identity"]
        )
        for holding in holdings:
            assert holding.certificate is not None
            age.add_metric([str(holding.identity)], now - holding.obtained)
            expiry.add_metric([str(holding.identity)], holding.certificate.not_after)
        yield age
        yield expiry
