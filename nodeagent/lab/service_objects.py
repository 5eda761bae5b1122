"""Decoding of v1 Service and Pod and of EndpointSlice, as far as the lab itself uses them."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

from nodeagent.config.lab import parse_label_error
from nodeagent.errors import ResourceError
from nodeagent.lab.manifests import Manifest, ObjectKey
from nodeagent.lab.services import Address, Backend, ServicePort, ServiceSpec

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
_TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_PROTOCOLS: Final = ("TCP", "UDP")
_FAMILIES: Final = {"IPv4": 4, "IPv6": 6}
_POLICIES: Final = ("SingleStack", "PreferDualStack", "RequireDualStack")


def decode_service(manifest: Manifest) -> ServiceSpec:
    """Decode a v1 Service; only what the lab itself uses is looked at, the control plane checks the rest."""
    spec = manifest.body.get("spec") or {}
    if not isinstance(spec, dict):
        raise _error(manifest, "spec", "must be a mapping")
    kind = spec.get("type", "ClusterIP")
    if kind not in _TYPES:
        raise _error(manifest, "spec.type", f"{kind!r} is not one of {', '.join(_TYPES)}")
    if kind == "ExternalName":
        return ServiceSpec(
            manifest.key.namespace, manifest.key.name, {}, (), external_name=_external(manifest, spec)
        )
    headless = spec.get("clusterIP") == "None"
    cluster_ips = () if headless else _cluster_ips(manifest, spec)
    return ServiceSpec(
        namespace=manifest.key.namespace,
        name=manifest.key.name,
        selector=_selector(manifest, spec.get("selector")),
        ports=_ports(manifest, spec.get("ports"), headless),
        headless=headless,
        publish_not_ready=bool(spec.get("publishNotReadyAddresses", False)),
        cluster_ips=cluster_ips,
        families=_families(manifest, spec, cluster_ips),
    )


def service_notes(manifest: Manifest) -> list[str]:
    """Return what of a v1 Service the lab's service proxy does not do, by field."""
    spec = manifest.body.get("spec") or {}
    notes = []
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        notes.append(
            f"spec.type: {spec['type']}: in a lab only the cluster IP works, there is no world outside"
        )
    notes += [
        f"spec.{name}: {spec[name]}: the lab's service proxy does not do this"
        for name, default in (
            ("sessionAffinity", "None"),
            ("internalTrafficPolicy", "Cluster"),
            ("trafficDistribution", None),
            ("externalIPs", None),
        )
        if spec.get(name) not in (None, default)
    ]
    return notes


def _error(manifest: Manifest, path: str, message: str) -> ResourceError:
    return ResourceError(message, source=manifest.place, resource=str(manifest.key), path=path)


def _external(manifest: Manifest, spec: Mapping[str, Any]) -> str:
    name = spec.get("externalName")
    if not isinstance(name, str) or not name:
        raise _error(manifest, "spec.externalName", "missing; a Service of type ExternalName needs it")
    return name.rstrip(".")


def _selector(manifest: Manifest, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for pair in value.items() for v in pair):
        raise _error(manifest, "spec.selector", "must be a mapping of strings to strings (quote numbers)")
    return value


def _ports(manifest: Manifest, value: Any, headless: bool) -> tuple[ServicePort, ...]:
    if not value and headless:
        return ()
    if not isinstance(value, list) or not value:
        raise _error(manifest, "spec.ports", "a Service needs at least one port")
    ports: list[ServicePort] = []
    for index, item in enumerate(value):
        port = _port(manifest, item, f"spec.ports[{index}]")
        if any((other.port, other.protocol) == (port.port, port.protocol) for other in ports):
            raise _error(manifest, f"spec.ports[{index}]", f"a second {port.protocol} port {port.port}")
        if any(other.name == port.name for other in ports):
            problem = f"a second port named {port.name!r}" if port.name else "several ports need a name each"
            raise _error(manifest, f"spec.ports[{index}].name", problem)
        ports.append(port)
    return tuple(ports)


def _port(manifest: Manifest, item: Any, path: str) -> ServicePort:
    if not isinstance(item, dict):
        raise _error(manifest, path, "must be a mapping")
    number: Any = item.get("port")
    if not _is_port(number):
        raise _error(manifest, f"{path}.port", f"{number!r} is not a port number (1 to 65535)")
    protocol = item.get("protocol", "TCP")
    if protocol not in _PROTOCOLS:
        raise _error(manifest, f"{path}.protocol", f"{protocol!r}: the lab knows {' and '.join(_PROTOCOLS)}")
    target: Any = item.get("targetPort", number)
    if not (_is_port(target) or (isinstance(target, str) and target)):
        raise _error(
            manifest, f"{path}.targetPort", f"{target!r} is neither a port number nor the name of one"
        )
    return ServicePort(str(item.get("name") or ""), number, protocol, target)


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _cluster_ips(manifest: Manifest, spec: Mapping[str, Any]) -> tuple[Address, ...]:
    first = spec.get("clusterIP")
    values = spec.get("clusterIPs") or ([first] if first else [])
    try:
        addresses = tuple(ip_address(value) for value in values)
    except ValueError as error:
        raise _error(manifest, "spec.clusterIPs", str(error)) from None
    if len({address.version for address in addresses}) != len(addresses):
        raise _error(manifest, "spec.clusterIPs", "at most one address of each family")
    return addresses


def _families(
    manifest: Manifest, spec: Mapping[str, Any], cluster_ips: tuple[Address, ...]
) -> tuple[int, ...]:
    """Return the families that a Service is to have, the first one first.

    As in a dual-stack cluster, except that a Service that asks for nothing gets both, for a lab to try both.
    """
    policy = spec.get("ipFamilyPolicy")
    if policy not in (None, *_POLICIES):
        raise _error(manifest, "spec.ipFamilyPolicy", f"{policy!r} is not one of {', '.join(_POLICIES)}")
    names = spec.get("ipFamilies") or []
    if not isinstance(names, list) or len(set(names)) != len(names) or not set(names) <= _FAMILIES.keys():
        raise _error(manifest, "spec.ipFamilies", "must be one or both of IPv4, IPv6")
    chosen: list[int] = [address.version for address in cluster_ips] or [_FAMILIES[name] for name in names]
    if policy == "SingleStack":
        return tuple((chosen or [4])[:1])
    if policy is None and len(names) == 1 and not cluster_ips:
        return tuple(chosen)
    return (*chosen, *(family for family in (4, 6) if family not in chosen))


def decode_slice(manifest: Manifest) -> tuple[str, tuple[Backend, ...]]:
    """Decode a discovery.k8s.io/v1 EndpointSlice: the service's key, and its backends."""
    labels = (manifest.body.get("metadata") or {}).get("labels") or {}
    name = labels.get(SERVICE_NAME_LABEL, "")
    ports = {
        (str(port.get("name") or ""), str(port.get("protocol", "TCP"))): port["port"]
        for port in manifest.body.get("ports") or []
        if _is_port(port.get("port"))
    }
    backends = []
    for index, endpoint in enumerate(manifest.body.get("endpoints") or []):
        try:
            addresses = tuple(ip_address(value) for value in endpoint.get("addresses") or [])
        except ValueError as error:
            raise _error(manifest, f"endpoints[{index}].addresses", str(error)) from None
        ready = (endpoint.get("conditions") or {}).get("ready", True) is not False
        name_of = str(endpoint.get("hostname") or "")
        backends.append(Backend(name_of, manifest.key.namespace, {}, addresses, ready, ports))
    return f"{manifest.key.namespace}/{name}", tuple(backends)


def pod_labels(manifest: Manifest) -> dict[str, str]:
    """Return the labels of a v1 Pod, checked as an API server does."""
    labels = manifest.body["metadata"].get("labels") or {}
    if not isinstance(labels, dict):
        raise _error(manifest, "metadata.labels", "must be a mapping of strings to strings")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise _error(manifest, "metadata.labels", f"label {key!r}: {value!r} is not a string; quote it")
        if problem := parse_label_error(key, value):
            raise _error(manifest, "metadata.labels", problem)
    return labels


def is_service(key: ObjectKey) -> bool:
    """Tell whether an object is a v1 Service."""
    return key.group == "" and key.kind == "Service"


def is_slice(key: ObjectKey) -> bool:
    """Tell whether an object is an EndpointSlice."""
    return key.group == "discovery.k8s.io" and key.kind == "EndpointSlice"


def is_pod(key: ObjectKey) -> bool:
    """Tell whether an object is a v1 Pod."""
    return key.group == "" and key.kind == "Pod"
