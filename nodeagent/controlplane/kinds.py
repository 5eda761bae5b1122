"""The types of resources that are served: how each is grouped, found by name, made, and touched by changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2

from nodeagent.controlplane.change import EVERYWHERE, Change
from nodeagent.controlplane.resources import INBOUND, MESH_TYPE, STATIC, Group, Kind, Resource, type_url
from nodeagent.controlplane.translate import (
    clusters,
    endpoints,
    inbound,
    listeners,
    proxyless,
    routes,
    workloads,
)
from nodeagent.controlplane.translate.authorizations import Authorizations
from nodeagent.controlplane.view import View
from nodeagent.controlplane.virtual_hosts import VirtualHostKind, service_called
from nodeagent.model import names
from nodeagent.model.names import ClusterName
from nodeagent.model.workload import Workload
from nodeagent.proto import authorization_pb2, mesh_pb2, workload_pb2

_MESH_NAME: Final = "mesh"
_WITH_PODS: Final = "#with-pods/"
_STATIC_CLUSTERS: Final = frozenset({names.PASSTHROUGH_CLUSTER, names.BLACK_HOLE_CLUSTER})


def _named(resources: Iterable[Resource]) -> dict[str, Resource]:
    return {resource.name: resource for resource in resources}


class _ByName:
    """What most kinds have in common: a subscription names the resource itself."""

    wildcard = False
    complete = False

    def pick(self, resources: Mapping[str, Resource], name: str) -> Iterable[Resource]:
        """The resource of that very name."""
        found = resources.get(name)
        return () if found is None else (found,)

    def moves(self, change: Change) -> bool:
        """Names say where they belong: changes move nothing."""
        del change
        return False


class ClusterKind(_ByName):
    """CDS: clusters by host, those of the client's own pod, and fixed ones."""

    type_url = type_url(cluster_pb2.Cluster)
    wildcard = True
    complete = True

    def groups(self, view: View) -> Iterable[Group]:
        """Every visible host, the fixed ones, the own pod's."""
        yield STATIC
        yield INBOUND
        yield from view.hosts()

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """Clusters of a host."""
        made: Iterable[clusters.Cluster]
        if group == STATIC:
            made = (clusters.passthrough_cluster(), clusters.black_hole_cluster())
        elif group == INBOUND:
            made = inbound.inbound_clusters(view)
        else:
            service = view.service(str(group))
            made = clusters.outbound_clusters(view, service) if service else ()
        return _named(Resource.of(cluster.name, cluster) for cluster in made)

    def group_of(self, view: View, name: str) -> Group | None:
        """By the host in the name."""
        del view
        if name in _STATIC_CLUSTERS:
            return STATIC
        parsed = ClusterName.parse(name)
        if name == names.INBOUND_PASSTHROUGH_CLUSTER or (parsed and parsed.direction == names.INBOUND):
            return INBOUND
        return parsed.host if parsed else None

    def affected(self, view: View, change: Change) -> set[Group]:
        """Services and traffic policies."""
        found: set[Group] = {*change.services, *change.rules}
        return found | _inbound_group(view, change)


class EndpointKind(_ByName):
    """EDS: endpoints by host."""

    type_url = type_url(endpoint_pb2.ClusterLoadAssignment)

    def groups(self, view: View) -> Iterable[Group]:
        """Every visible host."""
        return view.hosts()

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """Endpoints of all ports and subsets of a host."""
        service = view.service(str(group))
        made = endpoints.load_assignments(view, service) if service else ()
        return _named(Resource.of(assignment.cluster_name, assignment) for assignment in made)

    def group_of(self, view: View, name: str) -> Group | None:
        """By the host in the name."""
        del view
        parsed = ClusterName.parse(name)
        return parsed.host if parsed and parsed.direction == names.OUTBOUND else None

    def affected(self, view: View, change: Change) -> set[Group]:
        """Endpoints, and what decides subsets."""
        del view
        return {*change.endpoints, *change.services, *change.rules}


class ListenerKind(_ByName):
    """LDS: HTTP listeners by port, others by host, the capture listeners."""

    type_url = type_url(listener_pb2.Listener)
    wildcard = True
    complete = True

    def groups(self, view: View) -> Iterable[Group]:
        """Every port, every visible host, the capture listeners."""
        yield STATIC
        yield INBOUND
        yield from view.world.registry.service_ports()
        yield from view.hosts()

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """Listeners of a port or host."""
        made: Iterable[listener_pb2.Listener | None]
        if view.perspective.proxyless:
            service = view.service(str(group))
            made = proxyless.listeners(view, service) if service else ()
        elif isinstance(group, int):
            made = (listeners.http_listener(view, group),)
        elif group == STATIC:
            made = (listeners.virtual_outbound(),)
        elif group == INBOUND:
            made = (inbound.virtual_inbound(view),)
        else:
            service = view.service(group)
            made = listeners.address_listeners(view, service) if service else ()
        return _named(Resource.of(listener.name, listener) for listener in made if listener is not None)

    def group_of(self, view: View, name: str) -> Group | None:
        """By port, by whose address it is, or for a gRPC client by host."""
        if view.perspective.proxyless:
            called = service_called(view, name.rpartition(":")[0].lower())
            return called.host if called else None
        if name == names.VIRTUAL_OUTBOUND:
            return STATIC
        if name == names.VIRTUAL_INBOUND:
            return INBOUND
        address, _, port = name.rpartition("_")
        if not port.isdecimal():
            return None
        if address == listeners.ANY_V4:
            return int(port)
        service = view.world.registry.service_at(address)
        if service is not None:
            return service.host
        headless = listeners.headless_owner(view, address, int(port))
        return headless.host if headless else None

    def affected(self, view: View, change: Change) -> set[Group]:
        """Services, TCP routes, and endpoints of headless services."""
        services = view.world.registry.services
        headless = {host for host in change.endpoints if host in services and services[host].headless}
        # Headless services may share pods, and with them the names of listeners.
        if headless or change.services:
            headless |= view.world.registry.headless
        found: set[Group] = {*change.services, *change.routes, *headless, *change.ports}
        return found | _inbound_group(view, change)

    def moves(self, change: Change) -> bool:
        """Addresses may have changed hands."""
        return bool(change.services or change.endpoints)


class RouteKind(_ByName):
    """RDS: route configurations by port, those of ports with undeclared protocol by host."""

    type_url = type_url(route_pb2.RouteConfiguration)

    def groups(self, view: View) -> Iterable[Group]:
        """Every port and visible host."""
        yield from view.world.registry.service_ports()
        yield from view.hosts()

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """Route configurations of a port or host."""
        made: Iterable[routes.RouteConfiguration | None]
        if view.perspective.proxyless:
            service = view.service(str(group))
            made = proxyless.route_configurations(view, service) if service else ()
        elif isinstance(group, int):
            made = (routes.port_routes(view, group),)
        else:
            service = view.service(group)
            made = routes.service_routes(view, service) if service else ()
        return _named(Resource.of(found.name, found) for found in made if found is not None)

    def group_of(self, view: View, name: str) -> Group | None:
        """`port` or `host:port`; for a gRPC client the cluster's name."""
        if view.perspective.proxyless:
            parsed = ClusterName.parse(name)
            return parsed.host if parsed else None
        if name.isdecimal():
            return int(name)
        host, _, port = name.rpartition(":")
        return host if host and port.isdecimal() else None

    def affected(self, view: View, change: Change) -> set[Group]:
        """Services and routes; on demand only what decides whether the route configuration exists."""
        del view
        return {*change.services, *change.routes, *change.ports}


class AddressKind:
    """istio.workload.Address: pods by uid and services by host; both the wildcard and on demand.

    On demand a service comes with its pods, as istiod has it: a proxy that asks for a service is about to pick one.
    Such a group is the host with a prefix, so that the wildcard does not hold the pods twice.
    """

    type_url = type_url(workload_pb2.Address)
    wildcard = True
    complete = False

    def groups(self, view: View) -> Iterable[Group]:
        """Every service and every pod. Those of the client's own node go first: they may be waiting."""
        registry = view.world.registry
        here = {uid for uid, pod in registry.workloads.items() if view.node and pod.node == view.node}
        yield from sorted(here)
        yield from sorted(registry.services)
        yield from (uid for uid in sorted(registry.workloads) if uid not in here)

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """The pod, the service, or the service with its pods."""
        registry = view.world.registry
        key = str(group)
        workload = registry.workloads.get(key)
        if workload is not None:
            return _named([_workload(view, workload)]) if _is_told(view, workload) else {}
        service = registry.services.get(key.removeprefix(_WITH_PODS))
        if service is None or not workloads.everyone_sees(service):
            return {}
        pods = registry.workloads_of(service) if key.startswith(_WITH_PODS) else []
        aliases = tuple(map(workloads.address_key, service.addresses))
        own = Resource.of(workloads.service_key(service), workloads.service_address(view, service), aliases)
        return _named([own, *(_workload(view, pod) for pod in pods)])

    def group_of(self, view: View, name: str) -> Group | None:
        """By uid, namespace/hostname or network/address."""
        registry = view.world.registry
        if name in registry.workloads:
            return name
        cluster, _, rest = name.partition("//v1/Pod/")
        if rest and f"{cluster}//Pod/{rest}" in registry.workloads:
            return f"{cluster}//Pod/{rest}"
        first, _, second = name.partition("/")
        if first == workloads.NETWORK:
            address = names.canonical_address(second)
            service = registry.service_at(address) if address else None
            workload = registry.workload_at(address) if address else None
            return f"{_WITH_PODS}{service.host}" if service else workload.uid if workload else None
        service = registry.services.get(second)
        return f"{_WITH_PODS}{second}" if service is not None and service.namespace == first else None

    def pick(self, resources: Mapping[str, Resource], name: str) -> Iterable[Resource]:
        """Whatever the group has: a group is what one name means."""
        del name
        return resources.values()

    def affected(self, view: View, change: Change) -> set[Group]:
        """Pods and services; a pod says which services it stands behind."""
        del view
        with_pods = (f"{_WITH_PODS}{host}" for host in change.services | change.endpoints | change.addresses)
        return {*change.workloads, *change.services, *change.addresses, *with_pods}

    def moves(self, change: Change) -> bool:
        """Addresses may have changed hands."""
        return bool(change.workloads or change.services)


def _is_told(view: View, workload: Workload) -> bool:
    """Not an endpoint of a ServiceEntry where somebody is known better: an address has one workload."""
    if not workload.is_listed:
        return True
    return all(view.world.registry.workload_at(address) is workload for address in workload.addresses)


def _workload(view: View, workload: Workload) -> Resource:
    aliases = workloads.workload_aliases(workload, view.world.settings.cluster_id)
    return Resource.of(workload.uid, workloads.workload_address(view, workload), aliases)


class AuthorizationKind(_ByName):
    """istio.security.Authorization: security policies as far as connections show them, each a group of its own."""

    type_url = type_url(authorization_pb2.Authorization)
    wildcard = True

    def groups(self, view: View) -> Iterable[Group]:
        """Every policy."""
        return _authorizations(view).names()

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """The policy of that name."""
        found = _authorizations(view).named(str(group))
        return _named([Resource.of(str(group), found)]) if found is not None else {}

    def group_of(self, view: View, name: str) -> Group | None:
        """The name itself."""
        del view
        return name if "/" in name else None

    def affected(self, view: View, change: Change) -> set[Group]:
        """Policies."""
        del view
        return set(change.policies)


class MeshKind(_ByName):
    """MeshConfig, as far as node agents go by it: whose members are the mesh's."""

    type_url = MESH_TYPE
    wildcard = True
    complete = True

    def groups(self, view: View) -> Iterable[Group]:
        """The one that there is."""
        del view
        yield STATIC

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """The trust domains in force."""
        del group
        domain, *aliases = view.world.trust.domains
        found = mesh_pb2.MeshConfig(trust_domain=domain, trust_domain_aliases=aliases)
        return _named([Resource.of(_MESH_NAME, found)])

    def group_of(self, view: View, name: str) -> Group | None:
        """Where the one is."""
        del view
        return STATIC if name == _MESH_NAME else None

    def affected(self, view: View, change: Change) -> set[Group]:
        """MeshConfig concerns everybody's guards."""
        del view
        return {STATIC} if EVERYWHERE in change.guarded else set()


def _authorizations(view: View) -> Authorizations:
    return Authorizations(view.world.security, view.world.trust)


def _inbound_group(view: View, change: Change) -> set[Group]:
    """The own pod's group, if the change may have touched it."""
    if change.guarded & {view.own_namespace, EVERYWHERE}:
        return {INBOUND}
    own = view.workload is not None and view.workload.uid in change.workloads
    return {INBOUND} if own or change.services else set()


# In the order in which they are sent: make before break.
KINDS: Final[tuple[Kind, ...]] = (
    MeshKind(),
    ClusterKind(),
    EndpointKind(),
    ListenerKind(),
    RouteKind(),
    VirtualHostKind(),
    # Node agents let nothing in before they know the policies, which are few.
    AuthorizationKind(),
    AddressKind(),
)
