"""Pods and services to istio.workload.Address, what a node proxy is told of them."""

from __future__ import annotations

import socket
from typing import Final

from google.protobuf.struct_pb2 import Struct

from nodeagent.controlplane.registry import target_port
from nodeagent.controlplane.translate.authorizations import names_for
from nodeagent.controlplane.view import View
from nodeagent.controlplane.waypoints import WaypointAddress
from nodeagent.model.names import is_ipv6
from nodeagent.model.protocols import Protocol
from nodeagent.model.service import NO_ONE, Service, ServicePort
from nodeagent.model.workload import Locality, Workload, WorkloadType
from nodeagent.proto import workload_pb2 as pb

NETWORK: Final = ""
LABELS_EXTENSION: Final = "nodeagent.labels"
"""Workload extension that carries the pod's labels; receivers that do not know it skip it."""
MACHINE_EXTENSION: Final = "nodeagent.machine"
"""Workload extension that says: the addresses are a machine's, and the workload's ports are those that services lead
to."""

_TLS_MODE: Final = "security.istio.io/tlsMode"
_TYPES: Final = {
    WorkloadType.DEPLOYMENT: pb.DEPLOYMENT,
    WorkloadType.CRONJOB: pb.CRONJOB,
    WorkloadType.JOB: pb.JOB,
    WorkloadType.POD: pb.POD,
}
_APP_PROTOCOLS: Final = {
    Protocol.HTTP: pb.HTTP11,
    Protocol.HTTP2: pb.HTTP2,
    Protocol.GRPC: pb.GRPC,
    Protocol.GRPC_WEB: pb.HTTP11,
    Protocol.HTTPS: pb.TLS,
    Protocol.TLS: pb.TLS,
    Protocol.TCP: pb.TCP,
    Protocol.MONGO: pb.TCP,
    Protocol.MYSQL: pb.TCP,
    Protocol.REDIS: pb.TCP,
}


def service_key(service: Service) -> str:
    """The resource name of a service: namespace/hostname."""
    return f"{service.namespace}/{service.host}"


def address_key(address: str) -> str:
    """The on-demand name of an address: network/ip."""
    return f"{NETWORK}/{address}"


def workload_aliases(workload: Workload, cluster_id: str) -> tuple[str, ...]:
    """Other names of a workload: its addresses, and a pod's uid as Kubernetes' API group spells it."""
    addresses = () if workload.host_network else tuple(map(address_key, workload.addresses))
    if not workload.is_pod:
        return addresses
    return (*addresses, f"{cluster_id}//v1/Pod/{workload.namespace}/{workload.name}")


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if is_ipv6(address) else socket.AF_INET, address)


def workload_address(view: View, workload: Workload) -> pb.Address:
    """A pod."""
    settings = view.world.settings
    found = pb.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        network=NETWORK,
        tunnel_protocol=_tunnel_protocol(view, workload),
        # The default trust domain is left out (ztunnel takes it as cluster.local).
        trust_domain="" if settings.trust_domain == "cluster.local" else settings.trust_domain,
        service_account=workload.service_account,
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=_TYPES[workload.workload_type],
        workload_name=workload.workload_name,
        status=pb.HEALTHY if workload.ready and not workload.terminating else pb.UNHEALTHY,
        cluster_id=settings.cluster_id,
        network_mode=pb.HOST_NETWORK if workload.host_network else pb.STANDARD,
    )
    if workload.capacity != 1:
        found.capacity.value = workload.capacity
    # Addresses of the host's network belong to many pods: they do not identify one.
    if not workload.host_network:
        found.addresses.extend(map(_packed, workload.addresses))
    if workload.locality != Locality():
        found.locality.region = workload.locality.region
        found.locality.zone = workload.locality.zone
        found.locality.subzone = workload.locality.subzone
    waypoint = view.world.waypoints.of_workload(workload)
    if waypoint is not None:
        found.waypoint.CopyFrom(_gateway_address(waypoint))
    proxy_port = view.world.waypoints.proxy_port_of(workload)
    if proxy_port is not None:
        found.application_tunnel.protocol = pb.ApplicationTunnel.PROXY
        found.application_tunnel.port = proxy_port
    found.authorization_policies.extend(names_for(view.world.security, workload))
    _add_services(view, workload, found)
    found.extensions.append(_labels_extension(workload))
    if not workload.is_pod:
        found.extensions.append(pb.Extension(name=MACHINE_EXTENSION))
    return pb.Address(workload=found)


def _tunnel_protocol(view: View, workload: Workload) -> pb.TunnelProtocol:
    """HBONE to where an agent answers it with a certificate; mTLS to where a sidecar does, by its injector's label.
    Pods of the host's network are never captured. Where workloads share a machine's address it is mTLS, which goes to
    each one's own port: who answers a tunnel there could not be said."""
    if not view.world.settings.hbone or workload.host_network:
        return pb.NONE
    if workload.captured:
        alone = workload.is_pod or view.world.registry.is_alone(workload)
        return pb.HBONE if alone else pb.LEGACY_ISTIO_MTLS
    return pb.LEGACY_ISTIO_MTLS if workload.labels.get(_TLS_MODE) == "istio" else pb.NONE


def _labels_extension(workload: Workload) -> pb.Extension:
    labels = Struct()
    labels.update(dict(workload.labels))
    found = pb.Extension(name=LABELS_EXTENSION)
    found.config.type_url = "type.googleapis.com/google.protobuf.Struct"
    found.config.value = labels.SerializeToString(deterministic=True)
    return found


def _add_services(view: View, workload: Workload, found: pb.Workload) -> None:
    registry = view.world.registry
    for host in registry.hosts_of(workload):
        service = registry.services[host]
        ports = pb.PortList()
        for port in _told_ports(service):
            endpoints = registry.endpoints(host).get(port.port, ())
            own = next(
                (end.port for end in endpoints if end.workload and end.workload.uid == workload.uid), None
            )
            target = own if own is not None else target_port(port, workload)
            if target is not None:
                ports.ports.add(
                    service_port=port.port,
                    target_port=target,
                    app_protocol=_APP_PROTOCOLS.get(port.protocol, pb.UNKNOWN),
                )
        found.services[service_key(service)].CopyFrom(ports)


def _told_ports(service: Service) -> list[ServicePort]:
    """All ports. The resources have no place for the transport: those of UDP come without a protocol, as istiod sends
    them, and stand back where one of TCP has the number."""
    taken = {port.port for port in service.tcp_ports}
    return [*service.tcp_ports, *(port for port in service.udp_ports if port.port not in taken)]


def _gateway_address(waypoint: WaypointAddress) -> pb.GatewayAddress:
    found = pb.GatewayAddress(hbone_mtls_port=waypoint.port)
    if waypoint.namespace:
        found.hostname.namespace = waypoint.namespace
        found.hostname.hostname = waypoint.where
    else:
        found.address.network = NETWORK
        found.address.address = _packed(waypoint.where)
    return found


def service_address(view: View, service: Service) -> pb.Address:
    """A service."""
    found = pb.Service(name=service.name, namespace=service.namespace, hostname=service.host)
    found.canonical = True
    waypoint = view.world.waypoints.of_service(service)
    if waypoint is not None:
        found.waypoint.CopyFrom(_gateway_address(waypoint))
    for address in service.addresses:
        found.addresses.add(network=NETWORK, address=_packed(address))
    for port in _told_ports(service):
        found.ports.add(
            service_port=port.port,
            # 0: the target has a name, and each workload says which port that is.
            target_port=port.target if isinstance(port.target, int) else 0,
            app_protocol=_APP_PROTOCOLS.get(port.protocol, pb.UNKNOWN),
        )
    families = {is_ipv6(address) for address in service.addresses}
    if families:
        found.ip_families = (
            pb.DUAL if len(families) == 2 else pb.IPV6_ONLY if True in families else pb.IPV4_ONLY
        )
    if service.publish_not_ready:
        found.load_balancing.health_policy = pb.LoadBalancing.ALLOW_ALL
    return pb.Address(service=found)


def everyone_sees(service: Service) -> bool:
    """Whether a service is told to node proxies: they hold what any of their pods may see."""
    return NO_ONE not in service.export_to
