"""Istio's standard metric labels, from what the engine reports and what is known of the two workloads.

Rules as Istio's telemetry has them: what nobody knows is `unknown`; the source's view of the connection's
security is `unknown`, the destination's `none` without mTLS; both see `mutual_tls` in a tunnel, as in ambient
meshes; traffic that no service stands for carries the name of its catch-all cluster as service name.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from nodeagent.dataplane.report import Decision, StatKind, StatRow, WireProtocol, format_flags
from nodeagent.snapshot.values import ServiceRef, WorkloadRef

UNKNOWN: Final = "unknown"
PASSTHROUGH: Final = "PassthroughCluster"
INBOUND_PASSTHROUGH: Final = "InboundPassthroughCluster"
_CATCH_ALL: Final = frozenset({PASSTHROUGH, INBOUND_PASSTHROUGH, "BlackHoleCluster"})


class WorkloadLookup(Protocol):
    """Who is behind a uid or an address; None for who is not known."""

    def by_uid(self, uid: str) -> WorkloadRef | None:
        """A workload of this node, by the uid under which it was enrolled."""

    def by_address(self, address: bytes) -> WorkloadRef | None:
        """Any workload of the mesh, by one of its addresses (16 bytes)."""


class TcpLabels(NamedTuple):
    """Labels of istio_tcp_*; the names of the fields are those of the labels."""

    reporter: str
    source_workload: str
    source_canonical_service: str
    source_canonical_revision: str
    source_workload_namespace: str
    source_principal: str
    source_app: str
    source_version: str
    source_cluster: str
    destination_workload: str
    destination_workload_namespace: str
    destination_principal: str
    destination_app: str
    destination_version: str
    destination_service: str
    destination_canonical_service: str
    destination_canonical_revision: str
    destination_service_name: str
    destination_service_namespace: str
    destination_cluster: str
    request_protocol: str
    response_flags: str
    connection_security_policy: str


class DecisionLabels(NamedTuple):
    """Labels of nodeagent_policy_decisions_total. `policy` is `none` where ALLOW policies had none that matched."""

    destination_workload: str
    destination_workload_namespace: str
    policy: str
    decision: str
    request_protocol: str


class RequestLabels(NamedTuple):
    """Labels of istio_requests_total and of the request histograms."""

    tcp: TcpLabels
    response_code: str
    grpc_response_status: str


_NOBODY: Final = WorkloadRef("", "", "")


def _workload_name(workload: WorkloadRef) -> str:
    return workload.workload_name or workload.name or UNKNOWN


def _service(row: StatRow) -> tuple[str, str, str]:
    """destination_service, its name and its namespace."""
    service: ServiceRef | None
    if row.inbound:
        service = row.inbound_port.service if row.inbound_port else None
        cluster = INBOUND_PASSTHROUGH if row.inbound_port is None else row.inbound_port.xds_name
    else:
        service = row.cluster.service if row.cluster else None
        cluster = PASSTHROUGH if row.cluster is None else row.cluster.xds_name
    if service is not None:
        return service.host or UNKNOWN, service.name or UNKNOWN, service.namespace or UNKNOWN
    return UNKNOWN, cluster if cluster in _CATCH_ALL else UNKNOWN, UNKNOWN


def _principals(row: StatRow, local: WorkloadRef) -> tuple[str, str]:
    """Source's and destination's. Without mTLS nobody has proved an identity to anybody."""
    if not row.mutual_tls:
        return UNKNOWN, UNKNOWN
    peer, own = row.principal or UNKNOWN, local.principal or UNKNOWN
    return (peer, own) if row.inbound else (own, peer)


def _security(row: StatRow) -> str:
    if row.mutual_tls:
        return "mutual_tls"
    return "none" if row.inbound else UNKNOWN


def tcp_labels(row: StatRow, lookup: WorkloadLookup) -> TcpLabels:
    """The labels that all metrics share."""
    local = lookup.by_uid(row.workload) or _NOBODY
    if row.inbound:
        source, destination = lookup.by_address(row.peer) or _NOBODY, local
    else:
        remote = row.endpoint.workload if row.endpoint else None
        address = row.endpoint.address if row.endpoint else row.peer
        source, destination = local, remote or lookup.by_address(address) or _NOBODY
    service, service_name, service_namespace = _service(row)
    source_principal, destination_principal = _principals(row, local)
    return TcpLabels(
        reporter="destination" if row.inbound else "source",
        source_workload=_workload_name(source),
        source_canonical_service=source.canonical_name or UNKNOWN,
        source_canonical_revision=source.canonical_revision or UNKNOWN,
        source_workload_namespace=source.namespace or UNKNOWN,
        source_principal=source_principal,
        source_app=source.app or UNKNOWN,
        source_version=source.version or UNKNOWN,
        source_cluster=source.cluster or UNKNOWN,
        destination_workload=_workload_name(destination),
        destination_workload_namespace=destination.namespace or UNKNOWN,
        destination_principal=destination_principal,
        destination_app=destination.app or UNKNOWN,
        destination_version=destination.version or UNKNOWN,
        destination_service=service,
        destination_canonical_service=destination.canonical_name or UNKNOWN,
        destination_canonical_revision=destination.canonical_revision or UNKNOWN,
        destination_service_name=service_name,
        destination_service_namespace=service_namespace,
        destination_cluster=destination.cluster or UNKNOWN,
        request_protocol=_protocol(row),
        response_flags=format_flags(row.flags),
        connection_security_policy=_security(row),
    )


def request_labels(row: StatRow, lookup: WorkloadLookup) -> RequestLabels:
    """The labels of an HTTP row."""
    return RequestLabels(tcp_labels(row, lookup), str(row.status), "")


def _protocol(row: StatRow) -> str:
    if row.kind is not StatKind.HTTP:
        return "tcp"
    return "grpc" if row.protocol is WireProtocol.GRPC else "http"


def decision_labels(decision: Decision, lookup: WorkloadLookup) -> DecisionLabels:
    """Labels of what policies decided."""
    workload = lookup.by_uid(decision.workload)
    return DecisionLabels(
        (workload.workload_name if workload else "") or UNKNOWN,
        (workload.namespace if workload else "") or UNKNOWN,
        decision.policy or "none",
        decision.outcome.name.lower(),
        "tcp" if decision.protocol is WireProtocol.TCP else "http",
    )
