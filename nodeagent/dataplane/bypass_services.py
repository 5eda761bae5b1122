"""What of a view can be reached without the engine: which destinations, and which of their endpoints.

Reasons are texts for people (`nodeagent explain`); "" means that there is none against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final, TypeAlias

from nodeagent.dataplane.bypass_layout import Backend
from nodeagent.dataplane.ruleset import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT
from nodeagent.snapshot.values import (
    NEVER,
    Cluster,
    ClusterKind,
    Destination,
    Endpoint,
    Protocol,
    TunnelKind,
    View,
)

MAX_SLOTS: Final = 16_384
"""Of a service, as weights expand its endpoints; beyond, the engine chooses."""
_AGENTS_PORTS: Final = frozenset((OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT))
_ANY_ADDRESS: Final = frozenset((bytes(16), bytes(10) + b"\xff\xff" + bytes(4)))


@dataclass(frozen=True, slots=True)
class LocalWorkload:
    """A workload of this node that is served and captured by eBPF."""

    uid: str
    """Of its enrolment."""
    number: int
    """The engine's."""
    view: str
    addresses: tuple[bytes, ...]
    cookie: int
    """Of its network namespace."""
    identity: str = ""
    """Its SPIFFE ID; "" in an agent without a CA."""
    in_force: bool = True
    """Whether its certificate is; without a CA always."""


Slots: TypeAlias = tuple[Backend | None, ...]
"""Of which one is drawn for a connection; None: the engine chooses."""


Place: TypeAlias = tuple[bytes, int]
"""Address and port."""


def places_of(slots: Slots) -> dict[Place, int]:
    """Where the endpoints are that connect() may draw, and the engine's numbers of the workloads there."""
    return {(each.address, each.port): each.workload for each in slots if each is not None}


def why_not(destination: Destination, view: View) -> str:
    """Why the engine must have connections to a destination."""
    if destination.address is None:
        return "it is configured for any address"
    if destination.protocol is not Protocol.TCP:
        return f"it speaks {destination.protocol.name}"
    if len(destination.clusters) != 1:
        return "it is split between clusters" if destination.clusters else "it is passed through"
    cluster = view.clusters.get(destination.clusters[0].cluster)
    if cluster is None or cluster.kind is not ClusterKind.ENDPOINTS:
        return "its cluster has no endpoints of its own"
    return "its cluster has limits" if _has_limits(cluster) else ""


def _has_limits(cluster: Cluster) -> bool:
    limits = (
        cluster.max_connections,
        cluster.max_requests,
        cluster.max_pending,
        cluster.max_requests_per_connection,
    )
    return any(limit != NEVER for limit in limits) or cluster.idle_timeout_ms != 0


def why_not_directly(endpoint: Endpoint, workload: LocalWorkload, *, identities: bool) -> str:
    """Why a workload must not be connected to directly for an endpoint at its address. `identities`: there is a CA."""
    tunnel = endpoint.tunnel
    if endpoint.port in _AGENTS_PORTS:
        return "its port is the agent's"
    if tunnel is None:
        return "it is reached in plaintext, without an identity" if identities else ""
    if tunnel.kind is TunnelKind.MTLS:
        return "it takes mutual TLS itself"
    if tunnel.address not in _ANY_ADDRESS or tunnel.inner or tunnel.authority:
        return "it is reached through a waypoint or gateway"
    if not workload.identity or workload.identity not in tunnel.identities:
        return f"the identity that must answer is not the workload's own ({workload.identity or 'none'})"
    return ""


def slots_of(
    endpoints: Sequence[Endpoint], local: Mapping[bytes, LocalWorkload], *, identities: bool
) -> Slots | None:
    """The slots of a set of endpoints, by the workloads at local addresses; None: none of them is here, or the choice
    among them is not an even one."""
    if not any(endpoint.address in local for endpoint in endpoints):
        return None
    chosen = _best(endpoints)
    shares = _shares(chosen)
    if shares is None:
        return None
    found: list[Backend | None] = []
    for endpoint, share in zip(chosen, shares, strict=True):
        found.extend([_backend(endpoint, local.get(endpoint.address), identities)] * share)
    return tuple(found) if any(found) else None


def _best(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Those of the best priority; none if some of them are not healthy where others stand behind them, since then
    both are used."""
    best = min(endpoint.priority for endpoint in endpoints)
    first = [endpoint for endpoint in endpoints if endpoint.priority == best]
    healthy = [endpoint for endpoint in first if endpoint.healthy]
    if len(first) < len(endpoints) and len(healthy) < len(first):
        return []
    return healthy


def _shares(endpoints: Sequence[Endpoint]) -> list[int] | None:
    """How many slots each endpoint gets by its weight."""
    weights = [endpoint.weight for endpoint in endpoints]
    divisor = gcd(*weights)
    if not weights or sum(weights) > divisor * MAX_SLOTS:
        return None
    return [weight // divisor for weight in weights]


def _backend(endpoint: Endpoint, workload: LocalWorkload | None, identities: bool) -> Backend | None:
    if workload is None or why_not_directly(endpoint, workload, identities=identities):
        return None
    return Backend(endpoint.address, workload.number, endpoint.port)


def by_address(workloads: Iterable[LocalWorkload]) -> dict[bytes, LocalWorkload]:
    """Workloads by their addresses. One that two of them have means neither."""
    found: dict[bytes, LocalWorkload] = {}
    twice: set[bytes] = set()
    for workload in workloads:
        for address in workload.addresses:
            if address in found:
                twice.add(address)
            found[address] = workload
    return {address: workload for address, workload in found.items() if address not in twice}
