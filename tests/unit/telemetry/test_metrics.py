"""Istio's metrics: label values and sums, through Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as OwnCounter
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from nodeagent.dataplane.report import (
    Counter,
    Decision,
    Outcome,
    ResponseFlag,
    StatKind,
    StatRow,
    WireProtocol,
)
from nodeagent.snapshot.address import parse_address
from nodeagent.telemetry.metrics import DURATION_BOUNDS_MS, Metrics

RowMaker = Callable[..., StatRow]


def samples(page: bytes, name: str) -> list[Sample]:
    families = text_string_to_metric_families(page.decode())
    return [sample for family in families for sample in family.samples if sample.name == name]


def only(page: bytes, name: str) -> Sample:
    found = samples(page, name)
    assert len(found) == 1, found
    return found[0]


def rendered(metrics: Metrics, *rows: StatRow) -> bytes:
    metrics.update(rows)
    return b"".join(metrics.pages())


REQUEST_LABELS = {
    "reporter": "source",
    "source_workload": "productpage-v1",
    "source_canonical_service": "productpage",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "default",
    "source_principal": "unknown",
    "source_app": "productpage",
    "source_version": "v1",
    "source_cluster": "Kubernetes",
    "destination_workload": "reviews-v1",
    "destination_workload_namespace": "default",
    "destination_principal": "unknown",
    "destination_app": "reviews",
    "destination_version": "v1",
    "destination_service": "reviews.default.svc.cluster.local",
    "destination_canonical_service": "reviews",
    "destination_canonical_revision": "v1",
    "destination_service_name": "reviews",
    "destination_service_namespace": "default",
    "destination_cluster": "Kubernetes",
    "request_protocol": "http",
    "response_code": "200",
    "grpc_response_status": "",
    "response_flags": "-",
    "connection_security_policy": "unknown",
}


def test_source_labels(lookup: object, row: RowMaker) -> None:
    page = rendered(Metrics(lookup), row())
    assert only(page, "istio_requests_total").labels == REQUEST_LABELS


def test_destination_labels(lookup: object, inbound_row: StatRow) -> None:
    page = rendered(Metrics(lookup), inbound_row)
    expected = REQUEST_LABELS | {"reporter": "destination", "connection_security_policy": "none"}
    assert only(page, "istio_requests_total").labels == expected


def test_a_tunnel_proves_who_is_at_its_ends(row: RowMaker, inbound_row: StatRow, lookup: Any) -> None:
    page, reviews = (f"spiffe://cluster.local/ns/default/sa/{name}" for name in ("productpage", "reviews"))
    proved = {
        "source_principal": page,
        "destination_principal": reviews,
        "connection_security_policy": "mutual_tls",
    }
    outbound = rendered(Metrics(lookup), row(mutual_tls=True, principal=reviews))
    assert only(outbound, "istio_requests_total").labels == REQUEST_LABELS | proved
    inbound = rendered(Metrics(lookup), replace(inbound_row, mutual_tls=True, principal=page))
    expected = REQUEST_LABELS | proved | {"reporter": "destination"}
    assert only(inbound, "istio_requests_total").labels == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"workload": "who"},
            {"source_workload": "unknown", "source_app": "unknown", "source_cluster": "unknown"},
        ),
        (
            {"cluster": None, "endpoint": None, "peer": parse_address("1.2.3.4")},
            {
                "destination_service": "unknown",
                "destination_service_name": "PassthroughCluster",
                "destination_workload": "unknown",
            },
        ),
        ({"endpoint": None, "peer": parse_address("10.1.0.2")}, {"destination_workload": "reviews-v1"}),
        ({"status": 503, "flags": int(ResponseFlag.UF)}, {"response_code": "503", "response_flags": "UF"}),
        ({"status": 0, "flags": 0b101}, {"response_code": "0", "response_flags": "UH,UO"}),
        ({"protocol": WireProtocol.GRPC}, {"request_protocol": "grpc"}),
    ],
)
def test_label_rules(
    lookup: object, row: RowMaker, changes: dict[str, object], expected: dict[str, str]
) -> None:
    labels = only(rendered(Metrics(lookup), row(**changes)), "istio_requests_total").labels
    assert {name: labels[name] for name in expected} == expected


def test_inbound_port_without_a_service(lookup: object, row: RowMaker) -> None:
    page = rendered(Metrics(lookup), row(inbound=True, workload="reviews", cluster=None, endpoint=None))
    labels = only(page, "istio_requests_total").labels
    assert labels["destination_service_name"] == "InboundPassthroughCluster"


def test_rows_of_the_same_labels_add_up(lookup: object, row: RowMaker) -> None:
    metrics = Metrics(lookup)
    metrics.update([row(), row(count=2, duration_us=5000)])
    page = rendered(metrics, row(status=404))
    counts = {
        sample.labels["response_code"]: sample.value for sample in samples(page, "istio_requests_total")
    }
    assert counts == {"200": 3, "404": 1}


def test_histograms_have_istios_buckets(lookup: object, row: RowMaker) -> None:
    page = rendered(Metrics(lookup), row())
    name = "istio_request_duration_milliseconds"
    buckets = {sample.labels["le"]: sample.value for sample in samples(page, f"{name}_bucket")}
    assert list(buckets) == [*DURATION_BOUNDS_MS, "+Inf"]
    assert len(buckets) == 20
    assert buckets["1"] == 0
    assert buckets["5"] == buckets["+Inf"] == 1, "cumulative"
    assert only(page, f"{name}_sum").value == 3
    assert only(page, f"{name}_count").value == 1


def test_body_sizes(lookup: object, row: RowMaker) -> None:
    page = rendered(Metrics(lookup), row())
    request = {sample.labels["le"]: sample.value for sample in samples(page, "istio_request_bytes_bucket")}
    response = {sample.labels["le"]: sample.value for sample in samples(page, "istio_response_bytes_bucket")}
    assert len(request) == 16
    assert request["0"] == 1
    assert response[str(4**14)] == 0
    assert response["+Inf"] == 1
    assert only(page, "istio_response_bytes_sum").value == 100


def test_tcp(lookup: object, row: RowMaker) -> None:
    page = rendered(
        Metrics(lookup),
        row(kind=StatKind.TCP_OPENED, protocol=WireProtocol.TCP),
        row(kind=StatKind.TCP_BYTES, protocol=WireProtocol.TCP, bytes_in=10, bytes_out=20),
        row(kind=StatKind.TCP_CLOSED, protocol=WireProtocol.TCP),
    )
    assert samples(page, "istio_requests_total") == []
    values = {
        name: only(page, f"istio_tcp_{name}_total").value
        for name in ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")
    }
    assert values == {
        "connections_opened": 1,
        "connections_closed": 1,
        "sent_bytes": 20,
        "received_bytes": 10,
    }
    labels = only(page, "istio_tcp_sent_bytes_total").labels
    assert labels["request_protocol"] == "tcp"
    assert set(REQUEST_LABELS) - set(labels) == {"response_code", "grpc_response_status"}


def test_too_many_label_sets_fold_into_overflow(lookup: object, row: RowMaker) -> None:
    metrics = Metrics(lookup, limit=10)
    page = rendered(metrics, *(row(status=200 + number) for number in range(25)))
    found = samples(page, "istio_requests_total")
    assert len(found) == 11
    folded = [sample for sample in found if sample.labels["response_code"] == "overflow"]
    assert folded[0].value == 15
    assert folded[0].labels["reporter"] == "source"
    assert folded[0].labels["source_workload"] == "overflow"
    assert sum(sample.value for sample in found) == 25, "nothing is lost"
    overflow = samples(page, "nodeagent_metrics_overflow_total")
    assert {sample.labels["family"]: sample.value for sample in overflow} == {
        "requests": 15,
        "tcp": 0,
        "policies": 0,
    }


def test_idle_series_make_room(lookup: object, row: RowMaker) -> None:
    times = iter([0.0, 0.0, 2000.0])
    metrics = Metrics(lookup, limit=2, clock=lambda: next(times))
    page = rendered(metrics, row(status=200), row(status=201), row(status=202))
    assert [sample.labels["response_code"] for sample in samples(page, "istio_requests_total")] == ["202"]
    assert samples(page, "nodeagent_metrics_series_dropped_total")[0].value == 2


def test_label_values_are_escaped(lookup: object, row: RowMaker) -> None:
    lookup.local["page"] = lookup.local["page"].__class__("u", 'a"b\\c\nd', "default")  # type: ignore[attr-defined]
    page = rendered(Metrics(lookup), row())
    assert only(page, "istio_requests_total").labels["source_workload"] == 'a"b\\c\nd'


def test_engine_counters_and_the_agents_own(lookup: object) -> None:
    registry = CollectorRegistry()
    OwnCounter("nodeagent_something", "Something.", registry=registry).inc()
    engine = [Counter("accepts_total", "Accepted.", False, 3), Counter("active", "Now.", True, 2)]
    page = b"".join(Metrics(lookup, registry).pages(engine))
    assert only(page, "nodeagent_engine_accepts_total").value == 3
    assert only(page, "nodeagent_engine_active").value == 2
    assert only(page, "nodeagent_something_total").value == 1
    types = {family.name: family.type for family in text_string_to_metric_families(page.decode())}
    assert types["nodeagent_engine_accepts"] == "counter"
    assert types["nodeagent_engine_active"] == "gauge"


def test_dns_is_counted_by_the_names_of_istio_s_node_proxy(lookup: object) -> None:
    engine = [
        Counter("dns_requests_total", "Asked.", False, 9),
        Counter("dns_upstream_requests_total", "Passed on.", False, 5),
        Counter("dns_upstream_failures_total", "Failed.", False, 1),
        Counter("dns_upstream_request_duration_us_total", "Took.", False, 2_500),
        Counter("dns_upstream_answers_total", "Answered.", False, 4),
    ]
    page = b"".join(Metrics(lookup).pages(engine))
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert {name: value for name, value in values.items() if "dns" in name} == {
        "istio_dns_requests_total": 9,
        "istio_dns_upstream_requests_total": 5,
        "istio_dns_upstream_failures_total": 1,
        "istio_dns_upstream_request_duration_seconds_sum": 0.0025,
        "istio_dns_upstream_request_duration_seconds_count": 4,
    }


def test_many_series_come_in_small_pieces(lookup: object, row: RowMaker) -> None:
    metrics = Metrics(lookup)
    metrics.update(row(status=number) for number in range(1000))
    pieces = list(metrics.pages())
    assert max(map(len, pieces)) < 1_000_000
    assert all(piece.endswith(b"\n") for piece in pieces)
    page = b"".join(pieces).decode()
    assert sum(line.startswith("istio_requests_total{") for line in page.splitlines()) == 1000
    assert b"".join(pieces).count(b"\n") > 57_000


def test_decisions_of_policies(lookup: object, inbound_row: StatRow) -> None:
    metrics = Metrics(lookup)
    denied = Decision(inbound_row.workload, "ns[a]-policy[b]-rule[0]", Outcome.DENIED, WireProtocol.HTTP1)
    nobody = Decision("gone", "", Outcome.DENIED, WireProtocol.TCP)
    metrics.update_decisions({denied: 2, nobody: 1})
    metrics.update_decisions({denied: 3})
    found = samples(b"".join(metrics.pages()), "nodeagent_policy_decisions_total")
    assert {(sample.labels["policy"], sample.value) for sample in found} == {
        ("ns[a]-policy[b]-rule[0]", 5),
        ("none", 1),
    }
    assert found[0].labels["decision"] == "denied"
    assert [sample.labels["request_protocol"] for sample in found] == ["http", "tcp"]
    assert found[0].labels["destination_workload"] != "unknown"
    assert found[1].labels["destination_workload"] == "unknown"
