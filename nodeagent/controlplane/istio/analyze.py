"""Findings that need more than one resource: routes to nowhere, rules that lose, subsets that select nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from nodeagent.controlplane.istio.rules import Rules, applies_to_mesh
from nodeagent.controlplane.istio.values import Destination, DestinationRule, VirtualService
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.report import Issue, Severity
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.model.names import canonical_address, host_matches
from nodeagent.model.service import EVERYONE, Service
from nodeagent.model.workload import matches_labels

_LISTED: Final = 5


def analyze(rules: Rules, registry: Registry) -> Mapping[ObjectKey, list[Issue]]:
    """Findings by the object that they are about; an object without findings is there with none."""
    found: dict[ObjectKey, list[Issue]] = {}
    for key, rule in rules.virtual_services.items():
        found[key] = [*_destinations(rules, registry, key, rule), *_lost_hosts(rules, key, rule)]
    for key, policy in rules.destination_rules.items():
        found[key] = list(_policy(registry, key, policy))
    for key, issue in _services(registry):
        found.setdefault(key, []).append(issue)
    return found


def _services(registry: Registry) -> Iterator[tuple[ObjectKey, Issue]]:
    """Virtual addresses that two services claim."""
    for address, (first, *others) in registry.services_sharing():
        for service in others:
            key = ObjectKey("", "Service", service.namespace, service.name)
            message = (
                f"{address} is also of Service {first.namespace}/{first.name}, which is older and keeps it"
            )
            yield key, Issue(Severity.ERROR, "shared-address", message, "", str(key), "spec.clusterIP")


def _listed(items: Iterable[object]) -> str:
    """Some of the items, for a message."""
    texts = list(map(str, items))
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return (", ".join(texts[:_LISTED]) + more) if texts else "none"


# -- VirtualService --------------------------------------------------------------------------------------------


def _destinations(rules: Rules, registry: Registry, key: ObjectKey, rule: VirtualService) -> Iterator[Issue]:
    for path, destination in rule.destinations():
        for code, field, message in _destination(rules, registry, rule, destination):
            yield Issue(Severity.ERROR, code, message, rule.source, str(key), f"{path}.{field}")


def _destination(
    rules: Rules, registry: Registry, rule: VirtualService, destination: Destination
) -> Iterator[tuple[str, str, str]]:
    """Code, field and message of what is wrong with a destination."""
    service = registry.services.get(destination.host)
    if service is None:
        if canonical_address(destination.host) is None:
            yield (
                "unknown-host",
                "host",
                f"{destination.host} is no service of the mesh; requests get 503. Is the namespace right?",
            )
        return
    ports = [port.port for port in service.tcp_ports]
    if destination.port is not None and destination.port not in ports:
        message = f"{service.host} has no port {destination.port}; requests get 503. It has: {_listed(ports)}"
        yield "unknown-port", "port.number", message
    if destination.subset:
        subsets = [subset.name for subset in rules.policy(service, rule.namespace).subsets]
        if destination.subset not in subsets:
            message = (
                f"no DestinationRule gives {service.host} a subset {destination.subset}; requests get 503. "
                f"There are: {_listed(subsets)}"
            )
            yield "unknown-subset", "subset", message


def _lost_hosts(rules: Rules, key: ObjectKey, rule: VirtualService) -> Iterator[Issue]:
    """Hosts for which another VirtualService is the one in force."""
    if not applies_to_mesh(rule):
        return
    for index, host in enumerate(rule.hosts):
        rivals = [other for other in rules.virtual_services_at(host) if _shares_clients(other, rule)]
        first = min(rivals, key=lambda other: other.age, default=rule)
        if first is not rule:
            message = (
                f"VirtualService {first.namespace}/{first.name} ({first.source}) is older and is the one in force "
                f"for {host}; put both into one"
            )
            yield Issue(
                Severity.ERROR, "duplicate-host", message, rule.source, str(key), f"spec.hosts[{index}]"
            )


def _shares_clients(one: VirtualService, other: VirtualService) -> bool:
    """Whether two rules are for some clients alike, and neither is nearer to them."""
    if not applies_to_mesh(one):
        return False
    if one.namespace == other.namespace:
        return True
    return EVERYONE in one.export_to and EVERYONE in other.export_to


# -- DestinationRule -------------------------------------------------------------------------------------------


def _policy(registry: Registry, key: ObjectKey, rule: DestinationRule) -> Iterator[Issue]:
    services = _covered(registry, rule.host)
    if not services:
        message = f"{rule.host} is no service of the mesh; the rule has no effect"
        yield Issue(Severity.WARNING, "unknown-host", message, rule.source, str(key), "spec.host")
        return
    for index, subset in enumerate(rule.subsets):
        if subset.labels and not any(_selects(registry, service, subset.labels) for service in services):
            pairs = ", ".join(f"{name}={value}" for name, value in sorted(subset.labels.items()))
            message = f"no endpoint of {rule.host} has the labels {pairs} of subset {subset.name}"
            yield Issue(
                Severity.INFO, "empty-subset", message, rule.source, str(key), f"spec.subsets[{index}].labels"
            )
    if len(services) == 1:
        yield from _port_settings(services[0], key, rule)


def _covered(registry: Registry, host: str) -> list[Service]:
    if not host.startswith("*"):
        found = registry.services.get(host)
        return [found] if found else []
    return [service for name, service in registry.services.items() if host_matches(host, name)]


def _selects(registry: Registry, service: Service, labels: Mapping[str, str]) -> bool:
    return any(
        matches_labels(labels, endpoint.labels)
        for endpoints in registry.endpoints(service.host).values()
        for endpoint in endpoints
    )


def _port_settings(service: Service, key: ObjectKey, rule: DestinationRule) -> Iterator[Issue]:
    ports = [port.port for port in service.tcp_ports]
    for number in rule.policy.ports if rule.policy else ():
        if number not in ports:
            message = f"{service.host} has no port {number}; it has: {_listed(ports)}"
            path = "spec.trafficPolicy.portLevelSettings"
            yield Issue(Severity.WARNING, "unknown-port", message, rule.source, str(key), path)
