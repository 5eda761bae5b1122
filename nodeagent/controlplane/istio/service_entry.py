"""Decoding of ServiceEntry (networking.istio.io v1alpha3, v1beta1, v1), strict."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio import fields as read
from nodeagent.controlplane.kubernetes.metadata import read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.sources.base import RawObject
from nodeagent.model import names
from nodeagent.model.protocols import select_protocol
from nodeagent.model.service import ServicePort
from nodeagent.model.workload import Locality

_LOCATIONS: Final = ("MESH_EXTERNAL", "MESH_INTERNAL")
_BY_NAME: Final = ("DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
_PROTOCOLS: Final = ("HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS", "MYSQL", "REDIS")


class Resolution(enum.Enum):
    """How it is found out where a host is: by the client, from what is listed, or from other names (not yet)."""

    NONE = "NONE"
    STATIC = "STATIC"
    BY_NAME = "DNS"


@dataclass(frozen=True, slots=True)
class EntryEndpoint:
    """One of the endpoints that a ServiceEntry lists; `ports` are by the name of its ports."""

    address: str
    ports: Mapping[str, int]
    locality: Locality = field(default_factory=Locality)
    weight: int = 1


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A ServiceEntry: hosts that are no Kubernetes services."""

    name: str
    namespace: str
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    """In canonical form; the same for all hosts."""
    ports: tuple[ServicePort, ...]
    resolution: Resolution
    endpoints: tuple[EntryEndpoint, ...]
    selector: Mapping[str, str]
    labels: Mapping[str, str]
    export_to: frozenset[str]
    created: float
    source: str


def decode_service_entry(raw: RawObject, problems: Problems, scope: MeshScope) -> ServiceEntry | None:
    """A ServiceEntry; what is wrong is in `problems`."""
    del scope  # its hosts are full names
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind", "status")
        metadata = read_metadata(top)
        spec = top.message("spec", required=True)
        if spec is None:
            return None
        with spec:
            spec.choice("location", _LOCATIONS)
            spec.unsupported("subjectAltNames")
            resolution = _resolution(spec)
            endpoints, selector = _members(spec, resolution)
            return ServiceEntry(
                name=raw.key.name,
                namespace=raw.key.namespace,
                hosts=_hosts(spec),
                addresses=_addresses(spec),
                ports=_ports(spec),
                resolution=resolution,
                endpoints=endpoints,
                selector=selector,
                labels=metadata.labels,
                export_to=read.export_to(spec),
                created=raw.created,
                source=raw.source,
            )


def _resolution(spec: Fields) -> Resolution:
    """The resolution that is meant. A host that is its own endpoint is where the client's name server says: connections
    go on to there, as with NONE."""
    text = spec.choice("resolution", ("NONE", "STATIC", *_BY_NAME), "NONE")
    if text not in _BY_NAME:
        return Resolution(text)
    if not any(spec.data.get(name) for name in ("addresses", "endpoints", "workloadSelector")):
        return Resolution.NONE
    spec.problems.add(
        Severity.WARNING,
        "not-supported-yet",
        spec.at("resolution"),
        f"{text} with addresses or endpoints is not supported yet: the entry has no effect, and connections go where "
        "name servers say",
    )
    return Resolution.BY_NAME


def _hosts(spec: Fields) -> tuple[str, ...]:
    found = []
    for index, host in enumerate(spec.strings("hosts", required=True)):
        path = f"{spec.at('hosts')}[{index}]"
        if host == "*":
            spec.problems.error(path, "'*' covers every host there is; name a domain: *.example.com")
        elif names.canonical_address(host) is not None:
            spec.problems.error(
                path, f"{host!r} is an address; hosts are names, addresses go into spec.addresses"
            )
        elif read.check_host(spec, path, host, wildcard=True):
            found.append(host.lower().removesuffix("."))
    return tuple(dict.fromkeys(found))


def _addresses(spec: Fields) -> tuple[str, ...]:
    found = []
    for index, text in enumerate(spec.strings("addresses")):
        path = f"{spec.at('addresses')}[{index}]"
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            spec.problems.error(path, f"{text!r} is neither an IP address nor a CIDR block")
            continue
        if network.num_addresses > 1:
            spec.problems.unsupported(path)
        else:
            found.append(str(network.network_address))
    return tuple(dict.fromkeys(found))


def _ports(spec: Fields) -> tuple[ServicePort, ...]:
    found: list[ServicePort] = []
    for item in spec.messages("ports", required=True):
        with item:
            number = item.port("number", required=True)
            name = item.string("name", required=True)
            target = item.port("targetPort")
            protocol = item.string("protocol").upper()
        if protocol and protocol not in _PROTOCOLS:
            item.error("protocol", f"must be one of {', '.join(_PROTOCOLS)}, got {protocol!r}")
        elif any(port.port == number or port.name == name for port in found):
            item.error(
                "number", f"port {number} ({name}) is there twice, by number or name", "duplicate-port"
            )
        elif number is not None:
            declared = select_protocol(number, name, "TCP", protocol.lower())
            found.append(ServicePort(name, number, target or number, declared))
    return tuple(found)


def _members(spec: Fields, resolution: Resolution) -> tuple[tuple[EntryEndpoint, ...], dict[str, str]]:
    """The endpoints that are listed, and the labels of workloads that are selected."""
    listed = tuple(spec.messages("endpoints"))
    selection = spec.message("workloadSelector")
    if resolution is Resolution.BY_NAME:
        spec.ignore("endpoints", "workloadSelector")
        return (), {}
    labels: dict[str, str] = {}
    if selection is not None:
        with selection:
            labels = selection.string_map("labels")
    if labels and listed:
        spec.error("endpoints", "cannot be beside workloadSelector: either lists what serves the hosts")
    if resolution is Resolution.NONE and (labels or listed):
        spec.error("resolution", "NONE means wherever a client connects to; with endpoints it is STATIC")
    return tuple(found for item in listed if (found := _endpoint(item)) is not None), labels


def _endpoint(item: Fields) -> EntryEndpoint | None:
    with item:
        item.unsupported("network", "labels")
        weight = read.endpoint_weight(item)
        item.ignore("serviceAccount")
        text = item.string("address", required=True)
        ports = item.message("ports")
        numbers = {} if ports is None else {name: ports.port(name) for name in ports.data}
        region, zone, subzone, *_ = (*item.string("locality").split("/"), "", "", "")
    address = names.canonical_address(text) if text else None
    if address is None:
        if text:
            item.error("address", f"{text!r} is not an IP address; resolution STATIC needs one")
        return None
    known = {name: number for name, number in numbers.items() if number is not None}
    return EntryEndpoint(address, known, Locality(region, zone, subzone), weight)
