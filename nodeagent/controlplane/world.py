"""The world: all configuration in force. Takes batches of raw objects, says what they changed."""

from __future__ import annotations

import difflib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from nodeagent.controlplane.change import EVERYWHERE, Change
from nodeagent.controlplane.decode import Problems
from nodeagent.controlplane.istio.analyze import analyze
from nodeagent.controlplane.istio.analyze_security import analyze_security
from nodeagent.controlplane.istio.authentication import (
    decode_peer_authentication,
    decode_request_authentication,
)
from nodeagent.controlplane.istio.authorization_policy import decode_authorization_policy
from nodeagent.controlplane.istio.destination_rule import decode_destination_rule
from nodeagent.controlplane.istio.key_sets import KeySets, KeySource
from nodeagent.controlplane.istio.mesh_config import MeshConfig, decode_config_map
from nodeagent.controlplane.istio.rules import Rules
from nodeagent.controlplane.istio.security import SecurityPolicies
from nodeagent.controlplane.istio.security_values import (
    AuthorizationPolicy,
    PeerAuthentication,
    SecurityPolicy,
)
from nodeagent.controlplane.istio.service_entry import decode_service_entry
from nodeagent.controlplane.istio.trust import TrustBundle
from nodeagent.controlplane.istio.virtual_service import decode_virtual_service
from nodeagent.controlplane.istio.workload_entry import decode_workload_entry
from nodeagent.controlplane.kubernetes.gateway import decode_gateway, decode_namespace
from nodeagent.controlplane.kubernetes.objects import (
    MeshScope,
    decode_endpoint_slice,
    decode_pod,
    decode_service,
)
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.report import Issue, Report, Severity
from nodeagent.controlplane.service_entries import ServiceEntries
from nodeagent.controlplane.sources.base import Batch, ObjectKey, RawObject
from nodeagent.controlplane.sources.mesh_file import CONFIG_MAP, MESH_KEY
from nodeagent.controlplane.touched import Touched
from nodeagent.controlplane.waypoints import Waypoints
from nodeagent.model import names
from nodeagent.model.names import host_matches

log = logging.getLogger(__name__)

_Decoder: TypeAlias = Callable[[RawObject, Problems, MeshScope], Any]


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Settings of the mesh that resources are made with."""

    cluster_id: str = "Kubernetes"
    domain: str = "cluster.local"
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    hbone: bool = False
    """Whether captured workloads have certificates, so that they are reached by HBONE."""
    trust_domain_aliases: tuple[str, ...] = ()
    """Other trust domains whose identities are taken for the mesh's own, besides those of MeshConfig."""

    @property
    def scope(self) -> MeshScope:
        """What decoding needs of it."""
        return MeshScope(self.cluster_id, self.domain, self.root_namespace)


@dataclass(frozen=True, slots=True)
class _KnownKind:
    """A kind of object that is read: its API versions and its decoder."""

    versions: frozenset[str]
    decode: _Decoder


_CORE: Final = frozenset({"v1"})
_ISTIO: Final = frozenset({"v1", "v1beta1", "v1alpha3"})
_NETWORKING: Final = "networking.istio.io"
_SECURITY: Final = "security.istio.io"
_GATEWAY_API: Final = "gateway.networking.k8s.io"
_SECURITY_VERSIONS: Final = frozenset({"v1", "v1beta1"})
UNREGISTERED_PORT: Final = 80
"""Where hosts that only a VirtualService names, and no service, are routed (Istio)."""
KINDS: Final[dict[tuple[str, str], _KnownKind]] = {
    ("", "Service"): _KnownKind(_CORE, decode_service),
    ("", "Pod"): _KnownKind(_CORE, decode_pod),
    ("discovery.k8s.io", "EndpointSlice"): _KnownKind(_CORE, decode_endpoint_slice),
    (_NETWORKING, "VirtualService"): _KnownKind(_ISTIO, decode_virtual_service),
    (_NETWORKING, "DestinationRule"): _KnownKind(_ISTIO, decode_destination_rule),
    (_NETWORKING, "ServiceEntry"): _KnownKind(_ISTIO, decode_service_entry),
    (_NETWORKING, "WorkloadEntry"): _KnownKind(_ISTIO, decode_workload_entry),
    (_SECURITY, "AuthorizationPolicy"): _KnownKind(_SECURITY_VERSIONS, decode_authorization_policy),
    (_SECURITY, "PeerAuthentication"): _KnownKind(_SECURITY_VERSIONS, decode_peer_authentication),
    (_SECURITY, "RequestAuthentication"): _KnownKind(_SECURITY_VERSIONS, decode_request_authentication),
    ("", "ConfigMap"): _KnownKind(_CORE, decode_config_map),
    ("", "Namespace"): _KnownKind(_CORE, decode_namespace),
    (_GATEWAY_API, "Gateway"): _KnownKind(_SECURITY_VERSIONS, decode_gateway),
}
# Known by name, so that a user is told that they have no effect, and why.
LATER_KINDS: Final = frozenset(
    {
        *(
            (_NETWORKING, kind)
            for kind in ("EnvoyFilter", "Gateway", "ProxyConfig", "Sidecar", "WorkloadGroup")
        ),
        ("telemetry.istio.io", "Telemetry"),
        ("extensions.istio.io", "WasmPlugin"),
    }
)
# Read by nothing, and rightly so.
_UNUSED_KINDS: Final = frozenset({("", "Node")})


class World:
    """Typed configuration with its indexes. One thread; changes only through apply()."""

    def __init__(self, settings: MeshSettings, report: Report) -> None:
        self.settings = settings
        self.report = report
        self.registry = Registry()
        self.rules = Rules(settings.root_namespace)
        self.security = SecurityPolicies(settings.root_namespace)
        self.entries = ServiceEntries(self.registry, settings.cluster_id)
        self.waypoints = Waypoints(self.registry)
        self.mesh = MeshConfig()
        self.key_sets = KeySets()
        self.generation = 0
        """Counts batches applied."""
        self._values: dict[ObjectKey, Any] = {}
        self._touched = Touched()
        self._analysed = 0

    @property
    def trust(self) -> TrustBundle:
        """The mesh's trust domain and its aliases."""
        settings = self.settings
        aliases = (*settings.trust_domain_aliases, *self.mesh.trust_domain_aliases)
        return TrustBundle(tuple(dict.fromkeys((settings.trust_domain, *filter(None, aliases)))))

    def apply(self, batch: Batch) -> Change:
        """Put a batch in force. What cannot be decoded is reported, and its last good version stays."""
        change = Change()
        for key in batch.removed:
            self.report.replace(("object", key), ())
            self._put(key, None, change)
        for raw in batch.changed:
            self._take(raw, change)
        change.addresses |= self._touched.addresses(self.security, self.registry, self.waypoints)
        self._touched = Touched()
        # A service decides the port of routes that lead to it, and stands in for a host that had none.
        for host in list(change.services):
            self._note_routes(self.rules.referring_hosts(host), change)
            if change.services and self.rules.virtual_services:
                change.ports.add(UNREGISTERED_PORT)
        self.generation += 1
        return change

    def put_keys(self, source: KeySource, text: str) -> Change:
        """Put a key set that was fetched in force."""
        change = Change()
        if self.key_sets.put(source, text):
            for policy in self.security.key_sources().get(source, ()):
                change.guarded.add(self._reach(policy))
        return change

    def analyze(self) -> None:
        """Find what is wrong across resources, if anything changed; findings replace those of the last time."""
        if self._analysed == self.generation:
            return
        self._analysed = self.generation
        findings: dict[ObjectKey, list[Issue]] = defaultdict(list)
        for found in (
            analyze(self.rules, self.registry),
            analyze_security(self.security, self.registry, self.mesh, has_ca=self.settings.hbone),
            self.waypoints.findings(),
            self.entries.findings(),
            self._mesh_findings(),
        ):
            for key, issues in found.items():
                findings[key] += issues
        for owner in self.report.owners():
            if isinstance(owner, tuple) and owner[0] == "analysis" and owner[1] not in findings:
                self.report.replace(owner, ())
        for key, issues in findings.items():
            self.report.replace(("analysis", key), issues)

    def _mesh_findings(self) -> dict[ObjectKey, list[Issue]]:
        """Settings of MeshConfig that the control plane was started otherwise with."""
        key = ObjectKey("", "ConfigMap", self.settings.root_namespace, CONFIG_MAP)
        pairs = (
            ("trustDomain", self.mesh.trust_domain, self.settings.trust_domain, "--trust-domain"),
            ("rootNamespace", self.mesh.root_namespace, self.settings.root_namespace, "--root-namespace"),
        )
        issues = [
            Issue(
                Severity.WARNING,
                "not-in-force",
                f"{wanted} is not in force, {current} is; start the control plane with {option} {wanted}",
                resource=str(key),
                path=f"data.{MESH_KEY}.{field}",
            )
            for field, wanted, current, option in pairs
            if wanted and wanted != current
        ]
        return {key: issues} if key in self._values else {}

    def counts(self) -> dict[str, int]:
        """Number of objects in force by kind."""
        return dict(sorted(Counter(key.kind for key in self._values).items()))

    def _take(self, raw: RawObject, change: Change) -> None:
        known = KINDS.get((raw.key.group, raw.key.kind))
        problems = Problems(raw.source, str(raw.key))
        if (raw.key.group, raw.key.kind) in _UNUSED_KINDS:
            return
        if known is None or raw.version not in known.versions:
            self.report.replace(("object", raw.key), [_unknown_kind(raw, known)])
            return
        value = self._decode(known, raw, problems)
        if problems.failed and raw.key in self._values:
            problems.issues.append(
                Issue(
                    Severity.INFO,
                    "last-good-kept",
                    "its last good version stays in force",
                    raw.source,
                    str(raw.key),
                )
            )
        self.report.replace(("object", raw.key), [*problems.issues, *problems.contained])
        if not problems.failed:
            self._put(raw.key, value, change)

    def _decode(self, known: _KnownKind, raw: RawObject, problems: Problems) -> Any:
        """Decode; a fault of the decoder's own is the object's error and nobody else's."""
        try:
            return known.decode(raw, problems, self.settings.scope)
        except Exception as error:
            log.exception("decoding %s of %s", raw.key, raw.source)
            problems.error("", f"cannot be decoded: {type(error).__name__}: {error}", "internal-error")
            return None

    def _put(self, key: ObjectKey, value: Any, change: Change) -> None:
        """Make `value` the one in force; None removes it."""
        before = self._values.get(key)
        if value == before:
            return
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value
        match key.kind:
            case "Service":
                host = names.service_host(key.name, key.namespace, self.settings.domain)
                self.registry.put_service(host, value, change)
                self.entries.settle(host, change)
                if self.waypoints.is_one(key.namespace, key.name):
                    self._touched.waypoints.add((key.namespace, key.name))
            case "Pod":
                uid = names.pod_uid(self.settings.cluster_id, key.namespace, key.name)
                self.registry.put_workload(uid, value, change)
            case "WorkloadEntry":
                uid = names.workload_entry_uid(self.settings.cluster_id, key.namespace, key.name)
                self.registry.put_workload(uid, value, change)
            case "EndpointSlice":
                self.registry.put_slice(key, value, change)
            case "ServiceEntry":
                self.entries.put(key, value, change)
            case "VirtualService":
                self._note_routes(self.rules.put_virtual_service(key, value), change)
            case "DestinationRule":
                for host in self.rules.put_destination_rule(key, value):
                    change.rules |= self._covered(host)

            case "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication":
                for policy in self.security.put(key, value):
                    self._note_security(policy, change)
            case "Gateway":
                self.waypoints.put_waypoint(key, value)
                self._touched.waypoints.add((key.namespace, key.name))
            case "Namespace":
                if self.waypoints.put_namespace(key.name, value):
                    self._touched.namespaces.add(key.name)
            case "ConfigMap":
                self.mesh = value or MeshConfig()
                change.guarded.add(EVERYWHERE)
                change.policies.update(policy.key for policy in self.security.authorization_policies())

    def _note_security(self, policy: SecurityPolicy, change: Change) -> None:
        """A policy came, changed or went: who is guarded by it, and which L4 policies come of it."""
        change.guarded.add(self._reach(policy))
        self._touched.policies.append(policy)
        if isinstance(policy, PeerAuthentication):
            change.policies |= self.security.peer_policy_names(policy)
        elif isinstance(policy, AuthorizationPolicy):
            change.policies.add(policy.key)

    def _reach(self, policy: SecurityPolicy) -> str:
        """The namespace whose pods a policy may guard, or EVERYWHERE."""
        return EVERYWHERE if policy.namespace == self.settings.root_namespace else policy.namespace

    def _note_routes(self, hosts: Iterable[str], change: Change) -> None:
        """Hosts of a VirtualService, as written: which services and ports are routed otherwise now."""
        for host in hosts:
            covered = self._covered(host)
            change.routes |= covered | {host}
            for name in covered:
                change.ports.update(port.port for port in self.registry.services[name].tcp_ports)
            change.ports.add(UNREGISTERED_PORT)

    def _covered(self, host: str) -> set[str]:
        """Services that a host, perhaps a wildcard, covers."""
        if not host.startswith("*"):
            return {host} & self.registry.services.keys()
        return {name for name in self.registry.services if host_matches(host, name)}


def _unknown_kind(raw: RawObject, known: _KnownKind | None) -> Issue:
    api = f"{raw.key.group}/{raw.version}" if raw.key.group else raw.version
    if known is None and (raw.key.group, raw.key.kind) in LATER_KINDS:
        message = f"kind {raw.key.kind} is not supported yet; it has no effect"
        return Issue(Severity.WARNING, "not-supported-yet", message, raw.source, str(raw.key))
    if known is not None:
        message = f"{api} is not known; there are: {', '.join(sorted(known.versions))}"
        return Issue(Severity.ERROR, "unknown-version", message, raw.source, str(raw.key), "apiVersion")
    message = f"kind {raw.key.kind} ({api}) is not known"
    if meant := _meant_kind(raw.key):
        message = f"{message}; did you mean {meant}?"
        return Issue(Severity.ERROR, "unknown-kind", message, raw.source, str(raw.key), "kind")
    return Issue(Severity.WARNING, "unknown-kind", f"{message}; it is ignored", raw.source, str(raw.key))


def _meant_kind(key: ObjectKey) -> str:
    """The kind that is meant by a misspelt one, or by one in the wrong of our API groups; empty if it is like none."""
    known = (*LATER_KINDS, *KINDS)
    # Some names are in several groups: the one that was written comes first.
    groups = {name: group for group, name in sorted(known, key=lambda item: item[0] == key.group)}
    if key.group not in groups.values():
        return ""  # others have a Gateway or a Service, too
    close = difflib.get_close_matches(key.kind, groups, n=1, cutoff=0.85)
    return f"{close[0]} of {groups[close[0]] or 'v1'}" if close else ""
