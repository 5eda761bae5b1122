"""An agent's state made up by hand: what admin and CLI tests show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from nodeagent.admin.explain import AccessExplanation, Asked, Line, RouteExplanation, Target
from nodeagent.admin.state import (
    AcceleratedWorkload,
    AccelerationStatus,
    AgentStatus,
    BpfMapStatus,
    BypassStatus,
    CaptureStatus,
    CertificateRow,
    ClusterRow,
    ConnectionRow,
    ControlPlaneStatus,
    EndpointRow,
    EngineStatus,
    EnrolledWorkload,
    EnrolmentStatus,
    ListenerRow,
    PolicyRow,
    RouteRow,
    ServicePortRow,
    ServiceRow,
    SnapshotStatus,
    StreamStatus,
    TypeStatus,
    WorkloadRow,
)

V1 = "outbound|9080|v1|reviews.default.svc.cluster.local"
V2 = "outbound|9080|v2|reviews.default.svc.cluster.local"

READY = AgentStatus(
    version="0.1.0",
    node="node-a",
    pid=42,
    started=1_800_000_000.0,
    uptime_seconds=3725.5,
    ready=True,
    not_ready=(),
    control_plane=ControlPlaneStatus(
        "127.0.0.1:15010",
        True,
        1_800_000_001.0,
        streams=(
            StreamStatus(
                "workloads",
                True,
                "node-a",
                types=(TypeStatus("type.googleapis.com/istio.workload.Address", "SYNCED", 12, "7"),),
            ),
            StreamStatus(
                "default/productpage",
                True,
                "sidecar~10.244.1.2~productpage.default~default.svc.cluster.local",
                types=(
                    TypeStatus(
                        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                        "STALE",
                        3,
                        "6",
                        nack=f"{V2}: no endpoints type",
                        nacks=2,
                    ),
                ),
            ),
        ),
    ),
    capture=CaptureStatus(
        "ebpf",
        "asked for by --capture",
        {"captured": 12},
        (
            BpfMapStatus("workloads", 1_500_000, 4096, 4096, 2),
            BpfMapStatus("original", 100_000),
        ),
    ),
    bypass=BypassStatus("on", "", 12, 15, 40, 3, {"backends": 2}, 4, 9),
    engine=EngineStatus(1, 5, {"connections_total": 17}),
    enrolment=EnrolmentStatus(
        "/run/zds.sock",
        True,
        workloads=(
            EnrolledWorkload(
                "u1", "productpage", "default", "productpage", "enrolled", "default/productpage"
            ),
            EnrolledWorkload("u2", "broken", "default", "default", "failed", error="netns is gone"),
        ),
    ),
    snapshot=SnapshotStatus("7", True, 9),
    certificates=(
        CertificateRow("spiffe://cluster.local/ns/a/sa/b", "Available", 1.8e9, 1.8e9 + 86400, "ab"),
    ),
    warnings=("VirtualService default/x: fault is not supported",),
    acceleration=AccelerationStatus(
        (AcceleratedWorkload("productpage", "default", "accelerated"),),
        sockets=4,
        counters={"joined": 4, "redirected": 9, "pass_unread": 2, "pass_full": 0},
    ),
)


class FakeState:
    """A fixed state; `status_value`, `workload_rows` and so on may be replaced by a test."""

    def __init__(self) -> None:
        self.status_value = READY
        self.unsettled_value: tuple[str, ...] = ()
        self.quits = 0
        self.asked: list[Asked] = []
        target = Target(
            "10.244.1.3",
            9080,
            True,
            "default/productpage",
            "node-a",
            ("spiffe://cluster.local/ns/default/sa/b",),
        )
        principal = "spiffe://cluster.local/ns/default/sa/productpage"
        self.route = RouteExplanation(
            (Line("service", "default/reviews"),),
            "10.244.1.2",
            principal,
            True,
            "reviews:9080",
            "/x",
            (target,),
        )
        self.access = AccessExplanation(
            (Line("stage", "deny"), Line("policy", "p matched"), Line("verdict", "denied 403 why")),
            False,
            403,
            "why",
        )
        self.workload_rows: Iterable[WorkloadRow] = (
            WorkloadRow(
                name="reviews-v1",
                namespace="default",
                uid="Kubernetes//Pod/default/reviews-v1",
                addresses=("10.244.1.3", "fd00:10:244:1::3"),
                node="node-a",
                service_account="reviews",
                protocol="TCP",
                status="HEALTHY",
                services=("default/reviews.default.svc.cluster.local",),
                locality="eu/a",
                local=True,
            ),
            WorkloadRow(
                name="db",
                namespace="data",
                uid="Kubernetes//Pod/data/db",
                addresses=("10.244.2.4",),
                node="node-b",
                service_account="default",
                protocol="HBONE",
                status="UNHEALTHY",
            ),
        )

    def break_ready(self, *reasons: str) -> None:
        self.status_value = dataclasses.replace(READY, ready=False, not_ready=reasons)

    def status(self) -> AgentStatus:
        return self.status_value

    def not_ready(self) -> tuple[str, ...]:
        return self.status_value.not_ready

    def unsettled(self) -> tuple[str, ...]:
        return self.unsettled_value

    def workloads(self) -> Iterable[WorkloadRow]:
        return self.workload_rows

    def services(self) -> Iterable[ServiceRow]:
        return (
            ServiceRow(
                "reviews",
                "default",
                "reviews.default.svc.cluster.local",
                ("10.96.0.7",),
                (ServicePortRow(9080, 9080, "http", "HTTP"),),
                3,
                2,
            ),
        )

    def routes(self) -> Iterable[RouteRow]:
        return (
            RouteRow(
                "default/productpage",
                "9080",
                "reviews.default.svc.cluster.local:9080",
                ("reviews", "reviews.default"),
                "/* header(end-user)=jason",
                V2,
                "jason",
                "default",
                (V2,),
                15000,
            ),
        )

    def clusters(self) -> Iterable[ClusterRow]:
        fqdn = "reviews.default.svc.cluster.local"
        return (
            ClusterRow(
                "default/productpage",
                V1,
                fqdn,
                9080,
                "v1",
                "outbound",
                "EDS",
                "default",
                "ROUND_ROBIN",
                1,
                1,
            ),
            ClusterRow(
                "default/productpage", "PassthroughCluster", "PassthroughCluster", 0, "", "", "ORIGINAL_DST"
            ),
        )

    def endpoints(self) -> Iterable[EndpointRow]:
        return (
            EndpointRow(
                "default/productpage",
                V1,
                "10.244.1.3",
                9080,
                "HEALTHY",
                workload="reviews-v1",
                namespace="default",
            ),
            EndpointRow("default/productpage", V1, "fd00::3", 9080, "UNHEALTHY"),
        )

    def listeners(self) -> Iterable[ListenerRow]:
        return (
            ListenerRow(
                "default/productpage",
                "*",
                9080,
                "OUTBOUND",
                "HTTP",
                "Route: 9080",
                "0.0.0.0_9080",
                "default",
            ),
        )

    def policies(self) -> Iterable[PolicyRow]:
        common = ("default", "AuthorizationPolicy", "DENY", "Namespace", ("default/reviews-v1",), 1, False)
        return (
            PolicyRow("lock", *common, "Authorization", "in force"),
            PolicyRow("bad", *common, "Authorization", "closed", "scope 9 is not known"),
        )

    def authorizations(self) -> Iterable[Mapping[str, Any]]:
        return (
            {"name": "lock", "namespace": "default", "scope": "Namespace", "action": "Deny", "rules": []},
        )

    async def explain_route(self, asked: Asked) -> RouteExplanation:
        self.asked.append(asked)
        return self.route

    def explain_access(self, asked: Asked) -> AccessExplanation:
        self.asked.append(asked)
        return self.access

    def connections(self) -> Iterable[ConnectionRow]:
        return (
            ConnectionRow(
                7,
                "productpage",
                "default",
                "OUTBOUND",
                "HTTP/1.1",
                "idle",
                "10.244.1.2:40000",
                "10.96.0.7:9080",
                61_000,
                1_500,
                3_000_000,
            ),
        )

    def config_dump(self) -> Iterable[tuple[str, Iterable[Mapping[str, Any]]]]:
        return (("xdsClusters", ({"name": V1},)),)

    def metrics(self) -> Iterable[bytes]:
        return [b"# TYPE istio_requests_total counter\n", b'istio_requests_total{reporter="source"} 3\n']

    def quit(self) -> None:
        self.quits += 1
