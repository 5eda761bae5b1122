"""Endpoints: where a port of a service is really served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodeagent.model.workload import Locality, Workload


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and port behind a service port."""

    address: str
    port: int
    ready: bool = True
    workload: Workload | None = None
    locality: Locality = field(default_factory=Locality)
    additional_addresses: tuple[str, ...] = ()
    """The same instance's addresses of the other family."""

    weight: int = 1
    """Its share of what the service gets."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of the workload behind it, by which subsets select; none if it is not known."""
        return self.workload.labels if self.workload else {}
