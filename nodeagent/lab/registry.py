"""The lab's API server in small: keeps the objects, gives services their addresses, joins them with pods."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from typing import Any

from nodeagent.errors import LabError
from nodeagent.lab.manifests import Manifest, ObjectKey
from nodeagent.lab.service_objects import (
    decode_service,
    decode_slice,
    is_pod,
    is_service,
    is_slice,
    pod_labels,
    service_notes,
)
from nodeagent.lab.services import Backend, Service, ServiceSpec, build_services
from nodeagent.lab.store import Change, ConfigStore
from nodeagent.lab.virtual_ips import VirtualIps


def check_manifests(manifests: Iterable[Manifest], pods: Collection[str]) -> None:
    """Raise for the first object that the lab itself cannot use; the control plane checks what is Istio's."""
    trial = VirtualIps()
    for manifest in manifests:
        if is_service(manifest.key):
            trial.allocate(decode_service(manifest))
        elif is_slice(manifest.key):
            decode_slice(manifest)
        elif is_pod(manifest.key):
            require_known(manifest.key, pods)
            pod_labels(manifest)


class Registry:
    """Services and endpoint slices, decoded, over a store of all objects."""

    def __init__(self, store: ConfigStore, virtual_ips: VirtualIps) -> None:
        self.store = store
        self._virtual_ips = virtual_ips
        self._specs: dict[ObjectKey, ServiceSpec] = {}
        self._slices: dict[ObjectKey, tuple[str, tuple[Backend, ...]]] = {}

    def put(self, manifest: Manifest) -> tuple[Change, list[str]]:
        """Keep an object; returns what that did and notes of what the lab does not do with it."""
        if is_service(manifest.key):
            spec = decode_service(manifest)
            addresses = self._virtual_ips.allocate(spec)
            self._specs[manifest.key] = spec
            stored = _with_addresses(manifest, spec, addresses)
            return self.store.put(manifest, stored), service_notes(manifest)
        if is_slice(manifest.key):
            self._slices[manifest.key] = decode_slice(manifest)
        return self.store.put(manifest), []

    def remove(self, key: ObjectKey) -> bool:
        """Forget an object; False when there was none."""
        if not self.store.remove(key):
            return False
        self._slices.pop(key, None)
        if spec := self._specs.pop(key, None):
            self._virtual_ips.release(spec.key)
        return True

    def services(self, pods: Iterable[Backend]) -> list[Service]:
        """Return all services with their present endpoints."""
        slices: dict[str, list[Backend]] = {}
        for service, backends in self._slices.values():
            slices.setdefault(service, []).extend(backends)
        return build_services(self._specs.values(), self._virtual_ips.given(), list(pods), slices)

    def targeted_ports(self, pod: Backend) -> set[tuple[str, int]]:
        """Return (protocol, number) of the pod's ports that services lead to."""
        every = Backend(pod.name, pod.namespace, pod.labels, pod.addresses, True, pod.ports)
        return {
            (leads_to.port.protocol, number)
            for service in build_services(self._specs.values(), {}, [every], {})
            for leads_to in service.ports
            for _, number in leads_to.endpoints
        }


def _with_addresses(
    manifest: Manifest, spec: ServiceSpec, addresses: Iterable[object]
) -> dict[str, Any] | None:
    """Return a Service with its cluster IPs, as an API server stores it; None when it has none to fill."""
    values = [str(address) for address in addresses]
    if not values or spec.headless:
        return None
    body = copy.deepcopy(manifest.body)
    families = ["IPv6" if ":" in value else "IPv4" for value in values]
    policy = "RequireDualStack" if len(values) > 1 else "SingleStack"
    body["spec"] |= {
        "clusterIP": values[0],
        "clusterIPs": values,
        "ipFamilies": families,
        "ipFamilyPolicy": policy,
    }
    body["metadata"].setdefault("namespace", manifest.key.namespace)
    return body


def require_known(key: ObjectKey, known: Iterable[str]) -> None:
    """Raise when a v1 Pod object names no pod of the lab."""
    names = sorted(known)
    if key.place not in names:
        raise LabError(
            f"{key}: the lab has no such pod; pods come from the lab file: {', '.join(names) or 'none'}"
        )
