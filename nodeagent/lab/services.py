"""Services of a lab: what they are, and which pods serve them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a Service; `target` is a number, or the name of a port of the pods."""

    name: str
    port: int
    protocol: str
    target: int | str


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A v1 Service, decoded. `cluster_ips` is what the user fixed, `families` what it is to have."""

    namespace: str
    name: str
    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...]
    headless: bool = False
    external_name: str = ""
    publish_not_ready: bool = False
    cluster_ips: tuple[Address, ...] = ()
    families: tuple[int, ...] = (4, 6)

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A pod, or an address of a manual EndpointSlice, as services see it."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    addresses: tuple[Address, ...]
    ready: bool
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (name, protocol) -> number


@dataclass(frozen=True, slots=True)
class PortEndpoints:
    """Where a service port leads: addresses with target ports, ready ones only."""

    port: ServicePort
    endpoints: tuple[tuple[Address, int], ...]


@dataclass(frozen=True, slots=True)
class Service:
    """A service with its virtual addresses and its present endpoints."""

    spec: ServiceSpec
    virtual_ips: tuple[Address, ...]
    ports: tuple[PortEndpoints, ...]
    members: tuple[Backend, ...]  # what a headless name answers with


def build_services(
    specs: Iterable[ServiceSpec],
    virtual_ips: Mapping[str, tuple[Address, ...]],
    pods: Sequence[Backend],
    slices: Mapping[str, Sequence[Backend]],
) -> list[Service]:
    """Join services with the pods that they select, or with the slices made for them by hand."""
    services = []
    for spec in specs:
        members = _select(spec, pods) if spec.selector else list(slices.get(spec.key, ()))
        ready = [member for member in members if member.ready or spec.publish_not_ready]
        ports = tuple(
            PortEndpoints(port, _endpoints(port, ready, bool(spec.selector))) for port in spec.ports
        )
        services.append(Service(spec, virtual_ips.get(spec.key, ()), ports, tuple(ready)))
    return services


def _select(spec: ServiceSpec, pods: Sequence[Backend]) -> list[Backend]:
    wanted = spec.selector.items()
    return [pod for pod in pods if pod.namespace == spec.namespace and wanted <= pod.labels.items()]


def _endpoints(
    port: ServicePort, members: Sequence[Backend], selected: bool
) -> tuple[tuple[Address, int], ...]:
    found: list[tuple[Address, int]] = []
    for member in members:
        if not selected:  # a slice names its ports as the service does
            target = member.ports.get((port.name, port.protocol))
        elif isinstance(port.target, int):
            target = port.target
        else:
            target = member.ports.get((port.target, port.protocol))
        if target is not None:
            found += [(address, target) for address in member.addresses]
    return tuple(found)
