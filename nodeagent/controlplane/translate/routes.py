"""Route configurations and virtual hosts, in istiod's sidecar shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from envoy.config.route.v3 import route_components_pb2, route_pb2

from nodeagent.controlplane.translate.http_routes import http_routes, set_timeout
from nodeagent.controlplane.translate.listeners import service_route_name
from nodeagent.controlplane.translate.packing import ads
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import UNREGISTERED_PORT
from nodeagent.model import names
from nodeagent.model.names import ClusterName, is_ipv6
from nodeagent.model.service import Service

VirtualHost: TypeAlias = route_components_pb2.VirtualHost
Route: TypeAlias = route_components_pb2.Route
RouteConfiguration: TypeAlias = route_pb2.RouteConfiguration


def short_names(host: str, namespace: str, domain: str) -> tuple[str, ...]:
    """What a service may be called from `namespace` besides its full host: with a final dot, and shortened."""
    suffix = f".svc.{domain}"
    stem = host.removesuffix(suffix)
    if stem == host:
        return (f"{host}.",)
    name, _, owner = stem.rpartition(".")
    own = (name,) if owner == namespace else ()
    return (f"{host}.", *own, stem, f"{stem}.svc")


def domains(view: View, service: Service, port: int) -> list[str]:
    """Every Host under which requests to a port of a service come, each also with the port."""
    hosts = [service.host, *short_names(service.host, view.namespace, view.world.settings.domain)]
    if service.headless and not service.is_entry:
        # A pod of a headless service is called by name: pod.service.
        hosts += [f"*.{host}" for host in hosts if "." in host]
    hosts += [f"[{address}]" if is_ipv6(address) else address for address in service.addresses]
    return [domain for host in hosts for domain in (host, f"{host}:{port}")]


def virtual_host(view: View, service: Service, port: int) -> VirtualHost | None:
    """The virtual host of a port of a service; None if the port is not routed by HTTP rules."""
    found = service.port(port)
    if found is None or not found.protocol.may_be_http:
        return None
    routes = _ruled_routes(view, service.host, port) or [default_route(service, port)]
    return VirtualHost(
        name=f"{service.host}:{port}",
        domains=domains(view, service, port),
        routes=routes,
        include_request_attempt_count=True,
    )


def unregistered_virtual_host(view: View, host: str) -> VirtualHost | None:
    """The virtual host of a host that only a VirtualService knows; None if no route of it is for the client."""
    port = UNREGISTERED_PORT
    routes = _ruled_routes(view, host, port)
    if not routes:
        return None
    name = f"[{host}]" if is_ipv6(host) else host
    return VirtualHost(
        name=f"{name}:{port}",
        domains=[name, f"{name}:{port}"] if name != "*" else ["*"],
        routes=routes,
        include_request_attempt_count=True,
    )


def _ruled_routes(view: View, host: str, port: int) -> list[Route]:
    """Routes of the first VirtualService for the host that has any for the client."""
    for rule in view.world.rules.virtual_services_for(host, view.namespace):
        routes = http_routes(view, rule, port)
        if routes:
            return routes
    return []


def default_route(service: Service, port: int) -> Route:
    """Everything to the service itself, with no time limit."""
    cluster = str(ClusterName(names.OUTBOUND, port, "", service.host))
    route = Route(name="default", route=forward(cluster))
    route.match.prefix = "/"
    route.decorator.operation = f"{service.host}:{port}/*"
    return route


def forward(cluster: str) -> route_components_pb2.RouteAction:
    """An action to one cluster with no time limit (Istio: off by default)."""
    action = route_components_pb2.RouteAction(cluster=cluster)
    set_timeout(action, None)
    return action


def allow_any() -> VirtualHost:
    """Hosts that the mesh does not know pass through."""
    route = Route(name=names.ALLOW_ANY, route=forward(names.PASSTHROUGH_CLUSTER))
    route.match.prefix = "/"
    return VirtualHost(
        name=names.ALLOW_ANY, domains=["*"], routes=[route], include_request_attempt_count=True
    )


def route_configuration(view: View, name: str, hosts: Iterable[VirtualHost]) -> RouteConfiguration:
    """A route configuration of the virtual hosts; on demand only its catch-all, and the rest by VHDS."""
    found = RouteConfiguration(name=name)
    if view.perspective.on_demand:
        found.vhds.config_source.CopyFrom(ads())
    else:
        found.virtual_hosts.extend(_without_shared_domains(hosts))
    if not any("*" in host.domains for host in found.virtual_hosts):
        found.virtual_hosts.append(allow_any())
    # A cluster may come later than the route to it; until then 503.
    found.validate_clusters.value = False
    found.max_direct_response_body_size_bytes.value = 1 << 20
    found.ignore_port_in_host_matching = True
    return found


def _without_shared_domains(hosts: Iterable[VirtualHost]) -> Iterable[VirtualHost]:
    """Envoy refuses a route configuration in which a domain is there twice: the first virtual host keeps it."""
    seen: set[str] = set()
    for host in hosts:
        kept = [domain for domain in host.domains if domain not in seen]
        seen.update(kept)
        if len(kept) == len(host.domains):
            yield host
        elif kept:
            trimmed = VirtualHost()
            trimmed.CopyFrom(host)
            del trimmed.domains[:]
            trimmed.domains.extend(kept)
            yield trimmed


def port_routes(view: View, port: int) -> RouteConfiguration | None:
    """The route configuration of all HTTP services on a port; None if there are none."""
    services = view.services_on_port(port)
    if not any(
        found.protocol.is_http for service in services for found in service.tcp_ports if found.port == port
    ):
        return None
    if view.perspective.on_demand:
        return route_configuration(view, str(port), ())
    hosts = [found for service in services if (found := virtual_host(view, service, port)) is not None]
    if port == UNREGISTERED_PORT:
        hosts += unregistered_virtual_hosts(view)
    return route_configuration(view, str(port), hosts)


def unregistered_virtual_hosts(view: View) -> list[VirtualHost]:
    """Virtual hosts of the hosts that only VirtualServices know."""
    unknown = view.world.rules.unregistered_hosts(view.world.registry.services)
    return [found for host in unknown if (found := unregistered_virtual_host(view, host)) is not None]


def service_routes(view: View, service: Service) -> Iterable[RouteConfiguration]:
    """Route configurations of the ports of a service whose protocol is found out by connection."""
    for port in service.tcp_ports:
        host = virtual_host(view, service, port.port)
        if host is not None and not port.protocol.is_http:
            yield route_configuration(view, service_route_name(service.host, port.port), [host])
