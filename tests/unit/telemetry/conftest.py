"""Rows and records with defaults, for the telemetry tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodeagent.dataplane.report import AccessRecord, StatKind, StatRow, WireProtocol
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import Cluster, Endpoint, InboundPort, Protocol, ServiceRef, WorkloadRef

REVIEWS = ServiceRef("reviews.default.svc.cluster.local", "reviews", "default")
CLUSTER = Cluster("v/outbound|9080|v1|reviews", "outbound|9080|v1|reviews", service=REVIEWS)


def workload(name: str, revision: str = "v1") -> WorkloadRef:
    return WorkloadRef(
        uid=f"Kubernetes//Pod/default/{name}-0",
        name=f"{name}-0",
        namespace="default",
        workload_name=f"{name}-{revision}",
        canonical_name=name,
        canonical_revision=revision,
        app=name,
        version=revision,
        cluster="Kubernetes",
        service_account=name,
        trust_domain="cluster.local",
    )


class Lookup:
    """The mesh of these tests."""

    def __init__(self) -> None:
        self.local = {"page": workload("productpage"), "reviews": workload("reviews")}
        self.addresses = {
            parse_address("10.1.0.1"): workload("productpage"),
            parse_address("10.1.0.2"): workload("reviews"),
        }

    def by_uid(self, uid: str) -> WorkloadRef | None:
        return self.local.get(uid)

    def by_address(self, address: bytes) -> WorkloadRef | None:
        return self.addresses.get(address)


@pytest.fixture
def lookup() -> Lookup:
    return Lookup()


def make_row(**changes: Any) -> StatRow:
    """One outbound HTTP request of productpage to reviews v1 that took 3 ms."""
    duration = [0] * 20
    duration[2] = 1
    size = [0] * 16
    size[0] = 1
    values: dict[str, Any] = {
        "kind": StatKind.HTTP,
        "workload": "page",
        "inbound": False,
        "protocol": WireProtocol.HTTP1,
        "peer": parse_address("10.96.0.7"),
        "cluster": CLUSTER,
        "endpoint": Endpoint(parse_address("10.1.0.2"), 9080, workload=workload("reviews")),
        "inbound_port": None,
        "flags": 0,
        "status": 200,
        "count": 1,
        "bytes_in": 0,
        "bytes_out": 100,
        "duration_us": 3000,
        "duration": tuple(duration),
        "request_size": tuple(size),
        "response_size": tuple(reversed(size)),
    }
    return StatRow(**(values | changes))


@pytest.fixture
def row() -> Callable[..., StatRow]:
    return make_row


@pytest.fixture
def inbound_row() -> StatRow:
    """The same request as its destination sees it."""
    return make_row(
        workload="reviews",
        inbound=True,
        peer=parse_address("10.1.0.1"),
        cluster=None,
        endpoint=None,
        inbound_port=InboundPort(9080, Protocol.HTTP, REVIEWS, "inbound|9080||"),
    )


def make_record(**changes: Any) -> AccessRecord:
    values: dict[str, Any] = {
        "workload": "page",
        "inbound": False,
        "protocol": WireProtocol.HTTP1,
        "http_minor": 1,
        "start_us": 1_480_521_145_123_456,
        "duration_us": 5400,
        "upstream_us": 4200,
        "bytes_in": 7,
        "bytes_out": 295,
        "status": 200,
        "flags": 0,
        "cluster": CLUSTER,
        "endpoint": None,
        "inbound_port": None,
        "downstream_remote": (parse_address("10.1.0.1"), 41000),
        "downstream_local": (parse_address("10.96.0.7"), 9080),
        "upstream_remote": (parse_address("10.1.0.2"), 9080),
        "upstream_local": (parse_address("10.1.0.1"), 41234),
        "method": "GET",
        "authority": "reviews:9080",
        "path": "/reviews/0?x=1",
        "user_agent": "curl/7.88.1",
        "forwarded_for": "",
        "request_id": "6d1a1c1f-0000-4000-8000-000000000000",
        "route": "default",
        "cluster_name": CLUSTER.name,
        "detail": "via_upstream",
        "upstream_failure": "",
    }
    return AccessRecord(**(values | changes))


@pytest.fixture
def record() -> Callable[..., AccessRecord]:
    return make_record
