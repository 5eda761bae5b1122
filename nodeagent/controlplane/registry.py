"""The registry: services, pods and endpoints, indexed so that a change of one touches only what depends on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from nodeagent.controlplane.change import Change
from nodeagent.controlplane.kubernetes.objects import EndpointSlice, SliceEndpoint
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.model.endpoint import Endpoint
from nodeagent.model.names import is_ipv6
from nodeagent.model.service import Service, ServicePort
from nodeagent.model.workload import Locality, Workload, matches_labels

PortEndpoints: TypeAlias = Mapping[int, tuple[Endpoint, ...]]
_LabelKey: TypeAlias = tuple[str, str, str]


class Registry:
    """Services by host and virtual address, pods by uid, name and address, and endpoints computed on demand."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.workloads: dict[str, Workload] = {}
        self.headless: set[str] = set()
        """Hosts of the services that have no virtual address."""
        self._by_name: dict[tuple[str, str], str] = {}
        self._by_account: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._by_service_name: dict[tuple[str, str], str] = {}
        self._by_address: dict[str, list[str]] = defaultdict(list)
        self._by_vip: dict[str, list[str]] = defaultdict(list)
        self._pods_by_label: dict[_LabelKey, dict[str, None]] = defaultdict(dict)
        self._services_by_label: dict[_LabelKey, set[str]] = defaultdict(set)
        self._listed: dict[str, set[str]] = defaultdict(set)
        """By address: hosts that list it as an endpoint."""
        self._ports: dict[int, set[str]] = defaultdict(set)
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        self._slices_of: dict[tuple[str, str], dict[ObjectKey, EndpointSlice]] = defaultdict(dict)
        self._slice_services: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self._endpoints: dict[str, PortEndpoints] = {}

    # -- look-ups ---------------------------------------------------------------------------------------------

    def services_on_port(self, port: int) -> list[Service]:
        """Services with that port, in order of host."""
        return [self.services[host] for host in sorted(self._ports.get(port, ()))]

    def service_ports(self) -> list[int]:
        """Every port number that some service has."""
        return sorted(port for port, hosts in self._ports.items() if hosts)

    def service_at(self, address: str) -> Service | None:
        """The service with that virtual address; the oldest if several claim it."""
        hosts = self._by_vip.get(address)
        if not hosts:
            return None
        return min(
            (self.services[host] for host in hosts), key=lambda service: (service.created, service.host)
        )

    def service_named(self, namespace: str, name: str) -> Service | None:
        """The service of that name."""
        host = self._by_service_name.get((namespace, name))
        return self.services.get(host) if host else None

    def services_sharing(self) -> list[tuple[str, list[Service]]]:
        """Virtual addresses that several Kubernetes Services claim, with the services, the oldest first."""
        return [
            (
                address,
                sorted((self.services[host] for host in hosts), key=lambda item: (item.created, item.host)),
            )
            for address, hosts in sorted(self._by_vip.items())
            if sum(not self.services[host].is_entry for host in hosts) > 1
        ]

    def workload_at(self, address: str) -> Workload | None:
        """The pod with that address; of several, one that is not on the host's network comes first."""
        uids = self._by_address.get(address)
        if not uids:
            return None
        return min(
            (self.workloads[uid] for uid in uids),
            key=lambda pod: (pod.host_network, pod.terminating, pod.uid),
        )

    def is_alone(self, workload: Workload) -> bool:
        """Whether no other workload is known by its addresses; pods of the host's network are not known by theirs."""
        others = {uid for address in workload.addresses for uid in self._by_address.get(address, ())}
        return all(self.workloads[uid].host_network for uid in others - {workload.uid})

    def workload_named(self, namespace: str, name: str) -> Workload | None:
        """The pod of that name."""
        uid = self._by_name.get((namespace, name))
        return self.workloads.get(uid) if uid else None

    def has_pod(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a pod of the namespace has all of these labels (one at least)."""
        return any(True for _ in self._matching(namespace, labels))

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of that service account is on that node."""
        return bool(self._by_account.get((node, namespace, service_account)))

    def hosts_of(self, workload: Workload) -> list[str]:
        """Hosts of the services that a pod stands behind, by selector or EndpointSlice."""
        hosts = set()
        for key, value in workload.labels.items():
            for host in self._services_by_label.get((workload.namespace, key, value), ()):
                service = self.services[host]
                listed = workload.is_pod and self._has_slices(service)
                if matches_labels(service.selector, workload.labels) and not listed:
                    hosts.add(host)
        for name in self._slice_services.get((workload.namespace, workload.name), ()):
            found = self._by_service_name.get(name)
            if found:
                hosts.add(found)
        for address in workload.addresses:
            if address in self._listed and self.workload_at(address) is workload:
                hosts |= self._listed[address]
        return sorted(hosts)

    def endpoints(self, host: str) -> PortEndpoints:
        """Endpoints of a service by service port number; ports with none are there and empty."""
        found = self._endpoints.get(host)
        if found is None:
            service = self.services.get(host)
            found = self._endpoints[host] = self._compute(service) if service else {}
        return found

    def workloads_of(self, service: Service) -> list[Workload]:
        """Pods behind a service, whether ready or not."""
        found = {
            endpoint.workload.uid: endpoint.workload
            for endpoints in self.endpoints(service.host).values()
            for endpoint in endpoints
            if endpoint.workload
        }
        return [found[uid] for uid in sorted(found)]

    # -- changes ----------------------------------------------------------------------------------------------

    def put_service(self, host: str, service: Service | None, change: Change) -> None:
        """Add, replace or (None) remove the service of a host."""
        before = self.services.pop(host, None)
        self._relist(host, before, service, change)
        self.headless.discard(host)
        for old in (before,) if before else ():
            self._by_service_name.pop(old.key, None)
            for port in old.ports:
                self._ports[port.port].discard(host)
            for address in old.addresses:
                self._by_vip[address].remove(host)
            for key in _first_label(old.namespace, old.selector):
                self._services_by_label[key].discard(host)
        if service is not None:
            self.services[host] = service
            if service.headless:
                self.headless.add(host)
            self._by_service_name[service.key] = host
            for port in service.ports:
                self._ports[port.port].add(host)
            for address in service.addresses:
                self._by_vip[address].append(host)
            for key in _first_label(service.namespace, service.selector):
                self._services_by_label[key].add(host)
        affected = {uid for old in (before, service) if old for uid in self._selected(old)}
        self._endpoints.pop(host, None)
        change.services.add(host)
        change.endpoints.add(host)
        change.workloads |= affected
        change.ports.update(port.port for item in (before, service) if item for port in item.ports)

    def _relist(self, host: str, before: Service | None, service: Service | None, change: Change) -> None:
        """Note the endpoints that a service lists itself, and who is there."""
        old = before.listed if before is not None else frozenset()
        new = service.listed if service is not None else frozenset()
        for address in old - new:
            self._listed[address].discard(host)
            if not self._listed[address]:
                del self._listed[address]
        for address in new - old:
            self._listed[address].add(host)
        for address in old | new:
            change.workloads.update(self._by_address.get(address, ()))

    def put_workload(self, uid: str, workload: Workload | None, change: Change) -> None:
        """Add, replace or (None) remove a pod."""
        before = self.workloads.get(uid)
        if before is not None:
            self._touch(self.hosts_of(before), change)
            del self.workloads[uid]
            account = _account_of(before)
            self._by_account[account].discard(uid)
            if not self._by_account[account]:
                del self._by_account[account]
            self._by_name.pop((before.namespace, before.name), None)
            for address in before.addresses:
                self._by_address[address].remove(uid)
                if not self._by_address[address]:
                    del self._by_address[address]
            for key, value in before.labels.items():
                self._pods_by_label[before.namespace, key, value].pop(uid, None)
        if workload is not None:
            self.workloads[uid] = workload
            self._by_account[_account_of(workload)].add(uid)
            self._by_name[workload.namespace, workload.name] = uid
            for address in workload.addresses:
                self._by_address[address].append(uid)
            for key, value in workload.labels.items():
                self._pods_by_label[workload.namespace, key, value][uid] = None
            self._touch(self.hosts_of(workload), change)
        change.workloads.add(uid)
        # How those are reached that have an address in common may be another thing now.
        for item in filter(None, (before, workload)):
            for address in item.addresses:
                others = self._by_address.get(address, ())
                change.workloads.update(
                    other for other in others if not item.is_pod or not self.workloads[other].is_pod
                )

    def put_slice(self, key: ObjectKey, found: EndpointSlice | None, change: Change) -> None:
        """Add, replace or (None) remove an EndpointSlice."""
        before = self._slices.pop(key, None)
        if before is not None:
            self._slices_of[before.service].pop(key, None)
            if not self._slices_of[before.service]:
                del self._slices_of[before.service]
        if found is not None:
            self._slices[key] = found
            self._slices_of[found.service][key] = found
        for service in {item.service for item in (before, found) if item}:
            self._reindex_slice_pods(service, before, found, change)
            host = self._by_service_name.get(service)
            if host:
                self._touch([host], change)
                change.workloads.update(self._selected(self.services[host]))

    def _reindex_slice_pods(
        self,
        service: tuple[str, str],
        before: EndpointSlice | None,
        found: EndpointSlice | None,
        change: Change,
    ) -> None:
        current = {
            endpoint.pod for item in self._slices_of.get(service, {}).values() for endpoint in item.endpoints
        }
        touched = {endpoint.pod for item in (before, found) if item for endpoint in item.endpoints}
        for pod in touched:
            if pod is None:
                continue
            services = self._slice_services[pod]
            if pod in current:
                services.add(service)
            else:
                services.discard(service)
            uid = self._by_name.get(pod)
            if uid:
                change.workloads.add(uid)

    def _touch(self, hosts: Iterable[str], change: Change) -> None:
        for host in hosts:
            self._endpoints.pop(host, None)
            change.endpoints.add(host)

    # -- endpoints --------------------------------------------------------------------------------------------

    def _has_slices(self, service: Service) -> bool:
        return service.key in self._slices_of

    def _selected(self, service: Service) -> list[str]:
        """Uids of the pods that a service's selector takes, in a stable order."""
        return sorted(self._matching(service.namespace, service.selector)) if service.selector else []

    def _matching(self, namespace: str, labels: Mapping[str, str]) -> Iterator[str]:
        """Uids of the pods of a namespace that have all of these labels (one at least)."""
        groups = [self._pods_by_label.get((namespace, key, value), {}) for key, value in labels.items()]
        smallest = min(groups, key=len)
        return (uid for uid in smallest if matches_labels(labels, self.workloads[uid].labels))

    def _compute(self, service: Service) -> PortEndpoints:
        ports = service.tcp_ports
        pods = [self.workloads[uid] for uid in self._selected(service)]
        if self._has_slices(service):
            slices = self._slices_of[service.key]
            ordered = [slices[key] for key in sorted(slices)]
            others = [each for each in pods if not each.is_pod]
            return {
                port.port: (*self._from_slices(service, port, ordered), *_from_pods(service, port, others))
                for port in ports
            }
        return {port.port: tuple(_from_pods(service, port, pods)) for port in ports}

    def _from_slices(
        self, service: Service, port: ServicePort, slices: Sequence[EndpointSlice]
    ) -> tuple[Endpoint, ...]:
        """Endpoints of the slices' port of that name; one pod's addresses of both families become one endpoint."""
        by_pod: dict[object, list[SliceEndpoint]] = defaultdict(list)
        numbers: dict[object, int] = {}
        for item in slices:
            number = item.ports.get(port.name)
            if number is None:
                continue
            for endpoint in item.endpoints:
                identity = (endpoint.pod, number) if endpoint.pod else (endpoint.address, number)
                by_pod[identity].append(endpoint)
                numbers[identity] = number
        return tuple(
            self._slice_endpoint(service, numbers[identity], group) for identity, group in by_pod.items()
        )

    def _slice_endpoint(self, service: Service, port: int, group: list[SliceEndpoint]) -> Endpoint:
        first = group[0]
        workload = self.workload_named(*first.pod) if first.pod else self.workload_at(first.address)
        addresses = _of_families(service, tuple(dict.fromkeys(item.address for item in group)))
        locality = workload.locality if workload else Locality()
        if first.zone and not locality.zone:
            locality = Locality(locality.region, first.zone, locality.subzone)
        ready = service.publish_not_ready or any(item.ready for item in group)
        return Endpoint(addresses[0], port, ready, workload, locality, addresses[1:], first.weight)


def _account_of(workload: Workload) -> tuple[str, str, str]:
    return workload.node, workload.namespace, workload.service_account


def _first_label(namespace: str, selector: Mapping[str, str]) -> list[_LabelKey]:
    """The one pair under which a selector is indexed: pods that lack it cannot match."""
    return [(namespace, *min(selector.items()))] if selector else []


def _of_families(service: Service, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses of the families that the service has, its primary family first; all if none fits."""
    families = [is_ipv6(address) for address in service.addresses] or [
        is_ipv6(address) for address in addresses
    ]
    fitting = [
        address for family in dict.fromkeys(families) for address in addresses if is_ipv6(address) is family
    ]
    return tuple(fitting) or addresses


def target_port(port: ServicePort, workload: Workload) -> int | None:
    """The port of a pod that a service port leads to; None if the pod declares no port of that name."""
    if port.name in workload.service_ports:
        return workload.service_ports[port.name]
    if isinstance(port.target, int):
        return port.target
    named = (item.port for item in workload.ports if item.name == port.target and item.transport == "TCP")
    return next(named, None) or workload.service_ports.get(port.target)


def _from_pods(service: Service, port: ServicePort, pods: Iterable[Workload]) -> Iterable[Endpoint]:
    for pod in pods:
        number = target_port(port, pod)
        if number is None:
            continue
        ready = service.publish_not_ready or (pod.ready and not pod.terminating)
        addresses = _of_families(service, pod.addresses)
        yield Endpoint(addresses[0], number, ready, pod, pod.locality, addresses[1:], pod.capacity)
