"""`/config_dump`: everything in force, in one JSON object.

Sections `workloads`, `services`, `policies` and `certificates` have the shape of ztunnel's, so that `istioctl
ztunnel-config` reads them; the lists of the admin API and the xDS resources received follow.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nodeagent.admin.state import AgentState, CertificateRow, ServiceRow, WorkloadRow


def workload(row: WorkloadRow) -> dict[str, Any]:
    """Return a workload as ztunnel dumps it."""
    return {
        "uid": row.uid,
        "workloadIps": row.addresses,
        "protocol": row.protocol,
        "name": row.name,
        "namespace": row.namespace,
        "trustDomain": row.trust_domain,
        "serviceAccount": row.service_account,
        "network": row.network,
        "workloadName": row.workload_name,
        "workloadType": row.workload_type.lower(),
        "canonicalName": row.canonical_name,
        "canonicalRevision": row.canonical_revision,
        "clusterId": row.cluster_id,
        "node": row.node,
        "status": row.status.capitalize(),
        "services": row.services,
        "locality": _locality(row.locality),
        **_waypoint(row.waypoint),
    }


def _locality(text: str) -> dict[str, str]:
    return dict(zip(("region", "zone", "subzone"), filter(None, text.split("/")), strict=False))


def _waypoint(text: str) -> dict[str, Any]:
    return {"waypoint": {"destination": text}} if text else {}


def service(row: ServiceRow) -> dict[str, Any]:
    """Return a service as ztunnel dumps it; its endpoints are counted, not listed."""
    return {
        "name": row.name,
        "namespace": row.namespace,
        "hostname": row.hostname,
        "vips": [f"/{address}" for address in row.addresses],
        "ports": {str(port.port): port.target_port for port in row.ports},
        "endpointCount": row.endpoints,
        "healthyEndpointCount": row.healthy,
        **_waypoint(row.waypoint),
    }


def certificate(row: CertificateRow) -> dict[str, Any]:
    """Return a certificate as ztunnel dumps it, without the key and the PEM."""
    chain = {
        "serialNumber": row.serial,
        "validFrom": _time(row.not_before),
        "expirationTime": _time(row.not_after),
    }
    state = f"{row.state}: {row.error}" if row.error and not row.serial else row.state
    return {"identity": row.identity, "state": state, "certChain": [chain] if row.serial else []}


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sections(state: AgentState) -> Iterator[tuple[str, Iterable[Mapping[str, Any] | Any]]]:
    """Yield (section, items), each to be written as a JSON array."""
    yield "workloads", map(workload, state.workloads())
    yield "services", map(service, state.services())
    yield "policies", state.authorizations()
    yield "certificates", map(certificate, state.status().certificates)
    yield "listeners", state.listeners()
    yield "routes", state.routes()
    yield "clusters", state.clusters()
    yield "endpoints", state.endpoints()
    yield from state.config_dump()
