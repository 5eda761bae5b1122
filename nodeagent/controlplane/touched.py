"""What a batch touched whose effects on workloads are found in one pass over them at its end.

A policy or a waypoint concerns few of many workloads; a pass for each would take a large mesh's first batch minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from nodeagent.controlplane.istio.security import SecurityPolicies
from nodeagent.controlplane.istio.security_values import (
    AuthorizationPolicy,
    PeerAuthentication,
    SecurityPolicy,
)
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.waypoints import Waypoints


@dataclass(slots=True)
class Touched:
    """Policies, waypoints and namespaces that came, changed or went."""

    policies: list[SecurityPolicy] = field(default_factory=list)
    waypoints: set[tuple[str, str]] = field(default_factory=set)
    """By namespace and name."""
    namespaces: set[str] = field(default_factory=set)

    def addresses(self, security: SecurityPolicies, registry: Registry, waypoints: Waypoints) -> set[str]:
        """Hosts and uids of which node proxies are to be told anew; a pod is told of with its services, too."""
        found = (
            waypoints.users(self.waypoints, self.namespaces) if self.waypoints or self.namespaces else set()
        )
        found.update(self._covered(security, registry))
        for uid in found & registry.workloads.keys():
            found.update(registry.hosts_of(registry.workloads[uid]))
        return found

    def _covered(self, security: SecurityPolicies, registry: Registry) -> Iterator[str]:
        """Pods that list one of the policies, or did."""
        by_namespace: dict[str, list[SecurityPolicy]] = defaultdict(list)
        for policy in self.policies:
            selecting = policy.selector and isinstance(policy, AuthorizationPolicy)
            if selecting or isinstance(policy, PeerAuthentication):
                by_namespace[policy.namespace].append(policy)
        if not by_namespace:
            return
        everywhere = by_namespace.pop(security.root_namespace, [])
        for uid, pod in registry.workloads.items():
            policies = (*everywhere, *by_namespace.get(pod.namespace, ()))
            if any(security.covers(policy, pod.namespace, pod.labels) for policy in policies):
                yield uid
