"""The control plane's own metrics, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PUSH_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one control plane. Labels are bounded: type URLs that are served, severities."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pushes = self._counter("xds_pushes", "xDS responses sent.", "type")
        self.resources = self._counter("xds_resources", "xDS resources sent in responses.", "type")
        self.nacks = self._counter("xds_nacks", "xDS responses that clients refused.", "type")
        self.unknown_types = self._counter("xds_unknown_types", "Requests for types that are not served.")
        self.refused = self._counter("xds_streams_refused", "Streams refused because of a limit.", "limit")
        self.changes = self._counter("config_batches", "Batches of configuration changes put in force.")
        self.key_fetches = self._counter(
            "key_fetches", "Fetches of key sets for tokens (JWKS): fetched or failed.", "outcome"
        )
        self.key_sets_left_out = Gauge(
            "nodeagent_controlplane_key_sets_left_out",
            "Key sets for tokens that are not fetched, over --key-sets.",
            registry=self.registry,
        )
        self.clients = Gauge(
            "nodeagent_controlplane_xds_clients",
            "Connected xDS streams.",
            ["transport"],
            registry=self.registry,
        )
        self.issues = Gauge(
            "nodeagent_controlplane_config_issues", "Findings in force.", ["severity"], registry=self.registry
        )
        self.push_seconds = Histogram(
            "nodeagent_controlplane_xds_push_seconds",
            "Time from a change of configuration to its xDS response being handed to the transport.",
            buckets=_PUSH_BUCKETS,
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"nodeagent_controlplane_{name}", text, labels, registry=self.registry)

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
