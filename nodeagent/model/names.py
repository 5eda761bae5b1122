"""Names that the mesh's parts agree on: hosts, clusters, listeners, SPIFFE identities, workload uids."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

INBOUND = "inbound"
OUTBOUND = "outbound"
PASSTHROUGH_CLUSTER = "PassthroughCluster"
INBOUND_PASSTHROUGH_CLUSTER = "InboundPassthroughCluster"
BLACK_HOLE_CLUSTER = "BlackHoleCluster"
VIRTUAL_OUTBOUND = "virtualOutbound"
VIRTUAL_INBOUND = "virtualInbound"
ALLOW_ANY = "allow_any"


@dataclass(frozen=True, slots=True)
class ClusterName:
    """`direction|port|subset|host` as istiod names clusters; subset and host may be empty."""

    direction: str
    port: int
    subset: str
    host: str

    def __str__(self) -> str:
        return f"{self.direction}|{self.port}|{self.subset}|{self.host}"

    @classmethod
    def parse(cls, name: str) -> ClusterName | None:
        """The parts of a cluster name; None if it is not of this form (PassthroughCluster, ...)."""
        parts = name.split("|")
        if len(parts) != 4 or parts[0] not in (INBOUND, OUTBOUND) or not parts[1].isdecimal():
            return None
        return cls(parts[0], int(parts[1]), parts[2], parts[3])


def service_host(name: str, namespace: str, domain: str) -> str:
    """The fully qualified host of a Kubernetes service."""
    return f"{name}.{namespace}.svc.{domain}"


def resolve_host(host: str, namespace: str, domain: str) -> str:
    """A host as written in a resource of `namespace`: a short name is that namespace's service.

    `*`, addresses and names with a dot are left alone (Istio API, Destination.host).
    """
    lowered = host.lower()
    if "." in lowered or ":" in lowered or lowered.startswith("*"):
        return lowered
    return service_host(lowered, namespace, domain)


def host_matches(pattern: str, host: str) -> bool:
    """Whether `host` is `pattern` or falls under it: `*.foo.com` covers `a.foo.com`, not `foo.com`."""
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> str:
    """The identity of a pod (SPIFFE ID, section 2; path as Istio lays it out)."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def pod_uid(cluster_id: str, namespace: str, name: str) -> str:
    """The xDS uid of a pod; opaque to receivers."""
    return f"{cluster_id}//Pod/{namespace}/{name}"


def workload_entry_uid(cluster_id: str, namespace: str, name: str) -> str:
    """The xDS uid of a WorkloadEntry."""
    return f"{cluster_id}/networking.istio.io/WorkloadEntry/{namespace}/{name}"


def entry_endpoint_uid(cluster_id: str, namespace: str, name: str, address: str) -> str:
    """The xDS uid of an endpoint that a ServiceEntry lists."""
    return f"{cluster_id}/networking.istio.io/ServiceEntry/{namespace}/{name}/{address}"


def is_ipv6(address: str) -> bool:
    """Whether a valid address is IPv6."""
    return ":" in address


def canonical_address(text: str) -> str | None:
    """The address in its one canonical spelling; None if it is not an address."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
