"""The workload index: who is at which address, and which services there are, from istio.workload resources.

A mesh has a hundred thousand of these, so entries are small: interned strings, tuples, no protobufs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final, TypeAlias, TypeVar

from nodeagent.model.identity import Identity
from nodeagent.snapshot.address import format_address, widen_address
from nodeagent.snapshot.values import ApplicationTunnel, Hints, InboundName, ServiceRef, WorkloadRef

logger = logging.getLogger(__name__)

LABELS_EXTENSION: Final = "nodeagent.labels"
MACHINE_EXTENSION: Final = "nodeagent.machine"
"""Of a workload whose addresses are a machine's: its ports are those that services lead to, others are not its."""
_TYPES: Final = ("deployment", "cronjob", "pod", "job")  # enum WorkloadType
_HBONE: Final = 1
_LEGACY_ISTIO_MTLS: Final = 2
_HBONE_PORT: Final = 15008
_HOST_NETWORK: Final = 1
_PROXY: Final = 1  # ApplicationTunnel.Protocol
_HTTP_PROTOCOLS: Final = frozenset((1, 2, 3))  # AppProtocol HTTP11, HTTP2, GRPC
_UNKNOWN_PROTOCOL: Final = 0
_VISIBLE_TO_NAMESPACE: Final = 1  # Service.Visibility
_ALLOW_ALL: Final = 1  # LoadBalancing.HealthPolicy
_SHARED_SPARE: Final = 10_000
"""Values to share beyond two for each service, before they are forgotten and gathered anew."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GatewayRef:
    """istio.workload.GatewayAddress: where a waypoint or the gateway of a network is. Either the name of its
    service's resource, or an address of a workload or service."""

    service: str = ""
    network: str = ""
    address: bytes = b""
    port: int = 15008

    def __str__(self) -> str:
        return self.service or f"{self.network}/{format_address(self.address)}"


Served: TypeAlias = tuple[tuple[str, tuple[tuple[int, int], ...]], ...]
"""(service's resource name, ((service port, target port), ...)) of all that a workload serves."""


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    """A workload: who it is, where, and which of its ports serve what.

    `labels` are kept for workloads of this node only, sorted; None where nobody has told them.
    """

    ref: WorkloadRef
    addresses: tuple[bytes, ...]
    services: Served = ()
    healthy: bool = True
    hbone: bool = False
    host_network: bool = False
    waypoint: GatewayRef | None = None
    labels: tuple[tuple[str, str], ...] | None = None
    policies: tuple[str, ...] = ()
    """Names of the Authorization resources that are for it by selector."""
    network: str = ""
    gateway: GatewayRef | None = None
    """Through which it is reached from other networks."""
    locality: str = ""
    """`region/zone/subzone`."""
    application_tunnel: ApplicationTunnel | None = None
    capacity: int = 1
    """How many workloads it stands for: all those of a service in another network may be told as one."""

    @property
    def is_beyond(self) -> bool:
        """Whether it has no address of its own, and can be reached through its network's gateway only."""
        return self.gateway is not None and not self.addresses

    mtls: bool = False
    """A sidecar takes its connections with Istio's mTLS, without a tunnel."""
    machine: bool = False
    """Its addresses are a machine's, where others may serve other ports."""

    def serves(self, port: int) -> bool:
        """Whether a service leads to a port of it."""
        return any(target == port for _, ports in self.services for _, target in ports)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service; http is None where the protocol is not declared."""

    port: int
    target_port: int
    http: bool | None


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A service: its names, its virtual addresses and its ports."""

    ref: ServiceRef
    addresses: tuple[bytes, ...]
    ports: tuple[ServicePort, ...]
    waypoint: GatewayRef | None = None
    identities: tuple[str, ...] = ()
    """SPIFFE IDs that whoever stands for it may have, besides its workloads'."""
    canonical: bool = False
    """Of several services of one host, the one that is meant."""
    private: bool = False
    """For clients of its namespace only."""
    lists_unhealthy: bool = False
    """Its unhealthy workloads are to be found, too (Kubernetes: publishNotReadyAddresses)."""

    def port(self, number: int) -> ServicePort | None:
        """The port of that number."""
        return next((port for port in self.ports if port.port == number), None)


@dataclass(slots=True)
class IndexChange:
    """What an update changed, for those who have derived something from the index."""

    workloads: set[str] = field(default_factory=set)
    """Uids that came, changed or went."""
    addresses: set[bytes] = field(default_factory=set)
    """Addresses at which somebody else is now, or the same one with other properties."""
    hints: bool = False
    """Whether what may need configuration on demand may have changed: service addresses, HTTP ports, addresses of
    workloads with waypoints."""
    services: set[str] = field(default_factory=set)
    """Names of services that came, changed or went, or whose workloads did."""
    gateways: bool = False
    """Whether something that is behind a waypoint or network gateway came, changed or went."""
    tunnels: bool = False
    """Whether a workload that is reached by HBONE came, went or moved."""

    def add(self, other: IndexChange) -> None:
        """Take another change along."""
        self.workloads |= other.workloads
        self.addresses |= other.addresses
        self.services |= other.services
        self.hints |= other.hints
        self.gateways |= other.gateways
        self.tunnels |= other.tunnels


class WorkloadIndex:
    """All workloads and services; changed resource by resource, asked by key."""

    def __init__(self, node: str, network: str = "") -> None:
        self._node = node
        self._network = network
        self._workloads: dict[str, WorkloadEntry] = {}
        self._services: dict[str, ServiceEntry] = {}
        self._by_address: dict[bytes, str] = {}
        self._sharing: dict[bytes, tuple[str, ...]] = {}
        """Those that have an address in common, the last one last."""
        self._by_name: dict[tuple[str, str], str] = {}
        self._by_vip: dict[bytes, tuple[str, ...]] = {}
        self._http_ports: Counter[int] = Counter()
        self._beyond: dict[str, dict[str, WorkloadEntry]] = {}
        """By service and uid: who is in other networks and has no address."""
        self._members: Counter[str] = Counter()
        self._healthy: Counter[str] = Counter()
        self._shared: dict[Any, Any] = {}

    # -- changes --

    def put(self, name: str, address: Any, change: IndexChange) -> None:
        """Add or replace the resource of a name; ValueError says what is wrong with it (nothing has
        changed)."""
        kind = address.WhichOneof("type")
        if kind == "workload":
            workload = self._read_workload(name, address.workload)
            before = self._workloads.get(name)
            if before == workload:
                return
            tunnels = change.tunnels
            self.remove(name, change)
            self._add_workload(name, workload)
            _note_workload(change, name, workload)
            if before is not None and _whereabouts(before) == _whereabouts(workload):
                change.addresses.difference_update(workload.addresses)
                change.tunnels = tunnels
            else:
                change.addresses.update(workload.addresses)
        elif kind == "service":
            service = _read_service(address.service)
            if self._services.get(name) != service:
                self.remove(name, change)
                self._add_service(name, service)
                _note_service(change, name, service)
        else:
            raise ValueError("is neither a workload nor a service")

    def remove(self, name: str, change: IndexChange) -> None:
        """Drop the resource of a name, if there is one."""
        workload = self._workloads.pop(name, None)
        if workload is not None:
            self._drop_workload(name, workload)
            _note_workload(change, name, workload)
            change.addresses.update(workload.addresses)
        service = self._services.pop(name, None)
        if service is not None:
            self._drop_service(name, service)
            _note_service(change, name, service)

    def _add_workload(self, name: str, entry: WorkloadEntry) -> None:
        self._workloads[name] = entry
        self._by_name[entry.ref.namespace, entry.ref.name] = name
        if not entry.host_network:
            for address in entry.addresses:
                other = self._by_address.get(address)
                if other is not None and other != name:
                    self._sharing[address] = (*self._sharing.get(address, (other,)), name)
                self._by_address[address] = name
        for service, _ in entry.services:
            if entry.is_beyond:
                self._beyond.setdefault(service, {})[name] = entry
            self._members[service] += 1
            self._healthy[service] += entry.healthy

    def _drop_workload(self, name: str, entry: WorkloadEntry) -> None:
        key = (entry.ref.namespace, entry.ref.name)
        if self._by_name.get(key) == name:
            del self._by_name[key]
        for address in entry.addresses:
            self._drop_address(address, name)
        for service, _ in entry.services:
            if entry.is_beyond:
                self._beyond[service].pop(name)
                if not self._beyond[service]:
                    del self._beyond[service]
            _decrease(self._members, service, 1)
            _decrease(self._healthy, service, int(entry.healthy))

    def _drop_address(self, address: bytes, name: str) -> None:
        """An address may have gone to another workload already."""
        left = tuple(other for other in self._sharing.pop(address, ()) if other != name)
        if len(left) > 1:
            self._sharing[address] = left
        if left:
            self._by_address[address] = left[-1]
        elif self._by_address.get(address) == name:
            del self._by_address[address]

    def _add_service(self, name: str, entry: ServiceEntry) -> None:
        self._services[name] = entry
        for address in entry.addresses:
            self._by_vip[address] = (*self._by_vip.get(address, ()), name)
        for port in entry.ports:
            if port.http:
                self._http_ports[port.port] += 1

    def _drop_service(self, name: str, entry: ServiceEntry) -> None:
        for address in entry.addresses:
            left = tuple(other for other in self._by_vip.get(address, ()) if other != name)
            if left:
                self._by_vip[address] = left
            else:
                self._by_vip.pop(address, None)
        for port in entry.ports:
            if port.http:
                _decrease(self._http_ports, port.port, 1)

    # -- reading protobufs --

    def _read_workload(self, name: str, message: Any) -> WorkloadEntry:
        labels = _labels(message) if message.node == self._node else None
        if message.node == self._node and not self._network:
            self._network = intern(message.network)
        ref = _read_ref(name, message, dict(labels or ()))
        hbone = message.tunnel_protocol == _HBONE
        mtls = message.tunnel_protocol == _LEGACY_ISTIO_MTLS
        if (hbone or mtls) and (message.addresses or message.service_account):
            # ValueError for a peer that nobody could prove to be.
            Identity(ref.trust_domain, ref.namespace, ref.service_account)
        return WorkloadEntry(
            ref,
            tuple(widen_address(address) for address in message.addresses),
            self._share(_services(message.services)) if message.services else (),
            message.status == 0,
            hbone,
            message.network_mode == _HOST_NETWORK,
            _gateway(message, "waypoint"),
            labels,
            self._share(tuple(message.authorization_policies)),
            intern(message.network),
            _gateway(message, "network_gateway"),
            _locality(message.locality),
            _application_tunnel(message),
            message.capacity.value if message.HasField("capacity") else 1,
            mtls,
            any(extension.name == MACHINE_EXTENSION for extension in message.extensions),
        )

    def _share(self, value: T) -> T:
        """One object for all workloads that serve the same, or have the same policies: 0.2 kB less each."""
        if len(self._shared) > 2 * len(self._services) + _SHARED_SPARE:
            self._shared.clear()
        shared: T = self._shared.setdefault(value, value)
        return shared

    # -- questions --

    def workload(self, uid: str) -> WorkloadEntry | None:
        """The workload of an xDS uid."""
        return self._workloads.get(uid)

    def workload_named(self, namespace: str, name: str) -> WorkloadEntry | None:
        """The workload of a pod's namespace and name."""
        uid = self._by_name.get((namespace, name))
        return None if uid is None else self._workloads[uid]

    def workload_at(self, address: bytes, port: int = 0) -> WorkloadRef | None:
        """Who is at an address (16 bytes); None also for addresses that workloads share with their host. Of a machine
        it is who serves the port, if one is given; None if that is nobody."""
        entry = self.entry_at(address, port)
        return None if entry is None else entry.ref

    def entry_at(self, address: bytes, port: int = 0) -> WorkloadEntry | None:
        """The workload at an address, as workload_at()."""
        uid = self._by_address.get(address)
        if uid is None:
            return None
        if not port or not self._workloads[uid].machine:
            return self._workloads[uid]
        sharing = (self._workloads[other] for other in self._sharing.get(address, (uid,)))
        return next((entry for entry in sharing if entry.machine and entry.serves(port)), None)

    @property
    def network(self) -> str:
        """The network of this agent."""
        return self._network

    def is_elsewhere(self, entry: WorkloadEntry) -> bool:
        """Whether a workload is in another network than this agent."""
        return entry.network != self._network

    def members(self, service: str) -> tuple[WorkloadEntry, ...]:
        """The workloads of a service by its resource's name. Looks at all workloads: not for every connection."""
        return tuple(
            entry for entry in self._workloads.values() if any(name == service for name, _ in entry.services)
        )

    def members_beyond(self, service: str) -> tuple[WorkloadEntry, ...]:
        """Those workloads of a service that are in other networks and have no address."""
        return tuple(self._beyond.get(service, {}).values())

    def service(self, name: str) -> ServiceEntry | None:
        """The service of a resource's name, `namespace/hostname`."""
        return self._services.get(name)

    def service_named_at(self, address: bytes) -> str:
        """The name of a service's resource by a virtual address of it; "" if it is none."""
        return next(iter(sorted(self._by_vip.get(address, ()))), "")

    def service_of_host(self, host: str) -> ServiceEntry | None:
        """The service of a Kubernetes host name."""
        namespace = host.split(".")[1] if host.count(".") else ""
        return self._services.get(f"{namespace}/{host}")

    def waypoint_destinations(self) -> Iterator[tuple[bytes, int]]:
        """(virtual address, port) of all services that have a waypoint."""
        for service in self._services.values():
            if service.waypoint is not None:
                yield from ((address, port.port) for address in service.addresses for port in service.ports)

    def service_at(self, address: bytes, port: int) -> ServiceEntry | None:
        """The service of a virtual address that has the port; of several, the first by name."""
        for name in sorted(self._by_vip.get(address, ())):
            service = self._services[name]
            if service.port(port) is not None:
                return service
        return None

    def http_destinations(self) -> Iterator[tuple[bytes, int]]:
        """(virtual address, port) of all ports that declare HTTP."""
        for service in self._services.values():
            for port in service.ports:
                if port.http:
                    yield from ((address, port.port) for address in service.addresses)

    def is_service_address(self, address: bytes) -> bool:
        """Whether the address is a virtual one of some service."""
        return address in self._by_vip

    def services_of(self, entry: WorkloadEntry) -> Iterator[tuple[int, ServiceRef]]:
        """(target port, service) of what a workload serves, in order of the services' names."""
        for name, ports in entry.services:
            service = self._services.get(name)
            if service is not None:
                for _, target_port in ports:
                    yield target_port, service.ref

    def names_of(self, entry: WorkloadEntry) -> tuple[InboundName, ...]:
        """The ports of services that a workload serves, by the services' host names."""
        return tuple(
            InboundName(self._services[name].ref.host, port, target)
            for name, ports in entry.services
            if name in self._services
            for port, target in ports
            if 0 < port < 65536 and 0 < target < 65536
        )

    def hints(self, *, tunnels: bool = False) -> Hints:
        """All addresses and ports that may need configuration on demand; with `tunnels`, those of workloads that are
        reached by HBONE, too."""
        guarded = {
            address
            for entry in self._workloads.values()
            if entry.waypoint is not None or (tunnels and entry.hbone and not entry.host_network)
            for address in entry.addresses
        }
        return Hints(frozenset(self._by_vip.keys() | guarded), frozenset(self._http_ports))

    def workloads(self) -> tuple[WorkloadEntry, ...]:
        """All workloads."""
        return tuple(self._workloads.values())

    def services(self) -> tuple[tuple[ServiceEntry, int, int], ...]:
        """All services, each with its number of workloads and of healthy ones."""
        return tuple(
            (entry, self._members[name], self._healthy[name]) for name, entry in self._services.items()
        )

    def __len__(self) -> int:
        return len(self._workloads) + len(self._services)


def apply_addresses(
    index: WorkloadIndex, received: Iterable[tuple[str, Any]], removed: Iterable[str]
) -> tuple[IndexChange, Mapping[str, str]]:
    """Put an update into the index; returns what changed, and what could not be taken: name -> why."""
    change = IndexChange()
    rejected: dict[str, str] = {}
    for name in removed:
        index.remove(name, change)
    for name, address in received:
        try:
            index.put(name, address, change)
        except ValueError as error:
            rejected[name] = str(error)
    return change, rejected


def _whereabouts(entry: WorkloadEntry) -> tuple[Any, ...]:
    """What endpoints at a workload's addresses depend on."""
    return (
        entry.ref, entry.addresses, entry.hbone, entry.mtls, entry.host_network, entry.network, entry.gateway,
        entry.services if entry.machine else (),
    )  # fmt: skip


def _decrease(counter: Counter[Any], key: Any, amount: int) -> None:
    counter[key] -= amount
    if counter[key] <= 0:
        del counter[key]


def _read_ref(name: str, message: Any, labels: Mapping[str, str]) -> WorkloadRef:
    return WorkloadRef(
        uid=name,
        name=message.name,
        namespace=intern(message.namespace),
        workload_name=intern(message.workload_name),
        workload_type=_TYPES[message.workload_type] if message.workload_type < len(_TYPES) else "",
        canonical_name=intern(message.canonical_name),
        canonical_revision=intern(message.canonical_revision),
        app=intern(labels.get("app", message.canonical_name)),
        version=intern(labels.get("version", message.canonical_revision)),
        cluster=intern(message.cluster_id),
        service_account=intern(message.service_account),
        trust_domain=intern(message.trust_domain or "cluster.local"),
        node=intern(message.node),
    )


def _read_service(message: Any) -> ServiceEntry:
    if not message.hostname:
        raise ValueError("the service has no hostname")
    addresses = [widen_address(address.address) for address in message.addresses if _is_host(address)]
    return ServiceEntry(
        ServiceRef(message.hostname, message.name, intern(message.namespace)),
        tuple(address for address in addresses if any(address[12:]) or any(address[:10])),
        tuple(_service_port(port) for port in message.ports),
        _gateway(message, "waypoint"),
        tuple(dict.fromkeys(intern(name) for name in message.subject_alt_names)),
        message.canonical,
        message.visibility == _VISIBLE_TO_NAMESPACE,
        message.load_balancing.health_policy == _ALLOW_ALL,
    )


def _is_host(address: Any) -> bool:
    """Whether it is one address, not a network: a ServiceEntry may have CIDR blocks."""
    return not address.HasField("length") or address.length == 8 * len(address.address)


def _service_port(port: Any) -> ServicePort:
    if not 0 < port.service_port < 65536:
        raise ValueError(f"service port {port.service_port} is out of range")
    protocol = int(port.app_protocol)
    http = None if protocol == _UNKNOWN_PROTOCOL else protocol in _HTTP_PROTOCOLS
    return ServicePort(port.service_port, port.target_port, http)


def _services(services: Any) -> Served:
    return tuple([(intern(name), _ports(services[name])) for name in sorted(services)])


def _ports(ports: Any) -> tuple[tuple[int, int], ...]:
    return tuple([(port.service_port, port.target_port) for port in ports.ports])


def _gateway(message: Any, field_name: str) -> GatewayRef | None:
    """What a field of type GatewayAddress says; ValueError if it is no place."""
    if not message.HasField(field_name):
        return None
    value = getattr(message, field_name)
    port = value.hbone_mtls_port or _HBONE_PORT
    if port > 65535:
        raise ValueError(f"{field_name}: port {port} is out of range")
    if value.WhichOneof("destination") == "hostname":
        name = f"{value.hostname.namespace}/{value.hostname.hostname}"
        return GatewayRef(service=intern(name), port=port)
    if value.WhichOneof("destination") is None:
        raise ValueError(f"{field_name} says neither a host name nor an address")
    address = value.address
    return GatewayRef(network=intern(address.network), address=widen_address(address.address), port=port)


def _application_tunnel(message: Any) -> ApplicationTunnel | None:
    tunnel = message.application_tunnel
    if not message.HasField("application_tunnel") or tunnel.protocol != _PROXY:
        return None
    if tunnel.port > 65535:
        raise ValueError(f"application_tunnel.port {tunnel.port} is out of range")
    return ApplicationTunnel(tunnel.port)


def _note_workload(change: IndexChange, name: str, entry: WorkloadEntry) -> None:
    change.workloads.add(name)
    change.services.update(service for service, _ in entry.services)
    if entry.waypoint is not None:
        change.gateways = change.hints = True
    if entry.gateway is not None:
        change.gateways = True
    change.tunnels |= entry.hbone


def _note_service(change: IndexChange, name: str, entry: ServiceEntry) -> None:
    change.hints = True
    change.services.add(name)
    change.gateways |= entry.waypoint is not None


def _locality(message: Any) -> str:
    parts = (message.region, message.zone, message.subzone)
    return intern("/".join(parts).rstrip("/"))


def _labels(message: Any) -> tuple[tuple[str, str], ...] | None:
    """The pod's labels, if the control plane tells them (an extension of ours)."""
    for extension in message.extensions:
        if extension.name == LABELS_EXTENSION:
            from google.protobuf import struct_pb2

            labels = struct_pb2.Struct()
            if extension.config.Unpack(labels):
                return tuple(sorted((key, value.string_value) for key, value in labels.fields.items()))
    return None
