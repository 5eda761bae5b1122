"""Service, Pod and EndpointSlice as the control plane reads them.

Pods and the parts of a Service that the mesh does not use are taken as the API server validated them; what the mesh
does use is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.kubernetes.metadata import (
    EXPORT_TO,
    REDIRECTION,
    check_export_to,
    read_metadata,
)
from nodeagent.controlplane.sources.base import RawObject
from nodeagent.model import names
from nodeagent.model.protocols import Protocol, select_protocol
from nodeagent.model.service import Service, ServicePort
from nodeagent.model.workload import (
    ContainerPort,
    Locality,
    Workload,
    canonical_name,
    canonical_revision,
    owner_of,
)

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
LOCALITY_LABEL: Final = "istio-locality"
_HEADLESS: Final = "None"
_SERVICE_SPEC_UNUSED: Final = (
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "sessionAffinityConfig",
    "trafficDistribution",
)


@dataclass(frozen=True, slots=True)
class MeshScope:
    """Names that objects are put under: this mesh's cluster id, DNS domain and root namespace."""

    cluster_id: str
    domain: str
    root_namespace: str = "istio-system"


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One address of an EndpointSlice."""

    address: str
    ready: bool
    pod: tuple[str, str] | None
    """Namespace and name of the pod behind it."""
    zone: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Endpoints of a service, as some controller found them; `ports` maps port name to number."""

    service: tuple[str, str]
    """Namespace and name."""
    ports: Mapping[str, int]
    endpoints: tuple[SliceEndpoint, ...]


def decode_service(raw: RawObject, problems: Problems, scope: MeshScope) -> Service | None:
    """A v1 Service; None for one that has no place in the mesh (ExternalName)."""
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind", "status")
        metadata = read_metadata(top)
        spec = top.message("spec", required=True)
        if spec is None:
            return None
        with spec:
            kind = spec.choice("type", ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"), "ClusterIP")
            spec.ignore(*_SERVICE_SPEC_UNUSED, "externalName")
            if spec.choice("sessionAffinity", ("None", "ClientIP"), "None") == "ClientIP":
                problems.unsupported("spec.sessionAffinity")
            addresses = _cluster_ips(spec)
            selector = spec.string_map("selector")
            publish = spec.boolean("publishNotReadyAddresses")
            ports = _service_ports(spec, required=kind != "ExternalName")
        if kind == "ExternalName":
            problems.unsupported("spec.externalName")
            return None
        exports = tuple(
            part.strip() for part in metadata.annotations.get(EXPORT_TO, "").split(",") if part.strip()
        )
        return Service(
            name=raw.key.name,
            namespace=raw.key.namespace,
            host=names.service_host(raw.key.name, raw.key.namespace, scope.domain),
            ports=ports,
            addresses=addresses,
            selector=selector,
            labels=metadata.labels,
            export_to=check_export_to(exports, f"metadata.annotations[{EXPORT_TO}]", top),
            created=raw.created,
            publish_not_ready=publish,
        )


def _cluster_ips(spec: Fields) -> tuple[str, ...]:
    single = spec.string("clusterIP")
    texts = spec.strings("clusterIPs") or ((single,) if single else ())
    found = []
    for text in dict.fromkeys(texts):
        if text in (_HEADLESS, ""):
            continue
        address = names.canonical_address(text)
        if address is None:
            spec.error(
                "clusterIPs" if spec.has("clusterIPs") else "clusterIP", f"{text!r} is not an IP address"
            )
        else:
            found.append(address)
    return tuple(found)


def _service_ports(spec: Fields, *, required: bool) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    for fields in spec.messages("ports", required=required):
        with fields:
            port = _service_port(fields)
        if port is None:
            continue
        if any(other.port == port.port and _same_transport(other, port) for other in ports):
            fields.error("port", f"port {port.port} is there twice", "duplicate-port")
        elif any(other.name == port.name for other in ports):
            name = port.name or "(none)"
            fields.error("name", f"each port of a service needs a name of its own; {name} is there twice")
        else:
            ports.append(port)
    return tuple(ports)


def _same_transport(one: ServicePort, other: ServicePort) -> bool:
    return (one.protocol is Protocol.UDP) == (other.protocol is Protocol.UDP)


def _service_port(fields: Fields) -> ServicePort | None:
    name = fields.string("name")
    number = fields.port("port", required=True)
    transport = fields.choice("protocol", ("TCP", "UDP", "SCTP"), "TCP")
    app_protocol = fields.string("appProtocol")
    target = _target_port(fields, number)
    if number is None or target is None:
        return None
    return ServicePort(name, number, target, select_protocol(number, name, transport, app_protocol))


def _target_port(fields: Fields, default: int | None) -> int | str | None:
    """A port number or the name of a container port; unset (also 0 and empty) means the service's own port."""
    fields.ignore("nodePort", "targetPort")
    target = fields.data.get("targetPort")
    if target in (None, "", 0) and not isinstance(target, bool):
        return default
    if isinstance(target, str) and target.isdecimal():
        target = int(target)
    if isinstance(target, str):
        return target
    if isinstance(target, int) and not isinstance(target, bool) and 1 <= target <= 65535:
        return target
    fields.error("targetPort", f"must be between 1 and 65535 or a port name, got {target!r}", "out-of-range")
    return None


def decode_pod(raw: RawObject, problems: Problems, scope: MeshScope) -> Workload | None:
    """A v1 Pod; None for one that runs nothing any more or has no address yet."""
    top = Fields(raw.body, "", problems)
    metadata = read_metadata(top)
    spec = top.message("spec") or Fields({}, "spec", problems)
    status = top.message("status") or Fields({}, "status", problems)
    addresses = _pod_addresses(status)
    if not addresses or status.string("phase") in ("Succeeded", "Failed"):
        return None
    owner_kind, owner_name = _controller(raw.body)
    labels = metadata.labels
    workload_name, workload_type = owner_of(raw.key.name, owner_kind, owner_name, labels)
    return Workload(
        uid=names.pod_uid(scope.cluster_id, raw.key.namespace, raw.key.name),
        name=raw.key.name,
        namespace=raw.key.namespace,
        addresses=addresses,
        service_account=spec.string("serviceAccountName") or "default",
        node=spec.string("nodeName"),
        labels=labels,
        workload_name=workload_name,
        workload_type=workload_type,
        canonical_name=canonical_name(labels, workload_name),
        canonical_revision=canonical_revision(labels),
        ready=_is_ready(status),
        terminating=bool(raw.body.get("metadata", {}).get("deletionTimestamp")),
        host_network=spec.boolean("hostNetwork"),
        captured=metadata.annotations.get(REDIRECTION) == "enabled",
        ports=_container_ports(spec),
        locality=_locality(labels),
    )


def _pod_addresses(status: Fields) -> tuple[str, ...]:
    texts = [item.string("ip") for item in status.messages("podIPs")]
    primary = status.string("podIP")
    found = []
    for text in dict.fromkeys([primary, *texts] if primary else texts):
        address = names.canonical_address(text)
        if address is None:
            status.error("podIPs", f"{text!r} is not an IP address")
        else:
            found.append(address)
    return tuple(found)


def _controller(body: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and name of the controlling owner; empty if there is none."""
    for owner in body.get("metadata", {}).get("ownerReferences") or ():
        if isinstance(owner, dict) and owner.get("controller"):
            return str(owner.get("kind", "")), str(owner.get("name", ""))
    return "", ""


def _is_ready(status: Fields) -> bool:
    return any(
        item.string("type") == "Ready" and item.string("status") == "True"
        for item in status.messages("conditions")
    )


def _container_ports(spec: Fields) -> tuple[ContainerPort, ...]:
    found = []
    for container in spec.messages("containers"):
        for item in container.messages("ports"):
            number = item.port("containerPort")
            if number is not None:
                found.append(ContainerPort(item.string("name"), number, item.string("protocol", "TCP")))
    return tuple(found)


def _locality(labels: Mapping[str, str]) -> Locality:
    """From the label `istio-locality` (region.zone.subzone), or Kubernetes' topology labels."""
    parts = [*labels.get(LOCALITY_LABEL, "").split("."), "", "", ""]
    return Locality(
        parts[0] or labels.get("topology.kubernetes.io/region", ""),
        parts[1] or labels.get("topology.kubernetes.io/zone", ""),
        parts[2] or labels.get("topology.istio.io/subzone", ""),
    )


def decode_endpoint_slice(raw: RawObject, problems: Problems, scope: MeshScope) -> EndpointSlice | None:
    """A discovery.k8s.io/v1 EndpointSlice; None for one that belongs to no service or holds no addresses."""
    del scope
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind")
        metadata = read_metadata(top)
        kind = top.choice("addressType", ("IPv4", "IPv6", "FQDN"), "IPv4")
        ports = dict(_slice_ports(top))
        endpoints = tuple(found for item in top.messages("endpoints") for found in _slice_endpoint(item, raw))
    service = metadata.labels.get(SERVICE_NAME_LABEL)
    if not service:
        top.error(f"metadata.labels[{SERVICE_NAME_LABEL}]", "required, but missing", "missing-field")
        return None
    if kind == "FQDN":
        problems.unsupported("addressType")
        return None
    return EndpointSlice((raw.key.namespace, service), ports, endpoints)


def _slice_ports(top: Fields) -> list[tuple[str, int]]:
    found = []
    for item in top.messages("ports"):
        with item:
            item.ignore("appProtocol", "protocol")
            number = item.port("port")
            if number is not None:
                found.append((item.string("name"), number))
    return found


def _slice_endpoint(item: Fields, raw: RawObject) -> list[SliceEndpoint]:
    with item:
        item.ignore("hostname", "nodeName", "hints", "deprecatedTopology")
        zone = item.string("zone")
        ready = _conditions_ready(item)
        pod = _target_pod(item, raw.key.namespace)
        found = []
        for text in item.strings("addresses", required=True):
            address = names.canonical_address(text)
            if address is None:
                item.error("addresses", f"{text!r} is not an IP address")
            else:
                found.append(SliceEndpoint(address, ready, pod, zone))
    return found


def _conditions_ready(item: Fields) -> bool:
    """Unknown readiness counts as ready (EndpointConditions.ready)."""
    conditions = item.message("conditions")
    if conditions is None:
        return True
    with conditions:
        conditions.ignore("serving", "terminating")
        return conditions.boolean("ready", True)


def _target_pod(item: Fields, namespace: str) -> tuple[str, str] | None:
    target = item.message("targetRef")
    if target is None:
        return None
    with target:
        target.ignore("apiVersion", "uid", "resourceVersion", "fieldPath")
        if target.string("kind") != "Pod":
            target.ignore("name", "namespace")
            return None
        return target.string("namespace", namespace), target.string("name")
