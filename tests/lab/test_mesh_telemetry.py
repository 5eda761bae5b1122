"""What the mesh tells of its traffic: exact counts with Istio's names and labels, and access records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness.mesh import Mesh, eventually
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.lab

REVIEWS = "http://reviews:9080/"


def total(mesh: Mesh, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, over both nodes."""
    return sum(
        sample.value
        for node in ("node-a", "node-b")
        for family in text_string_to_metric_families(mesh.metrics(node))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_requests_are_counted_on_both_sides(mesh: Mesh) -> None:
    labels = {
        "source_workload": "client",
        "source_workload_namespace": "default",
        "destination_service": "reviews.default.svc.cluster.local",
        "destination_service_name": "reviews",
        "destination_service_namespace": "default",
        "destination_workload_namespace": "default",
        "request_protocol": "http",
        "response_code": "418",
        "response_flags": "-",
        "destination_app": "reviews",
    }

    def counts() -> tuple[float, float]:
        return (
            total(mesh, "istio_requests_total", reporter="source", **labels),
            total(mesh, "istio_requests_total", reporter="destination", **labels),
        )

    before = counts()
    assert mesh.statuses("client", 40, f"{REVIEWS}counted", "-H", "x-echo-status: 418") == {"418": 40}
    wanted = (before[0] + 40, before[1] + 40)
    eventually(counts, lambda seen: seen == wanted)
    by_version = [
        total(mesh, "istio_requests_total", reporter="destination", destination_version=version, **labels)
        for version in ("v1", "v2")
    ]
    assert all(by_version), by_version
    assert total(mesh, "istio_request_duration_milliseconds_count", reporter="source", **labels) == wanted[0]


def test_tcp_connections_and_bytes_are_counted(mesh: Mesh) -> None:
    labels = {"source_workload": "client", "destination_service_name": "tcp-echo", "request_protocol": "tcp"}

    def counts() -> list[float]:
        return [
            total(mesh, f"istio_tcp_{what}_total", reporter="source", **labels)
            for what in ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")
        ]

    before = counts()
    out = mesh.exec("client", "sh", "-c", "head -c 5000 /dev/zero | nc -N -w 5 tcp-echo 9000 | wc -c")
    assert out.strip() == "5000"
    eventually(
        counts, lambda seen: seen == [before[0] + 1, before[1] + 1, before[2] + 5000, before[3] + 5000]
    )


def test_access_log_has_the_request_in_istios_format(mesh: Mesh) -> None:
    marker = "/access-log-marker"
    mesh.curl("client", "-A", "curl-in-test", f"http://reviews:9080{marker}?a=b")
    log = Path("/run/nodeagent/lab", mesh.name, "node", "node-a", "access.log")
    lines = eventually(
        lambda: [line for line in log.read_text().splitlines() if marker in line], lambda seen: len(seen) >= 1
    )
    outbound = next(line for line in lines if "outbound|9080||reviews" in line)
    begin = r'\[\d{4}-\d\d-\d\dT[0-9:.]+Z\] "GET /access-log-marker\?a=b HTTP/1\.1" '
    assert re.match(begin + r'200 - via_upstream - "-" 0 \d+ ', outbound)
    assert '"curl-in-test"' in outbound
    assert '"reviews:9080"' in outbound


def test_refused_upstream_is_flagged(mesh: Mesh) -> None:
    labels = {"reporter": "source", "response_code": "503", "source_workload": "client"}
    before = total(mesh, "istio_requests_total", **labels)
    mesh.apply(
        """
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: default}
spec: {selector: {app: nobody}, ports: [{name: http, port: 8080}]}
"""
    )
    assert mesh.statuses("client", 3, "http://nobody:8080/") == {"503": 3}
    eventually(lambda: total(mesh, "istio_requests_total", **labels), lambda seen: seen == before + 3)
    assert total(mesh, "istio_requests_total", response_flags="UH", **labels) >= 3
