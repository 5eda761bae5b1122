"""The inbound listener and clusters of a client's own pod."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2

from nodeagent.controlplane.registry import target_port
from nodeagent.controlplane.translate import clusters, connections
from nodeagent.controlplane.translate.guards import Guards
from nodeagent.controlplane.translate.guards import guards as make_guards
from nodeagent.controlplane.translate.http_routes import set_timeout
from nodeagent.controlplane.translate.listeners import ANY_V4, ANY_V6, INBOUND_PORT
from nodeagent.controlplane.translate.packing import seconds, socket_address
from nodeagent.controlplane.view import View
from nodeagent.model import names
from nodeagent.model.names import ClusterName
from nodeagent.model.service import Service, ServicePort
from nodeagent.model.workload import Workload

FilterChain: TypeAlias = listener_components_pb2.FilterChain


@dataclass(frozen=True, slots=True)
class InboundPort:
    """A port of the pod that at least one service leads to; the oldest service decides its protocol."""

    target: int
    port: ServicePort
    services: tuple[Service, ...]


def inbound_ports(view: View, workload: Workload) -> list[InboundPort]:
    """The ports of a pod that services lead to, in order of port."""
    registry = view.world.registry
    services = [registry.services[host] for host in registry.hosts_of(workload)]
    services.sort(key=lambda service: (service.created, service.host))
    found: dict[int, InboundPort] = {}
    for service in services:
        for port in service.tcp_ports:
            target = _target(view, service, port, workload)
            if target is None:
                continue
            known = found.get(target)
            if known is None:
                found[target] = InboundPort(target, port, (service,))
            elif service not in known.services:
                found[target] = InboundPort(target, known.port, (*known.services, service))
    return [found[target] for target in sorted(found)]


def _target(view: View, service: Service, port: ServicePort, workload: Workload) -> int | None:
    endpoints = view.world.registry.endpoints(service.host).get(port.port, ())
    own = (item.port for item in endpoints if item.workload and item.workload.uid == workload.uid)
    return next(own, None) or target_port(port, workload)


def inbound_clusters(view: View) -> Iterable[clusters.Cluster]:
    """A cluster for each served port, and the one for all others."""
    if view.workload is not None:
        for item in inbound_ports(view, view.workload):
            yield clusters.inbound_cluster(item.services, item.port, item.target)
    yield clusters.inbound_passthrough_cluster()


def virtual_inbound(view: View) -> listener_pb2.Listener:
    """Where captured connections to the pod arrive, with a chain for each of its ports."""
    listener = listener_pb2.Listener(
        name=names.VIRTUAL_INBOUND,
        address=socket_address(ANY_V4, INBOUND_PORT),
        traffic_direction=base_pb2.TrafficDirection.INBOUND,
        listener_filters_timeout=seconds(0),
        continue_on_listener_filters_timeout=True,
    )
    listener.additional_addresses.add(address=socket_address(ANY_V6, INBOUND_PORT))
    # Not use_original_dst: it would hand the connection to the outbound listener of the same port.
    listener.listener_filters.append(connections.original_destination())
    listener.listener_filters.append(connections.http_inspector())
    # Connecting to the capture port itself would loop.
    blackhole = _black_hole("virtualInbound-blackhole")
    blackhole.filter_chain_match.destination_port.value = INBOUND_PORT
    listener.filter_chains.append(blackhole)
    guards = make_guards(view)
    ports = inbound_ports(view, view.workload) if view.workload is not None else []
    for item in ports:
        listener.filter_chains.extend(_port_chains(view, item, guards))
    for port in sorted(guards.peer.ports.keys() - {item.target for item in ports}):
        if guards.closed(port) is not guards.closed():
            listener.filter_chains.extend(_catch_all_chains(view, guards, port))
    listener.filter_chains.extend(_catch_all_chains(view, guards))
    return listener


def _black_hole(name: str) -> FilterChain:
    cluster = names.BLACK_HOLE_CLUSTER
    return FilterChain(name=name, filters=[connections.tcp_filter(cluster, [(cluster, 1)])])


def _closed_chain(name: str, port: int | None) -> FilterChain:
    """Closes plain connections, before an application that speaks first could say anything."""
    return _chain(f"{name}-strict", _black_hole(name).filters, port=port)


def _port_chains(view: View, item: InboundPort, guards: Guards) -> Iterable[FilterChain]:
    """HTTP, TCP, or for an undeclared port both, told apart by the first bytes."""
    cluster = str(ClusterName(names.INBOUND, item.target, "", ""))
    name = f"{ANY_V4}_{item.target}"
    protocol = item.port.protocol
    if guards.closed(item.target):
        yield _closed_chain(name, item.target)
        return
    if protocol.may_be_http:
        routes = _routes(cluster, f"{names.INBOUND}|http|{item.port.port}")
        http = connections.http_filter_with_routes(
            view.perspective, f"inbound_{name};", routes, guards.http, view.world.mesh
        )
        yield _chain(name, [http], port=item.target, detected=not protocol.is_http)
    if not protocol.is_http:
        yield _chain(name, _tcp_filters(cluster, guards), port=item.target)


def _tcp_filters(cluster: str, guards: Guards) -> list[connections.Filter]:
    return [*guards.tcp, connections.tcp_filter(cluster, [(cluster, 1)])]


def _catch_all_chains(view: View, guards: Guards, port: int | None = None) -> Iterable[FilterChain]:
    """For a port that no service leads to, or all of them."""
    suffix = f"-{port}" if port is not None else ""
    if guards.closed(port):
        yield _closed_chain(names.VIRTUAL_INBOUND + suffix, port)
        return
    cluster = names.INBOUND_PASSTHROUGH_CLUSTER
    routes = _routes(cluster, f"{names.INBOUND}|http|0")
    http = connections.http_filter_with_routes(
        view.perspective, cluster, routes, guards.http, view.world.mesh
    )
    yield _chain(f"virtualInbound-catchall-http{suffix}", [http], port=port, detected=True)
    yield _chain(names.VIRTUAL_INBOUND + suffix, _tcp_filters(cluster, guards), port=port)


def _chain(
    name: str, filters: Iterable[connections.Filter], *, port: int | None = None, detected: bool = False
) -> FilterChain:
    """A chain for plaintext; `detected`: only what was found to be HTTP.

    Each names the transport: Envoy looks for the transport before the application protocol and does not go back, so
    that a chain without it would never be reached beside one that has it.
    """
    chain = FilterChain(name=name, filters=filters)
    if port is not None:
        chain.filter_chain_match.destination_port.value = port
    chain.filter_chain_match.transport_protocol = "raw_buffer"
    if detected:
        chain.filter_chain_match.application_protocols.extend(connections.PLAINTEXT_HTTP)
    return chain


def _routes(cluster: str, host_name: str) -> route_pb2.RouteConfiguration:
    """Everything to one cluster. The time that a request takes is the application's affair."""
    action = route_components_pb2.RouteAction(cluster=cluster)
    set_timeout(action, None)
    route = route_components_pb2.Route(name="default", route=action)
    route.match.prefix = "/"
    host = route_components_pb2.VirtualHost(name=host_name, domains=["*"], routes=[route])
    found = route_pb2.RouteConfiguration(name=cluster, virtual_hosts=[host])
    found.validate_clusters.value = False
    return found
