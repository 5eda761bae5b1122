"""Hosts of ServiceEntries as services of the registry: with addresses, and with the endpoints that they list.

A host belongs to one: to the Kubernetes Service of that name, else to the oldest ServiceEntry that has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from nodeagent.controlplane.auto_addresses import AutoAddresses
from nodeagent.controlplane.change import Change
from nodeagent.controlplane.istio.service_entry import Resolution, ServiceEntry
from nodeagent.controlplane.kubernetes.objects import EndpointSlice, SliceEndpoint
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.report import Issue, Severity
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.model import names
from nodeagent.model.service import Service
from nodeagent.model.workload import Workload, WorkloadType


class ServiceEntries:
    """All ServiceEntries in force; puts their hosts into a registry, which others put services into, too."""

    def __init__(self, registry: Registry, cluster_id: str) -> None:
        self._registry = registry
        self._cluster_id = cluster_id
        self._entries: dict[ObjectKey, ServiceEntry] = {}
        self._by_host: dict[str, set[ObjectKey]] = defaultdict(set)
        self._auto = AutoAddresses()

    def put(self, key: ObjectKey, entry: ServiceEntry | None, change: Change) -> None:
        """Add, replace or (None) remove an entry."""
        before = self._entries.pop(key, None)
        for host in before.hosts if before is not None else ():
            self._by_host[host].discard(key)
        if entry is not None and entry.resolution is not Resolution.BY_NAME:
            self._entries[key] = entry
            for host in entry.hosts:
                self._by_host[host].add(key)
        current = self._entries.get(key)
        self._put_endpoints(key, before, current, change)
        self._put_workloads(before, current, change)
        for host in sorted({host for each in filter(None, (before, current)) for host in each.hosts}):
            if current is None or host not in current.hosts or not _wants_address(current, host):
                self._auto.release(_auto_key(key, host))
            self.settle(host, change)

    def _put_endpoints(
        self, key: ObjectKey, before: ServiceEntry | None, entry: ServiceEntry | None, change: Change
    ) -> None:
        """Endpoints as slices of their own, for each may have other ports."""
        old = before.endpoints if before is not None else ()
        new = entry.endpoints if entry is not None else ()
        for number in range(max(len(old), len(new))):
            made = None
            if entry is not None and number < len(new):
                endpoint = new[number]
                ports = {port.name: endpoint.ports.get(port.name, int(port.target)) for port in entry.ports}
                listed = SliceEndpoint(
                    endpoint.address, True, None, endpoint.locality.zone, weight=endpoint.weight
                )
                made = EndpointSlice((key.namespace, f"ServiceEntry/{key.name}"), ports, (listed,))
            slice_key = ObjectKey(key.group, key.kind, key.namespace, f"{key.name}/{number:06}")
            self._registry.put_slice(slice_key, made, change)

    def _put_workloads(self, before: ServiceEntry | None, entry: ServiceEntry | None, change: Change) -> None:
        """Endpoints as workloads, which node proxies are told of."""
        old = self._workloads(before) if before is not None else {}
        new = self._workloads(entry) if entry is not None else {}
        for uid in old.keys() | new.keys():
            if old.get(uid) != new.get(uid):
                self._registry.put_workload(uid, new.get(uid), change)

    def _workloads(self, entry: ServiceEntry) -> dict[str, Workload]:
        made = [
            Workload(
                uid=names.entry_endpoint_uid(self._cluster_id, entry.namespace, entry.name, endpoint.address),
                name=f"ServiceEntry/{entry.name}/{endpoint.address}",
                namespace=entry.namespace,
                addresses=(endpoint.address,),
                service_account="",
                node="",
                labels={},
                workload_name=entry.name,
                workload_type=WorkloadType.POD,
                canonical_name=entry.name,
                canonical_revision="latest",
                service_ports=endpoint.ports,
                locality=endpoint.locality,
                capacity=endpoint.weight,
                is_pod=False,
                is_listed=True,
            )
            for endpoint in entry.endpoints
        ]
        return {workload.uid: workload for workload in made}

    def settle(self, host: str, change: Change) -> None:
        """See to whose a host is now. Call it also when its Kubernetes Service came or went."""
        owner = self._registry.services.get(host)
        keys = self._by_host.get(host)
        if not keys:
            self._by_host.pop(host, None)
        if owner is not None and not owner.is_entry:
            return
        if keys:
            key = min(keys, key=self._age)
            self._registry.put_service(host, self._service(key, host), change)
        elif owner is not None:
            self._registry.put_service(host, None, change)

    def _age(self, key: ObjectKey) -> tuple[float, str]:
        return self._entries[key].created, str(key)

    def _service(self, key: ObjectKey, host: str) -> Service:
        entry = self._entries[key]
        addresses = entry.addresses
        if _wants_address(entry, host):
            addresses = self._auto.give(_auto_key(key, host))
        return Service(
            name=entry.name,
            namespace=entry.namespace,
            host=host,
            ports=entry.ports,
            addresses=addresses,
            selector=entry.selector,
            labels=entry.labels,
            export_to=entry.export_to,
            created=entry.created,
            is_entry=True,
            listed=frozenset(endpoint.address for endpoint in entry.endpoints),
            passes_through=entry.resolution is Resolution.NONE,
        )

    def findings(self) -> Mapping[ObjectKey, list[Issue]]:
        """Hosts of entries that somebody else has."""
        found: dict[ObjectKey, list[Issue]] = {}
        for key, entry in self._entries.items():
            found[key] = [
                Issue(
                    Severity.WARNING,
                    "shared-host",
                    f"{host} is of {owner}, which keeps it",
                    entry.source,
                    str(key),
                    f"spec.hosts[{index}]",
                )
                for index, host in enumerate(entry.hosts)
                if (owner := self._other_owner(key, host))
            ]
        return found

    def _other_owner(self, key: ObjectKey, host: str) -> str:
        service = self._registry.services.get(host)
        if service is None:
            return ""
        if not service.is_entry:
            return f"Service {service.namespace}/{service.name}"
        first = min(self._by_host[host], key=self._age)
        return "" if first == key else f"{first}, which is older"


def _auto_key(key: ObjectKey, host: str) -> str:
    return f"{key.namespace}/{key.name}/{host}"


def _wants_address(entry: ServiceEntry, host: str) -> bool:
    """As istiod: one without an address, that is one host and is somewhere."""
    return not entry.addresses and not host.startswith("*") and entry.resolution is not Resolution.NONE
