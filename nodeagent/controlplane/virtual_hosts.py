"""VHDS: single virtual hosts, found by any of the names under which a client may call a service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from envoy.config.route.v3 import route_components_pb2

from nodeagent.controlplane.change import Change
from nodeagent.controlplane.resources import Group, Resource, type_url
from nodeagent.controlplane.translate import listeners, routes
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import UNREGISTERED_PORT
from nodeagent.model import names
from nodeagent.model.service import Service


class VirtualHostKind:
    """VHDS: one virtual host, asked for as `route configuration/host` by any of its names.

    A group is a host: of a service, or one that only a VirtualService names (perhaps a wildcard).
    """

    type_url = type_url(route_components_pb2.VirtualHost)
    wildcard = False
    complete = False

    def groups(self, view: View) -> Iterable[Group]:
        """Virtual hosts are served by name only."""
        del view
        return ()

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """The virtual hosts of a host, for each of its ports."""
        host = str(group)
        service = view.service(host)
        if service is None:
            return _resources(str(UNREGISTERED_PORT), routes.unregistered_virtual_host(view, host))
        found: dict[str, Resource] = {}
        for port in service.tcp_ports:
            made = routes.virtual_host(view, service, port.port)
            found |= _resources(str(port.port), made)
            if not port.protocol.is_http:
                found |= _resources(listeners.service_route_name(service.host, port.port), made)
        return found

    def group_of(self, view: View, name: str) -> Group | None:
        """The host that a name or address means in the client's namespace."""
        table, _, domain = name.partition("/")
        domain = domain.lower()
        service = service_called(view, domain)
        if service is not None:
            by_port = table.isdecimal() and service.port(int(table)) is not None
            return service.host if by_port or table.rpartition(":")[0] == service.host else None
        return _unregistered_host(view, domain) if table == str(UNREGISTERED_PORT) else None

    def pick(self, resources: Mapping[str, Resource], name: str) -> Iterable[Resource]:
        """The virtual host of that route configuration, under the name asked for."""
        table, _, _ = name.partition("/")
        for resource in resources.values():
            if resource.name.partition("/")[0] == table:
                every = (resource.name, *resource.aliases)
                return (
                    Resource(name, resource.body, resource.version, tuple(a for a in every if a != name)),
                )
        return ()

    def affected(self, view: View, change: Change) -> set[Group]:
        """Services and routes."""
        del view
        return {*change.services, *change.routes}

    def moves(self, change: Change) -> bool:
        """Names may have come to mean another host."""
        return bool(change.services or change.routes)


def _resources(table: str, host: routes.VirtualHost | None) -> dict[str, Resource]:
    if host is None:
        return {}
    every = [f"{table}/{domain}" for domain in host.domains]
    return {every[0]: Resource.of(every[0], host, every[1:])}


def service_called(view: View, host: str) -> Service | None:
    """The service that a Host header (in lower case, without port) means to the client."""
    suffix = f".svc.{view.world.settings.domain}"
    text = host.removesuffix(".")
    address = names.canonical_address(text.strip("[]"))
    if address is not None:
        service = view.world.registry.service_at(address)
        return service if service is not None and view.sees(service) else None
    stem = text.removesuffix(suffix).removesuffix(".svc")
    candidates = [text, f"{stem}{suffix}"]
    if "." not in text:
        candidates.append(f"{text}.{view.namespace}{suffix}")
    found = next((found for name in candidates if (found := view.service(name)) is not None), None)
    if found is None and "." in text:
        # pod.service: a pod of a headless service is called by name.
        behind = service_called(view, text.partition(".")[2])
        return behind if behind is not None and behind.headless and not behind.is_entry else None
    return found


def _unregistered_host(view: View, host: str) -> Group | None:
    """The most specific host among VirtualServices' that covers it and is no service."""
    known = view.world.rules.route_hosts_covering(host)
    services = view.world.registry.services
    return next((name for name in known if name not in services), None)
