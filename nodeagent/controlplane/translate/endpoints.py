"""Endpoints of a service port to ClusterLoadAssignment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from nodeagent.controlplane.translate.packing import socket_address
from nodeagent.controlplane.view import View
from nodeagent.model.endpoint import Endpoint
from nodeagent.model.names import OUTBOUND, ClusterName
from nodeagent.model.service import Service
from nodeagent.model.workload import Locality, matches_labels


def load_assignments(view: View, service: Service) -> Iterable[endpoint_pb2.ClusterLoadAssignment]:
    """One for each port and subset of the service."""
    by_port = view.world.registry.endpoints(service.host)
    policy = view.policy(service)
    for port in service.tcp_ports:
        endpoints = by_port.get(port.port, ())
        yield _assignment(view, ClusterName(OUTBOUND, port.port, "", service.host), endpoints)
        for subset in policy.subsets:
            name = ClusterName(OUTBOUND, port.port, subset.name, service.host)
            yield _assignment(view, name, select(endpoints, subset.labels))


def _assignment(
    view: View, name: ClusterName, endpoints: Iterable[Endpoint]
) -> endpoint_pb2.ClusterLoadAssignment:
    found = endpoint_pb2.ClusterLoadAssignment(cluster_name=str(name))
    by_locality: dict[Locality, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        if endpoint.ready:
            by_locality[endpoint.locality].append(endpoint)
    for locality, group in by_locality.items():
        added = found.endpoints.add()
        added.load_balancing_weight.value = sum(endpoint.weight for endpoint in group)
        # Present also when unknown: gRPC refuses endpoints without it.
        added.locality.SetInParent()
        added.locality.region = locality.region
        added.locality.zone = locality.zone
        added.locality.sub_zone = locality.subzone
        added.lb_endpoints.extend(_lb_endpoint(view, endpoint) for endpoint in group)
    return found


def select(endpoints: Iterable[Endpoint], labels: Mapping[str, str]) -> list[Endpoint]:
    """The endpoints of a subset."""
    return [endpoint for endpoint in endpoints if matches_labels(labels, endpoint.labels)]


def _lb_endpoint(view: View, endpoint: Endpoint) -> endpoint_components_pb2.LbEndpoint:
    host = endpoint_components_pb2.Endpoint(address=socket_address(endpoint.address, endpoint.port))
    for other in endpoint.additional_addresses:
        host.additional_addresses.add(address=socket_address(other, endpoint.port))
    found = endpoint_components_pb2.LbEndpoint(endpoint=host, health_status=health_check_pb2.HEALTHY)
    found.load_balancing_weight.value = endpoint.weight
    if endpoint.workload is not None:
        found.metadata.CopyFrom(_workload_metadata(view, endpoint))
    return found


def _workload_metadata(view: View, endpoint: Endpoint) -> base_pb2.Metadata:
    """`workload;namespace;canonical name;canonical revision;cluster`: what telemetry says of the peer."""
    workload = endpoint.workload
    assert workload is not None
    parts = (
        workload.workload_name,
        workload.namespace,
        workload.canonical_name,
        workload.canonical_revision,
        view.world.settings.cluster_id,
    )
    found = base_pb2.Metadata()
    found.filter_metadata["istio"].fields["workload"].string_value = ";".join(parts)
    return found
