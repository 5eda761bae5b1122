"""What the CA counts. Labels are bounded: gRPC statuses and the reasons of refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeagent.controlplane.ca.keeper import AuthorityKeeper

_PREFIX: Final = "nodeagent_controlplane_ca"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class CaMetrics:
    """Counters of one CA, in the control plane's registry."""

    def __init__(self, registry: CollectorRegistry, keeper: AuthorityKeeper) -> None:
        self.requests = Counter(
            f"{_PREFIX}_requests",
            "Calls of CreateCertificate by gRPC status and reason of refusal.",
            ["code", "reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            f"{_PREFIX}_issue_seconds",
            "Time from a request to its certificate.",
            buckets=_BUCKETS,
            registry=registry,
        )
        registry.register(_AuthorityCollector(keeper))


class _AuthorityCollector(Collector):
    """Reads the authority when Prometheus asks."""

    def __init__(self, keeper: AuthorityKeeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        """All families."""
        authority = self._keeper.authority
        yield GaugeMetricFamily(
            f"{_PREFIX}_signer_expiry_timestamp_seconds",
            "When the signing certificate ends.",
            value=authority.certificate.not_valid_after_utc.timestamp(),
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}_root_expiry_timestamp_seconds",
            "When the first of the trusted roots ends.",
            value=min(root.not_valid_after_utc for root in authority.roots).timestamp(),
        )
        yield GaugeMetricFamily(f"{_PREFIX}_roots", "Roots in the trust bundle.", value=len(authority.roots))
        yield CounterMetricFamily(
            f"{_PREFIX}_reloads", "Times that changed files were put in force.", value=self._keeper.reloads
        )
        yield CounterMetricFamily(
            f"{_PREFIX}_reload_failures", "Changed files that could not be used.", value=self._keeper.failures
        )
