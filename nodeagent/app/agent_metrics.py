"""What the agent counts of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_enrolment import Enrolment
from nodeagent.app.agent_keys import KeySets
from nodeagent.app.agent_ports import Dataplane
from nodeagent.app.agent_saver import Saver
from nodeagent.app.agent_views import Views
from nodeagent.app.agent_workloads import WorkloadStream
from nodeagent.enroll.workload_file import WorkloadFile
from nodeagent.enroll.zds import ZdsClient
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.types import short_name


class AgentCollector(Collector):
    """Reads the agent's parts when Prometheus asks."""

    def __init__(
        self,
        workloads: WorkloadStream,
        views: Views,
        configuration: Configuration,
        enrolment: Enrolment,
        zds: ZdsClient,
        file: WorkloadFile | None,
        saver: Saver,
    ) -> None:
        self._workloads = workloads
        self._views = views
        self._configuration = configuration
        self._enrolled = enrolment
        self._zds = zds
        self._file = file
        self._saver = saver

    def register(self) -> CollectorRegistry:
        """A registry of its own with this collector."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._xds()
        yield from self._demand()
        yield from self._snapshots()
        yield from self._enrolment()

    def _streams(self) -> list[DeltaStream]:
        return [self._workloads.stream, *(view.stream for view in self._views)]

    def _xds(self) -> Iterator[Metric]:
        streams = self._streams()
        yield _gauge("xds_streams", "xDS streams, one of workloads and one a view.", len(streams))
        connected = sum(stream.state.connected for stream in streams)
        yield _gauge("xds_streams_connected", "xDS streams that are connected.", connected)
        connects = sum(stream.state.connects for stream in streams)
        yield _counter("xds_connects", "Connections of the present xDS streams.", connects)
        held = GaugeMetricFamily("nodeagent_xds_resources", "xDS resources held.", labels=["type"])
        nacks = CounterMetricFamily("nodeagent_xds_nacks", "Rejected xDS responses.", labels=["type"])
        counts: dict[str, tuple[int, int]] = {}
        for stream in streams:
            for url, state in stream.protocol.types.items():
                resources, rejected = counts.get(url, (0, 0))
                counts[url] = (resources + len(state.resources), rejected + state.nacks)
        for url, (resources, rejected) in counts.items():
            held.add_metric([short_name(url)], resources)
            nacks.add_metric([short_name(url)], rejected)
        yield held
        yield nacks

    def _demand(self) -> Iterator[Metric]:
        counters = self._views.counters
        yield _counter(
            "on_demand_evicted", "Names dropped because --on-demand-limit was reached.", counters.evicted
        )
        yield _counter("on_demand_expired", "Names dropped after disuse.", counters.expired)

    def _snapshots(self) -> Iterator[Metric]:
        configuration = self._configuration
        version = configuration.applied.version
        yield _gauge("snapshot_version", "The snapshot in force.", version)
        yield _gauge("snapshot_seconds", "How long the last change took.", configuration.state.seconds)
        yield _counter("snapshot_failures", "Changes that were refused.", configuration.state.failures)
        yield _counter(
            "last_good_failures", "Failures to keep the configuration on disk.", self._saver.failures
        )

    def _enrolment(self) -> Iterator[Metric]:
        counters = self._zds.counters
        enrolled = sum(workload.state == "enrolled" for workload in self._enrolled)
        yield _gauge("workloads_enrolled", "Workloads of this node.", enrolled)
        yield _counter("zds_connections", "Connections to the CNI side.", counters.connections)
        yield _counter("zds_add_failures", "Workloads that were refused.", counters.add_failures)
        yield _counter("zds_malformed", "Malformed requests of the CNI side.", counters.malformed)
        yield _counter("zds_over_limit", "Workloads refused over the limit.", counters.over_limit)
        if self._file is not None:
            told = self._file.counters
            yield _counter("workload_file_loads", "Times the file of workloads came in force.", told.loads)
            failures = told.load_failures
            yield _counter(
                "workload_file_failures", "Times the file of workloads could not be read.", failures
            )
            failures = told.add_failures
            yield _counter(
                "workload_file_add_failures", "Times a workload of the file was refused.", failures
            )


class KeySetCollector(Collector):
    """Key sets of token issuers that the agent fetches itself."""

    def __init__(self, keys: KeySets) -> None:
        self._keys = keys

    def collect(self) -> Iterator[Metric]:
        """All families."""
        held, empty = self._keys.counts()
        yield _gauge("key_sets", "Key sets of token issuers that are kept fresh.", held)
        yield _gauge("key_sets_missing", "Of those, never fetched so far: their tokens are refused.", empty)
        yield _gauge(
            "key_sets_left_out", "Key sets that are not fetched, over --key-sets.", self._keys.left_out
        )


class CaptureCollector(Collector):
    """What capture itself counts: programs in the kernel, before there is a connection of the engine's."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane

    def collect(self) -> Iterator[Metric]:
        """All families, empty in a mode that has neither programs nor maps."""
        events = CounterMetricFamily(
            "nodeagent_capture_events", "Connections that the kernel captured, or refused.", labels=["event"]
        )
        for name, value in self._dataplane.capture_counters().items():
            events.add_metric([name], value)
        yield events
        yield from self._maps()

    def _maps(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "nodeagent_bpf_map_memory_bytes", "Kernel memory of BPF maps.", labels=["map"]
        )
        entries = GaugeMetricFamily("nodeagent_bpf_map_entries", "Entries of BPF maps.", labels=["map"])
        limit = GaugeMetricFamily("nodeagent_bpf_map_limit", "Most entries of BPF maps.", labels=["map"])
        full = CounterMetricFamily(
            "nodeagent_bpf_map_full", "Entries that BPF maps had no room for.", labels=["map"]
        )
        for each in self._dataplane.capture_maps():
            memory.add_metric([each.name], each.memory)
            full.add_metric([each.name], each.full)
            if each.entries is not None and each.limit is not None:
                entries.add_metric([each.name], each.entries)
                limit.add_metric([each.name], each.limit)
        yield from (memory, entries, limit, full)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"nodeagent_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"nodeagent_{name}", text, value=value)
