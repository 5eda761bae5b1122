"""Which waypoint traffic to a service or pod goes through: labels `istio.io/use-waypoint`, as Istio has them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.controlplane.kubernetes.gateway import Namespace, Waypoint
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.report import Issue, Severity
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.model.names import canonical_address
from nodeagent.model.service import Service
from nodeagent.model.workload import Workload

USE_WAYPOINT: Final = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE: Final = "istio.io/use-waypoint-namespace"
_NONE: Final = "none"
# Labels of what is a waypoint or gateway itself: nothing stands before it.
_MANAGED: Final = "gateway.istio.io/managed"
_GATEWAY_NAME: Final = "gateway.networking.k8s.io/gateway-name"


@dataclass(frozen=True, slots=True)
class WaypointAddress:
    """Where a waypoint is: a host of a namespace, or an address (then `namespace` is empty)."""

    where: str
    port: int
    namespace: str = ""


class Waypoints:
    """Waypoints and namespaces in force."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waypoints: dict[tuple[str, str], Waypoint] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}

    # -- changes ----------------------------------------------------------------------------------------------

    def put_waypoint(self, key: ObjectKey, value: Waypoint | None) -> None:
        """Add, replace or (None) remove."""
        if value is None:
            self._waypoints.pop((key.namespace, key.name), None)
        else:
            self._waypoints[value.key] = value

    def put_namespace(self, name: str, value: Namespace | None) -> bool:
        """Add, replace or (None) remove; whether what is in the namespace may have other waypoints then."""
        before = self._namespaces.pop(name, {})
        if value is not None:
            self._namespaces[name] = value.labels
        after = self._namespaces.get(name, {})
        by_labels = any(waypoint.allowed.labels is not None for waypoint in self._waypoints.values())
        return before != after and (by_labels or USE_WAYPOINT in (*before, *after))

    def users(self, waypoints: Collection[tuple[str, str]], namespaces: Collection[str]) -> set[str]:
        """Hosts and uids that ask for one of these waypoints (namespace and name), are a pod of one, or are in one of
        the namespaces."""
        return {
            identity
            for identity, namespace, labels in self._targets()
            if namespace in namespaces
            or self._wanted(labels, namespace) in waypoints
            or (namespace, labels.get(_GATEWAY_NAME, "")) in waypoints
        }

    def is_one(self, namespace: str, name: str) -> bool:
        """Whether there is a waypoint of that name."""
        return (namespace, name) in self._waypoints

    def _targets(self) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """Host or uid, namespace and labels of all that may have a waypoint."""
        for host, service in self._registry.services.items():
            yield host, service.namespace, service.labels
        for uid, workload in self._registry.workloads.items():
            yield uid, workload.namespace, workload.labels

    # -- look-ups ---------------------------------------------------------------------------------------------

    def of_service(self, service: Service) -> WaypointAddress | None:
        """The waypoint of a service; None: it has none."""
        return self._of(service.labels, service.namespace, "service")

    def of_workload(self, workload: Workload) -> WaypointAddress | None:
        """The waypoint of a pod; None: it has none."""
        return self._of(workload.labels, workload.namespace, "workload")

    def proxy_port_of(self, workload: Workload) -> int | None:
        """Waypoint.proxy_port of the waypoint that a pod is of; None also for other pods."""
        waypoint = self._waypoints.get((workload.namespace, workload.labels.get(_GATEWAY_NAME, "")))
        return waypoint.proxy_port if waypoint is not None else None

    def _of(self, labels: Mapping[str, str], namespace: str, traffic: str) -> WaypointAddress | None:
        wanted = self._wanted(labels, namespace)
        waypoint = self._waypoints.get(wanted) if wanted is not None else None
        if waypoint is None or waypoint.traffic not in (traffic, "all"):
            return None
        if not waypoint.allowed.allow(namespace, self._namespaces.get(namespace, {}), waypoint.namespace):
            return None
        return self._address(waypoint)

    def _wanted(self, labels: Mapping[str, str], namespace: str) -> tuple[str, str] | None:
        """Namespace and name of the waypoint that labels, else those of the namespace, ask for."""
        if _MANAGED in labels or _GATEWAY_NAME in labels:
            return None
        for source in (labels, self._namespaces.get(namespace, {})):
            name = source.get(USE_WAYPOINT)
            if name == _NONE:
                return None
            if name:
                return source.get(USE_WAYPOINT_NAMESPACE, namespace), name
        return None

    def _address(self, waypoint: Waypoint) -> WaypointAddress | None:
        """As its status says; without one, the Service of its name."""
        for place in waypoint.addresses:
            if canonical_address(place) is not None:
                return WaypointAddress(place, waypoint.port)
            return WaypointAddress(place, waypoint.port, self._namespace_of(place, waypoint))
        service = self._registry.service_named(waypoint.namespace, waypoint.name)
        if service is None:
            return None
        if service.addresses:
            return WaypointAddress(service.addresses[0], waypoint.port)
        return WaypointAddress(service.host, waypoint.port, service.namespace)

    def _namespace_of(self, host: str, waypoint: Waypoint) -> str:
        found = self._registry.services.get(host)
        return found.namespace if found is not None else waypoint.namespace

    # -- findings ---------------------------------------------------------------------------------------------

    def findings(self) -> Mapping[ObjectKey, list[Issue]]:
        """What asks for waypoints that cannot be used, by object."""
        found: dict[ObjectKey, list[Issue]] = {}
        for name, labels in self._namespaces.items():
            self._check(found, ObjectKey("", "Namespace", "", name), labels, name, "")
        for service in self._registry.services.values():
            key = ObjectKey("", "Service", service.namespace, service.name)
            self._check(found, key, service.labels, service.namespace, "service")
        for pod in self._registry.workloads.values():
            self._check(
                found, ObjectKey("", "Pod", pod.namespace, pod.name), pod.labels, pod.namespace, "workload"
            )
        return found

    def _check(
        self,
        found: dict[ObjectKey, list[Issue]],
        key: ObjectKey,
        labels: Mapping[str, str],
        namespace: str,
        traffic: str,
    ) -> None:
        if USE_WAYPOINT not in labels:
            return
        reason = self._why_not(labels, namespace, traffic)
        if reason:
            path = f"metadata.labels[{USE_WAYPOINT}]"
            message = f"{reason}; traffic goes without a waypoint"
            found[key] = [Issue(Severity.WARNING, "IST0101", message, resource=str(key), path=path)]

    def _why_not(self, labels: Mapping[str, str], namespace: str, traffic: str) -> str:
        wanted = self._wanted(labels, namespace)
        if wanted is None:
            return ""
        name = "/".join(wanted)
        waypoint = self._waypoints.get(wanted)
        if waypoint is None:
            return f"there is no Gateway {name} of class istio-waypoint"
        if traffic and waypoint.traffic not in (traffic, "all"):
            return (
                f"waypoint {name} is for {waypoint.traffic} (label istio.io/waypoint-for), not for {traffic}"
            )
        if not waypoint.allowed.allow(namespace, self._namespaces.get(namespace, {}), waypoint.namespace):
            return f"waypoint {name} does not allow namespace {namespace} (allowedRoutes)"
        if self._address(waypoint) is None:
            return f"waypoint {name} has no address: neither in its status, nor a Service of its name"
        return ""
