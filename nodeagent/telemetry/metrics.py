"""Istio's standard metrics and the engine's counters, as a Prometheus page.

Rows come drained from the engine in batches; nothing in here is on the path of a request. All in one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from operator import add
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest

from nodeagent.dataplane.report import Counter, Decision, StatKind, StatRow
from nodeagent.telemetry import exposition
from nodeagent.telemetry.labels import (
    DecisionLabels,
    RequestLabels,
    TcpLabels,
    WorkloadLookup,
    decision_labels,
    request_labels,
    tcp_labels,
)
from nodeagent.telemetry.series import LIMIT, SeriesTable

DURATION_BOUNDS_MS: Final = (
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000",
    "60000", "300000", "600000", "1800000", "3600000",
)  # fmt: skip
"""Istio's, and na_stat_row.duration's."""
SIZE_BOUNDS_BYTES: Final = ("0", *(str(4**power) for power in range(1, 15)))
"""na_stat_row.request_size's."""

_OVERFLOW: Final = "overflow"
_ISTIO_NAMES: Final = {
    name: f"istio_{name}"
    for name in ("dns_requests_total", "dns_upstream_requests_total", "dns_upstream_failures_total")
}
"""Counters of the engine that have a name in Istio's node proxy, too, and are shown by that."""
_DNS_DURATION: Final = ("dns_upstream_request_duration_us_total", "dns_upstream_answers_total")
"""Shown together, as one summary."""
_PIECE: Final = 32  # series; up to 20 lines of 900 bytes each
_TCP_NAMES: Final = TcpLabels._fields
_REQUEST_NAMES: Final = (*_TCP_NAMES, "response_code", "grpc_response_status")


class _RequestSeries:
    """What is counted of requests with the same labels."""

    __slots__ = (
        "count", "duration", "duration_us", "request_bytes", "request_size", "response_bytes",
        "response_size", "text", "touched",
    )  # fmt: skip

    def __init__(self, labels: RequestLabels) -> None:
        self.text = exposition.label_text(
            _REQUEST_NAMES, (*labels.tcp, labels.response_code, labels.grpc_response_status)
        )
        self.touched = 0.0
        self.count = self.duration_us = self.request_bytes = self.response_bytes = 0
        self.duration: tuple[int, ...] = (0,) * (len(DURATION_BOUNDS_MS) + 1)
        self.request_size: tuple[int, ...] = (0,) * (len(SIZE_BOUNDS_BYTES) + 1)
        self.response_size: tuple[int, ...] = self.request_size

    def add(self, row: StatRow) -> None:
        """Count a row."""
        self.count += row.count
        self.duration_us += row.duration_us
        self.request_bytes += row.bytes_in
        self.response_bytes += row.bytes_out
        self.duration = tuple(map(add, self.duration, row.duration))
        self.request_size = tuple(map(add, self.request_size, row.request_size))
        self.response_size = tuple(map(add, self.response_size, row.response_size))


class _TcpSeries:
    """What is counted of connections with the same labels."""

    __slots__ = ("closed", "opened", "received", "sent", "text", "touched")

    def __init__(self, labels: TcpLabels) -> None:
        self.text = exposition.label_text(_TCP_NAMES, labels)
        self.touched = 0.0
        self.opened = self.closed = self.sent = self.received = 0

    def add(self, row: StatRow) -> None:
        """Count a row."""
        if row.kind is StatKind.TCP_OPENED:
            self.opened += row.count
        elif row.kind is StatKind.TCP_CLOSED:
            self.closed += row.count
        else:
            self.received += row.bytes_in
            self.sent += row.bytes_out


class _DecisionSeries:
    """How often a policy decided in one way."""

    __slots__ = ("count", "text", "touched")

    def __init__(self, labels: DecisionLabels) -> None:
        self.text = exposition.label_text(DecisionLabels._fields, labels)
        self.touched = 0.0
        self.count = 0


def _fold_decisions(labels: DecisionLabels) -> DecisionLabels:
    return DecisionLabels(_OVERFLOW, _OVERFLOW, _OVERFLOW, labels.decision, labels.request_protocol)


def _fold_tcp(labels: TcpLabels) -> TcpLabels:
    return TcpLabels(*(_OVERFLOW for _ in _TCP_NAMES))._replace(reporter=labels.reporter)


def _fold_requests(labels: RequestLabels) -> RequestLabels:
    return RequestLabels(_fold_tcp(labels.tcp), _OVERFLOW, _OVERFLOW)


class Metrics:
    """Adds up drained rows and renders the page. `registry` holds what the agent counts of itself, if
    anything."""

    def __init__(
        self,
        lookup: WorkloadLookup,
        registry: CollectorRegistry | None = None,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._registry = registry
        self._requests: SeriesTable[RequestLabels, _RequestSeries] = SeriesTable(
            _RequestSeries, _fold_requests, clock, limit
        )
        self._tcp: SeriesTable[TcpLabels, _TcpSeries] = SeriesTable(_TcpSeries, _fold_tcp, clock, limit)
        self._decisions: SeriesTable[DecisionLabels, _DecisionSeries] = SeriesTable(
            _DecisionSeries, _fold_decisions, clock, limit
        )

    def update(self, rows: Iterable[StatRow]) -> None:
        """Add rows drained from the engine."""
        for row in rows:
            if row.kind is StatKind.HTTP:
                self._requests.get(request_labels(row, self._lookup)).add(row)
            else:
                self._tcp.get(tcp_labels(row, self._lookup)).add(row)

    def update_decisions(self, decisions: Mapping[Decision, int]) -> None:
        """Add what policies decided."""
        for decision, count in decisions.items():
            self._decisions.get(decision_labels(decision, self._lookup)).count += count

    def pages(self, counters: Iterable[Counter] = ()) -> Iterator[bytes]:
        """The whole page: Istio's metrics, the engine's `counters`, the agent's own.

        It comes in pieces of some hundred KB at most that end with a line, for streaming: with 10,000 label
        sets it has 500 MB.
        """
        lines = chain(
            self._render_requests(),
            self._render_tcp(),
            self._render_decisions(),
            self._render_self(),
            _render_engine(counters),
        )
        while piece := "".join(islice(lines, _PIECE)):
            yield piece.encode()
        if self._registry is not None:
            yield generate_latest(self._registry)

    def _render_requests(self) -> Iterator[str]:
        yield exposition.header("istio_requests_total", "counter", "Requests.")
        for series in self._requests:
            yield exposition.sample("istio_requests_total", series.text, series.count)
        name = "istio_request_duration_milliseconds"
        yield exposition.header(name, "histogram", "Duration of requests, to the end of the response.")
        for series in self._requests:
            total = series.duration_us / 1000
            yield exposition.histogram(name, series.text, DURATION_BOUNDS_MS, series.duration, total)
        name = "istio_request_bytes"
        yield exposition.header(name, "histogram", "Size of request bodies.")
        for series in self._requests:
            yield exposition.histogram(
                name, series.text, SIZE_BOUNDS_BYTES, series.request_size, series.request_bytes
            )
        name = "istio_response_bytes"
        yield exposition.header(name, "histogram", "Size of response bodies.")
        for series in self._requests:
            yield exposition.histogram(
                name, series.text, SIZE_BOUNDS_BYTES, series.response_size, series.response_bytes
            )

    def _render_tcp(self) -> Iterator[str]:
        families: tuple[tuple[str, str, Callable[[_TcpSeries], int]], ...] = (
            ("connections_opened", "TCP connections opened.", lambda series: series.opened),
            ("connections_closed", "TCP connections closed.", lambda series: series.closed),
            ("sent_bytes", "Bytes sent to clients over TCP connections.", lambda series: series.sent),
            (
                "received_bytes",
                "Bytes received from clients over TCP connections.",
                lambda series: series.received,
            ),
        )
        for suffix, text, value in families:
            name = f"istio_tcp_{suffix}_total"
            yield exposition.header(name, "counter", text)
            yield from (exposition.sample(name, series.text, value(series)) for series in self._tcp)

    def _render_decisions(self) -> Iterator[str]:
        name = "nodeagent_policy_decisions_total"
        yield exposition.header(name, "counter", "Connections and requests on which a policy decided.")
        yield from (exposition.sample(name, series.text, series.count) for series in self._decisions)

    def _render_self(self) -> Iterator[str]:
        tables: dict[
            str,
            SeriesTable[RequestLabels, _RequestSeries]
            | SeriesTable[TcpLabels, _TcpSeries]
            | SeriesTable[DecisionLabels, _DecisionSeries],
        ] = {"requests": self._requests, "tcp": self._tcp, "policies": self._decisions}
        name = "nodeagent_metrics_series"
        yield exposition.header(name, "gauge", "Label sets of Istio's metrics that are held.")
        yield from (exposition.sample(name, f'family="{key}"', len(table)) for key, table in tables.items())
        name = "nodeagent_metrics_overflow_total"
        yield exposition.header(
            name, "counter", "Rows counted under the labels `overflow`: too many label sets."
        )
        yield from (
            exposition.sample(name, f'family="{key}"', table.overflows) for key, table in tables.items()
        )
        name = "nodeagent_metrics_series_dropped_total"
        yield exposition.header(name, "counter", "Idle label sets that made room for new ones.")
        yield from (
            exposition.sample(name, f'family="{key}"', table.dropped) for key, table in tables.items()
        )


def _render_engine(counters: Iterable[Counter]) -> Iterator[str]:
    found: dict[str, int] = {}
    for counter in counters:
        found[counter.name] = counter.value
        if counter.name in _DNS_DURATION:
            continue
        name = _ISTIO_NAMES.get(counter.name, f"nodeagent_engine_{counter.name}")
        yield exposition.header(name, "gauge" if counter.gauge else "counter", counter.help)
        yield exposition.sample(name, "", counter.value)
    if found.keys() >= set(_DNS_DURATION):
        name = "istio_dns_upstream_request_duration_seconds"
        micros, answers = (found[each] for each in _DNS_DURATION)
        yield exposition.header(name, "summary", "How long name servers took to answer.")
        yield exposition.sample(f"{name}_sum", "", micros / 1e6)
        yield exposition.sample(f"{name}_count", "", answers)
