"""Who may have which identity."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from nodeagent.controlplane.ca.callers import Caller
from nodeagent.controlplane.ca.refusal import denied, invalid
from nodeagent.model.identity import Identity


class Placement(Protocol):
    """Where workloads run, by the control plane's own knowledge, not by what a caller says."""

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of that service account is on that node."""
        ...


class Grants:
    """Decides by placement. A caller has its own identity; a node agent those of its node's workloads too."""

    def __init__(self, placement: Placement, trust_domains: Collection[str]) -> None:
        self._placement = placement
        self._trust_domains = frozenset(trust_domains)

    def decide(self, caller: Caller, impersonated: str) -> Identity:
        """The identity that a certificate will name; Refusal says why there will be none."""
        if not impersonated:
            if caller.identity is None:
                raise invalid(
                    f"{caller.name} has no identity of its own; name a workload's in metadata ImpersonatedIdentity"
                )
            return caller.identity
        try:
            wanted = Identity.parse(impersonated)
        except ValueError as error:
            raise invalid(f"ImpersonatedIdentity: {error}") from error
        if wanted != caller.identity:
            self._check(caller, wanted)
        return wanted

    def _check(self, caller: Caller, wanted: Identity) -> None:
        if wanted.trust_domain not in self._trust_domains:
            known = ", ".join(sorted(self._trust_domains))
            raise denied(f"{wanted}: certificates are issued for trust domain {known} only", "trust-domain")
        if not caller.is_node:
            raise denied(
                f"{caller.name} is no node agent's (--node-account); it may have {caller.identity} only"
            )
        if not caller.node:
            raise denied(
                f"{caller.name}: the node of its pod is not known; is its token bound to a pod of this mesh?"
            )
        if not self._placement.runs_on(caller.node, wanted.namespace, wanted.service_account):
            raise denied(
                f"{wanted}: no pod of service account {wanted.namespace}/{wanted.service_account} "
                f"is known on node {caller.node}",
                "placement",
            )
