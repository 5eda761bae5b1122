"""What a batch of configuration changed, in terms that say which xDS resources it can touch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

EVERYWHERE: Final = "*"


@dataclass(slots=True)
class Change:
    """Sets of what changed; changes add up until they are pushed."""

    services: set[str] = field(default_factory=set)
    """Hosts whose Service came, changed or went."""
    endpoints: set[str] = field(default_factory=set)
    """Hosts with other endpoints than before."""
    routes: set[str] = field(default_factory=set)
    """Hosts that may be routed differently (VirtualService)."""
    rules: set[str] = field(default_factory=set)
    """Hosts that may have another traffic policy or other subsets (DestinationRule)."""
    workloads: set[str] = field(default_factory=set)
    """Uids of pods that came, changed or went."""
    addresses: set[str] = field(default_factory=set)
    """Hosts and uids of which node proxies may be told otherwise, by policies or waypoints."""
    policies: set[str] = field(default_factory=set)
    """Names (`namespace/name`) of L4 policies that came, changed or went."""
    guarded: set[str] = field(default_factory=set)
    """Namespaces whose pods may be guarded otherwise; EVERYWHERE for all of them."""
    ports: set[int] = field(default_factory=set)
    """Service ports whose listener or route configuration may differ."""

    def merge(self, other: Change) -> None:
        """Add another change to this one."""
        for item in fields(self):
            getattr(self, item.name).update(getattr(other, item.name))

    def __bool__(self) -> bool:
        return any(getattr(self, item.name) for item in fields(self))
