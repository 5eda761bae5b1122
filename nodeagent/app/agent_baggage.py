"""What a workload tells the peers of its tunnels about itself (W3C Baggage, with the keys that ztunnel uses)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from nodeagent.snapshot.values import WorkloadRef

LIMIT: Final = 1024
"""NA_MAX_BAGGAGE: bytes of the whole."""
_SAFE: Final = "-._~/:@"
_POD: Final = "pod"


def baggage(ref: WorkloadRef, locality: str = "") -> str:
    """The value; what is not known is left out, as are the last members where there would be too much."""
    members: list[str] = []
    for name, value in _members(ref, locality):
        member = f"{name}={quote(value, safe=_SAFE)}"
        if value and sum(map(len, members)) + len(members) + len(member) <= LIMIT:
            members.append(member)
    return ",".join(members)


def _members(ref: WorkloadRef, locality: str) -> Iterator[tuple[str, str]]:
    region, _, rest = locality.partition("/")
    yield "k8s.cluster.name", ref.cluster
    yield "k8s.namespace.name", ref.namespace
    yield f"k8s.{ref.workload_type or _POD}.name", ref.workload_name
    yield "service.name", ref.canonical_name
    yield "service.version", ref.canonical_revision
    yield "cloud.region", region
    yield "cloud.availability_zone", rest.partition("/")[0]
