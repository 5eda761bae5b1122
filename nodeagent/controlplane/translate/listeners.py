"""Outbound listeners in istiod's sidecar shape: one per HTTP port, one per virtual address and port for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2

from nodeagent.controlplane.translate import connections
from nodeagent.controlplane.translate.packing import seconds, socket_address
from nodeagent.controlplane.translate.tcp_routes import tcp_chains
from nodeagent.controlplane.view import View
from nodeagent.model import names
from nodeagent.model.service import Service, ServicePort

Listener: TypeAlias = listener_pb2.Listener
OUTBOUND_PORT: Final = 15001
INBOUND_PORT: Final = 15006
CAPTURE_PORTS: Final = frozenset({OUTBOUND_PORT, INBOUND_PORT})
"""Where captured connections arrive: no listener of a service can have them."""
ANY_V4: Final = "0.0.0.0"  # noqa: S104
ANY_V6: Final = "::"


def http_listener_name(port: int) -> str:
    """The listener of all HTTP services on a port."""
    return f"{ANY_V4}_{port}"


def address_listener_name(address: str, port: int) -> str:
    """The listener of one virtual address."""
    return f"{address}_{port}"


def service_route_name(host: str, port: int) -> str:
    """The route configuration of a port whose protocol is found out by connection."""
    return f"{host}:{port}"


def http_listener(view: View, port: int) -> Listener | None:
    """All HTTP services on `port`; None if the client sees none."""
    if port in CAPTURE_PORTS or not any(found.protocol.is_http for found in _ports(view, port)):
        return None
    name = http_listener_name(port)
    listener = _listener(name, ANY_V4, port)
    listener.additional_addresses.add(address=socket_address(ANY_V6, port))
    http = connections.http_filter_by_route_name(view.perspective, f"outbound_{name};", str(port))
    listener.filter_chains.add(filters=[http])
    return listener


def _ports(view: View, port: int) -> Iterable[ServicePort]:
    for service in view.services_on_port(port):
        found = service.port(port)
        if found is not None:
            yield found


def address_listeners(view: View, service: Service) -> Iterable[Listener]:
    """Listeners of the ports of a service that are not declared as HTTP, for each address clients connect to."""
    for port in service.tcp_ports:
        if port.protocol.is_http:
            continue
        for address in listened_addresses(view, service, port):
            yield _address_listener(view, service, port, address)


def listened_addresses(view: View, service: Service, port: ServicePort) -> tuple[str, ...]:
    """Virtual addresses, or for a headless service the addresses of its endpoints on that very port.

    An address that two services claim is the older one's: a client takes one listener of a name.
    """
    registry = view.world.registry
    if port.port in CAPTURE_PORTS:
        return ()
    if not service.headless:
        return tuple(address for address in service.addresses if registry.service_at(address) is service)
    found: dict[str, None] = {}
    for endpoint in registry.endpoints(service.host).get(port.port, ()):
        if endpoint.port == port.port and headless_owner(view, endpoint.address, port.port) in (
            None,
            service,
        ):
            found.update(dict.fromkeys((endpoint.address, *endpoint.additional_addresses)))
    return tuple(found)


def headless_owner(view: View, address: str, port: int) -> Service | None:
    """The oldest visible headless service whose pod has that address, and that port; None if the pod is not known."""
    registry = view.world.registry
    workload = registry.workload_at(address)
    hosts = registry.hosts_of(workload) if workload else ()
    services = [
        service
        for service in map(registry.services.__getitem__, hosts)
        if service.headless and view.sees(service) and service.port(port) is not None
    ]
    return min(services, key=lambda service: (service.created, service.host), default=None)


def _address_listener(view: View, service: Service, port: ServicePort, address: str) -> Listener:
    listener = _listener(address_listener_name(address, port.port), address, port.port)
    chains = tcp_chains(view, service, port.port)
    if not port.protocol.may_be_http:
        listener.filter_chains.extend(chains)
        return listener
    listener.listener_filters.append(connections.http_inspector())
    # The application may wait for the server to speak first: go on as TCP then, as istiod has it.
    listener.listener_filters_timeout.CopyFrom(seconds(0))
    listener.continue_on_listener_filters_timeout = True
    route = service_route_name(service.host, port.port)
    http = connections.http_filter_by_route_name(view.perspective, f"outbound_{listener.name};", route)
    chain = listener.filter_chains.add(filters=[http])
    chain.filter_chain_match.transport_protocol = "raw_buffer"
    chain.filter_chain_match.application_protocols.extend(connections.PLAINTEXT_HTTP)
    listener.filter_chains.extend(chains[:-1])
    listener.default_filter_chain.CopyFrom(chains[-1])
    return listener


def virtual_outbound() -> Listener:
    """Where captured connections arrive; those for which no other listener is meant pass through."""
    listener = _listener(names.VIRTUAL_OUTBOUND, ANY_V4, OUTBOUND_PORT)
    listener.additional_addresses.add(address=socket_address(ANY_V6, OUTBOUND_PORT))
    listener.ClearField("bind_to_port")
    listener.use_original_dst.value = True
    blackhole = listener.filter_chains.add(name="virtualOutbound-blackhole")
    # Connecting to the capture port itself would loop.
    blackhole.filter_chain_match.destination_port.value = OUTBOUND_PORT
    blackhole.filters.append(
        connections.tcp_filter(names.BLACK_HOLE_CLUSTER, [(names.BLACK_HOLE_CLUSTER, 1)])
    )
    catch_all = listener.filter_chains.add(name="virtualOutbound-catchall-tcp")
    catch_all.filters.append(
        connections.tcp_filter(names.PASSTHROUGH_CLUSTER, [(names.PASSTHROUGH_CLUSTER, 1)])
    )
    return listener


def _listener(name: str, address: str, port: int) -> Listener:
    listener = Listener(
        name=name, address=socket_address(address, port), traffic_direction=base_pb2.TrafficDirection.OUTBOUND
    )
    listener.bind_to_port.value = False
    return listener
