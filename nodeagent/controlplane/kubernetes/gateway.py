"""Gateways of the Gateway API, as far as they are waypoints, and the labels of Namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.kubernetes.metadata import read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.sources.base import RawObject
from nodeagent.model import names
from nodeagent.model.workload import matches_labels

WAYPOINT_CLASS: Final = "istio-waypoint"
WAYPOINT_FOR: Final = "istio.io/waypoint-for"
INBOUND_BINDING: Final = "ambient.istio.io/waypoint-inbound-binding"
HBONE_PORT: Final = 15008
_TRAFFIC: Final = ("service", "workload", "all", "none")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A v1 Namespace."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AllowedNamespaces:
    """allowedRoutes.namespaces of a waypoint's listener: whose services and pods may use it."""

    every: bool = False
    labels: Mapping[str, str] | None = None
    """Those with such labels; None: none but its own."""

    def allow(self, namespace: str, labels: Mapping[str, str], own: str) -> bool:
        """Whether a namespace may use a waypoint of namespace `own`."""
        if self.every or (namespace == own and self.labels is None):
            return True
        return self.labels is not None and matches_labels(self.labels, labels)


@dataclass(frozen=True, slots=True)
class Waypoint:
    """A Gateway of the class istio-waypoint."""

    name: str
    namespace: str
    traffic: str
    """What may go through it: service, workload, all, none."""
    addresses: tuple[str, ...] = ()
    """Where its status says that it is: IP addresses and hosts."""
    port: int = HBONE_PORT
    allowed: AllowedNamespaces = field(default_factory=AllowedNamespaces)
    proxy_port: int | None = None
    """Its pods take from their node's agent what came through HBONE, with PROXY headers, at this port (0: the one that
    was asked for); None: they speak HBONE themselves."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name


def decode_namespace(raw: RawObject, problems: Problems, scope: MeshScope) -> Namespace:
    """A v1 Namespace."""
    del scope
    top = Fields(raw.body, "", problems)
    return Namespace(raw.key.name, read_metadata(top).labels)


def decode_gateway(raw: RawObject, problems: Problems, scope: MeshScope) -> Waypoint | None:
    """A Gateway (gateway.networking.k8s.io v1, v1beta1); None for one that is no waypoint."""
    del scope
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind")
        metadata = read_metadata(top)
        labels = metadata.labels
        spec = top.message("spec", required=True)
        status = top.message("status")
        if spec is None:
            return None
        spec.ignore_rest()
        kind = spec.string("gatewayClassName", required=True)
        if kind != WAYPOINT_CLASS:
            message = f"class {kind} is not supported yet; the Gateway has no effect"
            problems.add(Severity.WARNING, "not-supported-yet", "spec.gatewayClassName", message)
            return None
        traffic = labels.get(WAYPOINT_FOR, "service")
        if traffic not in _TRAFFIC:
            problems.error(
                f"metadata.labels[{WAYPOINT_FOR}]",
                f"must be one of {', '.join(_TRAFFIC)}, got {traffic!r}",
            )
        port, allowed = _listener(spec)
        binding = _binding(metadata.annotations.get(INBOUND_BINDING, ""), problems)
        return Waypoint(raw.key.name, raw.key.namespace, traffic, _addresses(status), port, allowed, binding)


def _binding(text: str, problems: Problems) -> int | None:
    """The port of `PROXY` or `PROXY/<port>`; None for nothing and `NONE`."""
    protocol, separator, port = text.partition("/")
    if protocol in ("", "NONE") and not separator:
        return None
    if protocol != "PROXY" or (separator and not (port.isdecimal() and 0 < int(port) < 65536)):
        problems.error(
            f"metadata.annotations[{INBOUND_BINDING}]", f"must be NONE, PROXY or PROXY/<port>, got {text!r}"
        )
        return None
    return int(port) if separator else 0


def _listener(spec: Fields) -> tuple[int, AllowedNamespaces]:
    """Port and admission of the listener that speaks HBONE."""
    for item in spec.messages("listeners"):
        item.ignore_rest()
        if item.string("protocol") == "HBONE":
            return item.port("port") or HBONE_PORT, _allowed(item)
    return HBONE_PORT, AllowedNamespaces()


def _allowed(listener: Fields) -> AllowedNamespaces:
    routes = listener.message("allowedRoutes")
    namespaces = routes.message("namespaces") if routes is not None else None
    if namespaces is None:
        return AllowedNamespaces()
    whose = namespaces.choice("from", ("Same", "All", "Selector", "None"), "Same")
    if whose != "Selector":
        return AllowedNamespaces(every=whose == "All")
    selector = namespaces.message("selector", required=True)
    if selector is None:
        return AllowedNamespaces()
    if selector.has("matchExpressions"):
        selector.problems.unsupported(selector.at("matchExpressions"))
        return AllowedNamespaces()
    return AllowedNamespaces(labels=selector.string_map("matchLabels"))


def _addresses(status: Fields | None) -> tuple[str, ...]:
    if status is None:
        return ()
    status.ignore_rest()
    values = (item.string("value") for item in status.messages("addresses"))
    return tuple(names.canonical_address(value) or value.lower() for value in values if value)
