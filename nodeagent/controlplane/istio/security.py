"""Security policies in force, and which of them are for a workload."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from nodeagent.controlplane.istio.key_sets import KeySource, source_of
from nodeagent.controlplane.istio.security_values import (
    AuthorizationPolicy,
    JwtRule,
    MtlsMode,
    PeerAuthentication,
    RequestAuthentication,
    SecurityPolicy,
)
from nodeagent.controlplane.sources.base import ObjectKey
from nodeagent.model.workload import matches_labels

P = TypeVar("P", bound=SecurityPolicy)

STATIC_STRICT: Final = "istio_converted_static_strict"
"""Name of the L4 policy that refuses peers without a certificate; it is in the root namespace (Istio)."""
CONVERTED: Final = "converted_peer_authentication_"
"""Before the name of a PeerAuthentication whose ports differ, as an L4 policy (Istio)."""


class _ByNamespace(Generic[P]):
    """Policies of one kind by namespace, the oldest first."""

    def __init__(self) -> None:
        self._found: dict[str, list[P]] = defaultdict(list)

    def replace(self, before: P | None, after: P | None) -> None:
        """Put one in the place of another."""
        if before is not None:
            self._found[before.namespace].remove(before)
            if not self._found[before.namespace]:
                del self._found[before.namespace]
        if after is not None:
            policies = self._found[after.namespace]
            policies.append(after)
            policies.sort(key=lambda policy: policy.age)

    def of(self, namespace: str) -> list[P]:
        """The policies of a namespace."""
        return self._found.get(namespace, [])

    def __iter__(self) -> Iterator[P]:
        return (policy for namespace in sorted(self._found) for policy in self._found[namespace])


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """Who may connect to a workload: the mode, and other modes of some of its ports."""

    mode: MtlsMode = MtlsMode.PERMISSIVE
    ports: Mapping[int, MtlsMode] = field(default_factory=dict)

    def at(self, port: int) -> MtlsMode:
        """The mode of a port."""
        return self.ports.get(port, self.mode)


class SecurityPolicies:
    """AuthorizationPolicies, PeerAuthentications and RequestAuthentications in force."""

    def __init__(self, root_namespace: str) -> None:
        self.root_namespace = root_namespace
        self.by_key: dict[ObjectKey, SecurityPolicy] = {}
        self._authorization: _ByNamespace[AuthorizationPolicy] = _ByNamespace()
        self._peer: _ByNamespace[PeerAuthentication] = _ByNamespace()
        self._request: _ByNamespace[RequestAuthentication] = _ByNamespace()

    def put(self, key: ObjectKey, value: SecurityPolicy | None) -> list[SecurityPolicy]:
        """Add, replace or (None) remove; returns what was and what is in force."""
        before = self.by_key.pop(key, None)
        if value is not None:
            self.by_key[key] = value
        kind = type(value if value is not None else before)
        index: _ByNamespace[SecurityPolicy] = {  # type: ignore[assignment]
            AuthorizationPolicy: self._authorization,
            PeerAuthentication: self._peer,
            RequestAuthentication: self._request,
        }[kind]
        index.replace(before, value)
        return [policy for policy in (before, value) if policy is not None]

    def covers(self, policy: SecurityPolicy, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a policy is for pods with such labels; none is that is attached to something else."""
        if policy.targets or policy.namespace not in (namespace, self.root_namespace):
            return False
        return matches_labels(policy.selector, labels)

    def authorization(self, namespace: str, labels: Mapping[str, str]) -> list[AuthorizationPolicy]:
        """The AuthorizationPolicies for a workload: those of the mesh, then those of its namespace."""
        return self._covering(self._authorization, namespace, labels)

    def tokens(self, namespace: str, labels: Mapping[str, str]) -> list[JwtRule]:
        """The token rules for a workload, in order of issuer."""
        policies = self._covering(self._request, namespace, labels)
        return sorted((rule for policy in policies for rule in policy.rules), key=lambda rule: rule.issuer)

    def _covering(self, index: _ByNamespace[P], namespace: str, labels: Mapping[str, str]) -> list[P]:
        owners = dict.fromkeys((self.root_namespace, namespace))
        return [
            policy for owner in owners for policy in index.of(owner) if self.covers(policy, namespace, labels)
        ]

    def authorization_policy(self, namespace: str, name: str) -> AuthorizationPolicy | None:
        """The AuthorizationPolicy of that name."""
        return next((policy for policy in self._authorization.of(namespace) if policy.name == name), None)

    def peer_authentication(self, namespace: str, name: str) -> PeerAuthentication | None:
        """The PeerAuthentication of that name."""
        return next((policy for policy in self._peer.of(namespace) if policy.name == name), None)

    def authorization_policies(self) -> list[AuthorizationPolicy]:
        """Every AuthorizationPolicy, in order of namespace and age."""
        return list(self._authorization)

    def peer_authentications(self) -> list[PeerAuthentication]:
        """Every PeerAuthentication, in order of namespace and age."""
        return list(self._peer)

    def peer_authentications_of(self, namespace: str) -> list[PeerAuthentication]:
        """Those of a namespace, the oldest first."""
        return list(self._peer.of(namespace))

    def key_sources(self) -> dict[KeySource, list[RequestAuthentication]]:
        """Where key sets are fetched, and which policies want them."""
        found: dict[KeySource, list[RequestAuthentication]] = defaultdict(list)
        for policy in self._request:
            for source in {source_of(rule) for rule in policy.rules}:
                if source is not None:
                    found[source].append(policy)
        return found

    # -- PeerAuthentication -----------------------------------------------------------------------------------

    def peer_policy_names(self, changed: PeerAuthentication) -> set[str]:
        """Names of the L4 policies that may be others because of a PeerAuthentication."""
        everywhere = changed.namespace == self.root_namespace
        affected = [policy for policy in self._peer if everywhere or policy.namespace == changed.namespace]
        converted = {f"{policy.namespace}/{CONVERTED}{policy.name}" for policy in (changed, *affected)}
        return converted | {f"{self.root_namespace}/{STATIC_STRICT}"}

    def peer_default(self, namespace: str) -> MtlsMode:
        """The mode of pods of a namespace for which there is no policy of their own."""
        mesh = self._oldest_unselective(self.root_namespace)
        own = self._oldest_unselective(namespace) if namespace != self.root_namespace else None
        modes = (policy.mode for policy in (own, mesh) if policy is not None)
        return next((mode for mode in modes if mode is not None), MtlsMode.PERMISSIVE)

    def _oldest_unselective(self, namespace: str) -> PeerAuthentication | None:
        return next((policy for policy in self._peer.of(namespace) if not policy.selector), None)

    def peer_policy_of(self, namespace: str, labels: Mapping[str, str]) -> PeerAuthentication | None:
        """The oldest PeerAuthentication with a selector that is for a workload; the root namespace has none."""
        if namespace == self.root_namespace:
            return None
        own = (policy for policy in self._peer.of(namespace) if policy.selector)
        return next((policy for policy in own if matches_labels(policy.selector, labels)), None)

    def peer(self, namespace: str, labels: Mapping[str, str]) -> PeerPolicy:
        """Who may connect to a workload: workload before namespace before mesh; what is not set is inherited."""
        return self.peer_with(self.peer_policy_of(namespace, labels), namespace)

    def peer_with(self, policy: PeerAuthentication | None, namespace: str) -> PeerPolicy:
        """Who may connect to pods of a namespace with that policy of their own."""
        mode = self.peer_default(namespace)
        if policy is None:
            return PeerPolicy(mode)
        mode = policy.mode or mode
        return PeerPolicy(mode, {port: own or mode for port, own in sorted(policy.ports.items())})
