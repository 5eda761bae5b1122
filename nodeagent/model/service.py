"""Services: a name with ports, virtual addresses and the labels of what stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodeagent.model.protocols import Protocol

EVERYONE = "*"
OWN_NAMESPACE = "."
NO_ONE = "~"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service. `target` is a port number, or the name of a container port."""

    name: str
    port: int
    target: int | str
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the registry; `host` is its key."""

    name: str
    namespace: str
    host: str
    ports: tuple[ServicePort, ...]
    addresses: tuple[str, ...]
    """Virtual addresses in canonical form; empty for a headless service."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the pods behind it; empty: endpoints come from EndpointSlices only."""
    labels: Mapping[str, str] = field(default_factory=dict)
    export_to: frozenset[str] = frozenset({EVERYONE})
    created: float = 0.0
    """Seconds since the epoch; decides who comes first when two claim one thing."""
    publish_not_ready: bool = False
    is_entry: bool = False
    """A host of a ServiceEntry, not a Kubernetes Service."""
    listed: frozenset[str] = frozenset()
    """Addresses of the endpoints that it lists itself (ServiceEntry)."""
    passes_through: bool = False
    """Connections go where they were going (ServiceEntry, resolution NONE)."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name by which endpoints are given to it. A ServiceEntry may be called as a Service is."""
        return self.namespace, f"ServiceEntry/{self.name}" if self.is_entry else self.name

    @property
    def headless(self) -> bool:
        """Whether clients connect to the endpoints' own addresses."""
        return not self.addresses

    def port(self, number: int) -> ServicePort | None:
        """The TCP port of that number, if the service has it."""
        return next((port for port in self.tcp_ports if port.port == number), None)

    @property
    def tcp_ports(self) -> tuple[ServicePort, ...]:
        """Ports that connections can be made to; UDP is not proxied."""
        return tuple(port for port in self.ports if port.protocol is not Protocol.UDP)

    @property
    def udp_ports(self) -> tuple[ServicePort, ...]:
        """Ports that datagrams can be sent to."""
        return tuple(port for port in self.ports if port.protocol is Protocol.UDP)


def exported(export_to: frozenset[str], owner: str, client: str) -> bool:
    """Whether something of namespace `owner` with that exportTo is seen from namespace `client`."""
    if EVERYONE in export_to or client in export_to:
        return True
    return OWN_NAMESPACE in export_to and owner == client
