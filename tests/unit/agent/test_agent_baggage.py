"""What workloads tell the peers of their tunnels."""

from __future__ import annotations

from dataclasses import replace

from nodeagent.app.agent_baggage import LIMIT, baggage
from nodeagent.snapshot.values import WorkloadRef

WEB = WorkloadRef(
    uid="Kubernetes//Pod/shop/web-1",
    name="web-1",
    namespace="shop",
    workload_name="web",
    workload_type="deployment",
    canonical_name="web",
    canonical_revision="v1",
    cluster="Kubernetes",
)


def test_all_that_is_known() -> None:
    assert baggage(WEB, "eu/eu-1/rack") == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,"
        "service.name=web,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert baggage(replace(WEB, workload_type="", canonical_revision="", cluster="")) == (
        "k8s.namespace.name=shop,k8s.pod.name=web,service.name=web"
    )


def test_values_cannot_add_members() -> None:
    assert baggage(replace(WEB, canonical_name="a,b=c;d é", cluster="")).endswith(
        "service.name=a%2Cb%3Dc%3Bd%20%C3%A9,service.version=v1"
    )


def test_there_is_a_limit() -> None:
    value = baggage(replace(WEB, canonical_name="x" * LIMIT))
    assert len(value) <= LIMIT
    assert "service.name" not in value
    assert "service.version=v1" in value
