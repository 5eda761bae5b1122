"""Who asks: what of a client decides which resources it gets, and the resources made for clients alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeagent.controlplane.istio.rules import HostPolicy
from nodeagent.model.service import Service, exported

if TYPE_CHECKING:
    from nodeagent.controlplane.world import World
    from nodeagent.model.workload import Workload


@dataclass(frozen=True, slots=True)
class Perspective:
    """Clients with equal perspectives get equal outbound resources."""

    namespace: str
    labels: tuple[tuple[str, str], ...] = ()
    on_demand: bool = False
    proxyless: bool = False
    """A gRPC client that speaks xDS itself."""
    http10: bool = False
    knows_peers: bool = False
    """It is told by L4 policies which peers need certificates."""


@dataclass(frozen=True, slots=True)
class Client:
    """One connected client as its node message tells: `kind` is sidecar, ztunnel, router, ..."""

    node_id: str
    kind: str
    namespace: str
    pod: str = ""
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    """Labels that the client gave itself; None: look them up by pod."""
    on_demand: bool = False
    proxyless: bool = False
    http10: bool = False
    knows_peers: bool = False
    parts: bool = False
    """It takes large answers in parts."""
    node: str = ""
    """Where it runs, as Kubernetes calls it."""

    def workload(self, world: World) -> Workload | None:
        """The pod that the client is the proxy of, by name, else by address."""
        found = world.registry.workload_named(self.namespace, self.pod) if self.pod else None
        if found is None and self.kind == "sidecar":
            at = (world.registry.workload_at(address) for address in self.addresses)
            found = next((pod for pod in at if pod and pod.namespace == self.namespace), None)
        return found

    def perspective(self, workload: Workload | None) -> Perspective:
        """What decides this client's outbound resources."""
        labels = self.labels if self.labels is not None else workload.labels if workload else {}
        return Perspective(
            self.namespace,
            tuple(sorted(labels.items())),
            self.on_demand,
            self.proxyless,
            self.http10,
            self.knows_peers,
        )


@dataclass(frozen=True, slots=True)
class View:
    """The world as one client sees it, at one moment."""

    world: World
    perspective: Perspective
    workload: Workload | None = None
    node: str = ""
    """Where the client runs. What is there goes first; nothing else may depend on it."""

    @property
    def namespace(self) -> str:
        """The client's namespace."""
        return self.perspective.namespace

    @property
    def own_namespace(self) -> str:
        """The namespace of the client's own pod."""
        return self.workload.namespace if self.workload is not None else self.perspective.namespace

    @property
    def own_labels(self) -> Mapping[str, str]:
        """The labels of the client's own pod; of one that is not known, as the client says."""
        return self.workload.labels if self.workload is not None else dict(self.perspective.labels)

    def sees(self, service: Service) -> bool:
        """Whether the service is exported to the client's namespace."""
        return exported(service.export_to, service.namespace, self.namespace)

    def hosts(self) -> Iterator[str]:
        """The hosts of all services that the client sees, in order."""
        services = self.world.registry.services
        return (host for host, service in sorted(services.items()) if self.sees(service))

    def policy(self, service: Service) -> HostPolicy:
        """What DestinationRules say to the client of a service."""
        return self.world.rules.policy(service, self.namespace)

    def service(self, host: str) -> Service | None:
        """The service of a host, if the client sees it."""
        found = self.world.registry.services.get(host)
        return found if found is not None and self.sees(found) else None

    def services_on_port(self, port: int) -> list[Service]:
        """The services with that port that the client sees, in order of host."""
        return [service for service in self.world.registry.services_on_port(port) if self.sees(service)]
