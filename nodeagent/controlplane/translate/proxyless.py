"""The shape for gRPC clients that speak xDS themselves: `xds:///host:port` finds a listener of that name.

Listener `host:port` (api_listener) -> route configuration `outbound|port||host` -> clusters -> endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2

from nodeagent.controlplane.translate import connections
from nodeagent.controlplane.translate.packing import ads, pack
from nodeagent.controlplane.translate.routes import RouteConfiguration, short_names, virtual_host
from nodeagent.controlplane.view import View
from nodeagent.model import names
from nodeagent.model.names import ClusterName
from nodeagent.model.service import Service

Listener: TypeAlias = listener_pb2.Listener


def listeners(view: View, service: Service) -> Iterable[Listener]:
    """A listener for each port under each name of the service: clients take the one that is named as they asked."""
    for port in service.tcp_ports:
        route_name = str(ClusterName(names.OUTBOUND, port.port, "", service.host))
        manager = connections.manager(view.perspective, f"outbound_{service.host}_{port.port};")
        manager.rds.config_source.CopyFrom(ads())
        manager.rds.route_config_name = route_name
        for host in (service.host, *short_names(service.host, view.namespace, view.world.settings.domain)):
            found = Listener(name=f"{host}:{port.port}")
            found.api_listener.api_listener.CopyFrom(pack(manager))
            yield found


def route_configurations(view: View, service: Service) -> Iterable[RouteConfiguration]:
    """A route configuration for each port, with one virtual host that takes every authority."""
    for port in service.tcp_ports:
        host = virtual_host(view, service, port.port)
        if host is not None:
            del host.domains[:]
            host.domains.append("*")
            name = str(ClusterName(names.OUTBOUND, port.port, "", service.host))
            yield route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])
