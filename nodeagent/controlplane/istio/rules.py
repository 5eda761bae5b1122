"""Routing rules in force, indexed by host: which VirtualService and which traffic policy a client gets for a host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from nodeagent.controlplane.istio.values import (
    MESH_GATEWAY,
    DestinationRule,
    PolicyBlocks,
    SourceMatch,
    Subset,
    TrafficPolicy,
    VirtualService,
)
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.model.names import host_matches
from nodeagent.model.service import EVERYONE, Service, exported
from nodeagent.model.workload import matches_labels


class _Aged(Protocol):
    @property
    def age(self) -> tuple[float, str, str]: ...


T = TypeVar("T", bound=_Aged)


class HostIndex(Generic[T]):
    """Rules by the host they are for; a wildcard host covers what ends with it."""

    def __init__(self) -> None:
        self._by_host: dict[str, list[T]] = defaultdict(list)

    def add(self, host: str, rule: T) -> None:
        """Add a rule for a host."""
        rules = self._by_host[host]
        rules.append(rule)
        rules.sort(key=lambda other: other.age)

    def remove(self, host: str, rule: T) -> None:
        """Take a rule away again."""
        rules = self._by_host[host]
        rules.remove(rule)
        if not rules:
            del self._by_host[host]

    def at(self, host: str) -> list[T]:
        """Rules for exactly that host, oldest first."""
        return self._by_host.get(host, [])

    def hosts(self) -> list[str]:
        """Every host that has a rule."""
        return list(self._by_host)

    def covering(self, host: str) -> Iterator[tuple[str, list[T]]]:
        """Rules that apply to a host, the most specific host first."""
        if host in self._by_host:
            yield host, self._by_host[host]
        labels = host.removeprefix("*.").split(".")
        for count in range(0 if host.startswith("*.") else 1, len(labels)):
            wildcard = "*." + ".".join(labels[count:])
            if wildcard != host and wildcard in self._by_host:
                yield wildcard, self._by_host[wildcard]
        if host != "*" and "*" in self._by_host:
            yield "*", self._by_host["*"]


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What DestinationRules say of a host to one client: subsets, and the policy of each port and subset."""

    subsets: tuple[Subset, ...] = ()
    base: TrafficPolicy = field(default_factory=TrafficPolicy)

    def blocks(self, port: int, subset: Subset | None = None) -> PolicyBlocks:
        """The traffic policy in force for a port, of a subset or of the whole host."""
        whole = self.base.at(port)
        return whole if subset is None else subset.policy.at(port, whole)


class Rules:
    """VirtualServices and DestinationRules in force."""

    def __init__(self, root_namespace: str) -> None:
        self.root_namespace = root_namespace
        self.virtual_services: dict[ObjectKey, VirtualService] = {}
        self.destination_rules: dict[ObjectKey, DestinationRule] = {}
        self._routes: HostIndex[VirtualService] = HostIndex()
        self._policies: dict[str, HostIndex[DestinationRule]] = defaultdict(HostIndex)
        self._referring: dict[str, set[ObjectKey]] = defaultdict(set)

    # -- changes ----------------------------------------------------------------------------------------------

    def put_virtual_service(self, key: ObjectKey, value: VirtualService | None) -> set[str]:
        """Add, replace or (None) remove; returns the hosts, as written, that it is or was for."""
        before = self.virtual_services.pop(key, None)
        touched: set[str] = set()
        for rule in (before,) if before else ():
            touched.update(rule.hosts)
            for host in rule.hosts:
                self._routes.remove(host, rule)
            for _, destination in rule.destinations():
                self._referring[destination.host].discard(key)
        if value is not None:
            self.virtual_services[key] = value
            touched.update(value.hosts)
            for host in value.hosts:
                self._routes.add(host, value)
            for _, destination in value.destinations():
                self._referring[destination.host].add(key)
        return touched

    def put_destination_rule(self, key: ObjectKey, value: DestinationRule | None) -> set[str]:
        """Add, replace or (None) remove; returns the hosts, as written, that it is or was for."""
        before = self.destination_rules.pop(key, None)
        touched: set[str] = set()
        if before is not None:
            touched.add(before.host)
            self._policies[before.namespace].remove(before.host, before)
        if value is not None:
            self.destination_rules[key] = value
            touched.add(value.host)
            self._policies[value.namespace].add(value.host, value)
        return touched

    # -- look-ups ---------------------------------------------------------------------------------------------

    def route_hosts_covering(self, host: str) -> list[str]:
        """Hosts that VirtualServices name and that cover `host`, the most specific first."""
        return [name for name, _ in self._routes.covering(host)]

    def referring_hosts(self, host: str) -> set[str]:
        """Hosts whose VirtualServices route to `host`."""
        keys = self._referring.get(host, ())
        return {name for key in keys for name in self.virtual_services[key].hosts}

    def virtual_services_for(self, host: str, namespace: str) -> list[VirtualService]:
        """VirtualServices for a host that clients of a namespace see, in order of precedence.

        Only those with the most specific host count. The client's own come first, then those exported to its
        namespace by name, then public ones; among them the oldest. Clients take the first that has routes for them.
        """
        for _, rules in self._routes.covering(host):
            seen = [
                rule
                for rule in rules
                if applies_to_mesh(rule) and exported(rule.export_to, rule.namespace, namespace)
            ]
            if seen:
                return sorted(seen, key=lambda rule: (_distance(rule, namespace), rule.age))
        return []

    def virtual_services_at(self, host: str) -> list[VirtualService]:
        """VirtualServices that name exactly that host."""
        return list(self._routes.at(host))

    def unregistered_hosts(self, services: Mapping[str, Service]) -> list[str]:
        """Hosts of VirtualServices that are no service and cover none, in order."""
        return sorted(host for host in self._routes.hosts() if not _covers_any(host, services))

    def policy(self, service: Service, namespace: str) -> HostPolicy:
        """The traffic policy of a service for clients of a namespace.

        Looked up in the client's namespace, then the service's, then the root namespace; the first that has a rule
        for the host decides. Rules for one host add up: subsets are put together, the oldest policy wins.
        """
        for owner in dict.fromkeys((namespace, service.namespace, self.root_namespace)):
            index = self._policies.get(owner)
            for _, rules in index.covering(service.host) if index else ():
                seen = [rule for rule in rules if exported(rule.export_to, owner, namespace)]
                if seen:
                    return _merge(seen)
        return HostPolicy()


def _covers_any(host: str, services: Mapping[str, Service]) -> bool:
    if not host.startswith("*"):
        return host in services
    return any(host_matches(host, other) for other in services)


def _distance(rule: VirtualService, namespace: str) -> int:
    if rule.namespace == namespace:
        return 0
    return 2 if EVERYONE in rule.export_to else 1


def _merge(rules: Iterable[DestinationRule]) -> HostPolicy:
    subsets: dict[str, Subset] = {}
    base: TrafficPolicy | None = None
    for rule in rules:
        base = base or rule.policy
        for subset in rule.subsets:
            subsets.setdefault(subset.name, subset)
    return HostPolicy(tuple(subsets.values()), base or TrafficPolicy())


def applies_to_mesh(rule: VirtualService) -> bool:
    """Whether a VirtualService concerns the mesh's own proxies, in part at least."""
    return MESH_GATEWAY in rule.gateways


def source_matches(match: SourceMatch, port: int, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether a match is for such clients of the mesh on such a port, as far as configuration can tell."""
    if match.port is not None and match.port != port:
        return False
    if match.gateways and MESH_GATEWAY not in match.gateways:
        return False
    if match.namespace and match.namespace != namespace:
        return False
    return matches_labels(match.labels, labels)
