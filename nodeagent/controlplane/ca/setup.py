"""The CA put together: files, callers, service and TLS."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc

from nodeagent.config.ca import CaConfig
from nodeagent.controlplane.ca.callers import Authenticator, Authenticators
from nodeagent.controlplane.ca.grants import Grants
from nodeagent.controlplane.ca.jwks import KeySet
from nodeagent.controlplane.ca.keeper import AuthorityKeeper
from nodeagent.controlplane.ca.metrics import CaMetrics
from nodeagent.controlplane.ca.node_tokens import NodeTokens
from nodeagent.controlplane.ca.service import CertificateService
from nodeagent.controlplane.ca.service_accounts import JwksReviewer, ServiceAccountTokens
from nodeagent.controlplane.ca.serving import ServingCertificate
from nodeagent.controlplane.ca.streams import CertificateGuard, TokenGuard
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.registry import Registry
from nodeagent.errors import ConfigError
from nodeagent.model.identity import check_trust_domain
from nodeagent.proto import ca_pb2_grpc


class CertificateAuthority:
    """Everything of the CA that a control plane needs: start() and stop(), and what TLS listeners are made with."""

    def __init__(self, config: CaConfig, trust_domain: str, registry: Registry, metrics: Metrics) -> None:
        trust_domains = {trust_domain, *config.trust_domain_aliases}
        for name in trust_domains:
            _check_trust_domain(name)
        self._registry = registry
        self.keeper = AuthorityKeeper(config, trust_domain)
        self._serving = ServingCertificate(self.keeper, config.server_names)
        self.keeper.on_change = self._serving.replace
        authenticators = Authenticators(self._authenticators(config, trust_domain))
        self.guard = TokenGuard(authenticators, registry.workload_named)
        self.certificate_guard = CertificateGuard(trust_domains, registry.workload_named)
        self._service = CertificateService(
            self.keeper,
            authenticators,
            Grants(registry, trust_domains),
            CaMetrics(metrics.registry, self.keeper),
            (config.lifetime, config.max_lifetime),
        )
        self._watcher: asyncio.Task[None] | None = None

    def _authenticators(self, config: CaConfig, trust_domain: str) -> list[Authenticator]:
        kinds: list[Authenticator] = []
        if config.jwks:
            keys = KeySet(config.jwks, config.jwks_root, config.jwks_token)
            reviewer = JwksReviewer(keys, config.jwt_issuer, config.jwt_audience)
            kinds.append(
                ServiceAccountTokens(reviewer, trust_domain, config.node_accounts, self._node_of_pod)
            )
        if config.node_tokens is not None:
            kinds.append(NodeTokens(config.node_tokens))
        return kinds

    def _node_of_pod(self, namespace: str, pod: str) -> str:
        found = self._registry.workload_named(namespace, pod)
        return found.node if found is not None else ""

    def credentials(self) -> grpc.ServerCredentials:
        """For one TLS listener."""
        return self._serving.credentials()

    def mutual_credentials(self) -> grpc.ServerCredentials:
        """For one TLS listener whose clients present certificates of this CA."""
        return self._serving.credentials(mutual=True)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has TLS listeners only: tokens never go over the wire in clear."""
        add: Any = ca_pb2_grpc.add_IstioCertificateServiceServicer_to_server
        add(self._service, server)

    def start(self) -> None:
        """Follow the CA's files."""
        self._watcher = asyncio.create_task(self.keeper.run(), name="CA files")

    async def stop(self) -> None:
        """End."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    def describe(self) -> dict[str, Any]:
        """The CA for people."""
        return self.keeper.describe()


def _check_trust_domain(name: str) -> None:
    try:
        check_trust_domain(name)
    except ValueError as error:
        raise ConfigError(f"--trust-domain: {error}") from error
