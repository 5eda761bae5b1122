"""Findings about security policies that need more than one resource: policies for nobody, authorizers not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nodeagent.controlplane.istio.extension_providers import NoProvider, provider_named, provider_service
from nodeagent.controlplane.istio.mesh_config import MeshConfig
from nodeagent.controlplane.istio.security import SecurityPolicies
from nodeagent.controlplane.istio.security_values import (
    Action,
    Attribute,
    AuthorizationPolicy,
    MtlsMode,
    PeerAuthentication,
    SecurityPolicy,
)
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.report import Issue, Severity
from nodeagent.controlplane.sources.base import ObjectKey

# istioctl's codes.
_NOT_FOUND: Final = "IST0101"
_NO_WORKLOADS: Final = "IST0127"
_INEFFECTIVE: Final = "IST0167"


def analyze_security(
    policies: SecurityPolicies, registry: Registry, mesh: MeshConfig, *, has_ca: bool
) -> Mapping[ObjectKey, list[Issue]]:
    """Findings by the object that they are about; a policy without findings is there with none."""
    namespaces = {workload.namespace for workload in registry.workloads.values()}
    namespaces |= {service.namespace for service in registry.services.values()}
    found: dict[ObjectKey, list[Issue]] = {}
    for key, policy in policies.by_key.items():
        made = [*_coverage(policies, registry, policy)]
        if isinstance(policy, AuthorizationPolicy):
            made += [*_provider(registry, mesh, policy), *_namespaces(namespaces, policy)]
        if isinstance(policy, PeerAuthentication):
            made += _peer(policies, policy, has_ca=has_ca)
        found[key] = [
            Issue(severity, code, message, policy.source, str(key), path)
            for severity, code, path, message in made
        ]
    return found


_Finding = tuple[Severity, str, str, str]


def _coverage(policies: SecurityPolicies, registry: Registry, policy: SecurityPolicy) -> Iterator[_Finding]:
    """Whom the policy is for."""
    if policy.targets:
        names = ", ".join(f"{target.kind} {target.name}" for target in policy.targets)
        message = (
            f"is for the waypoint or gateway of {names}, which is not configured here: no effect on pods"
        )
        yield Severity.WARNING, _INEFFECTIVE, "spec.targetRefs", message
        return
    if policy.selector and not _selects(policies, registry, policy):
        pairs = ", ".join(f"{name}={value}" for name, value in sorted(policy.selector.items()))
        yield Severity.WARNING, _NO_WORKLOADS, "spec.selector", f"no pod has the labels {pairs}"


def _selects(policies: SecurityPolicies, registry: Registry, policy: SecurityPolicy) -> bool:
    """Whether there is a pod with the labels."""
    if policy.namespace != policies.root_namespace:
        return registry.has_pod(policy.namespace, policy.selector)
    return any(policies.covers(policy, pod.namespace, pod.labels) for pod in registry.workloads.values())


def _provider(registry: Registry, mesh: MeshConfig, policy: AuthorizationPolicy) -> Iterator[_Finding]:
    """Whether the authorizer of a CUSTOM policy can be asked."""
    if policy.action is not Action.CUSTOM:
        return
    path = "spec.provider.name"
    try:
        provider = provider_named(mesh.providers, policy.provider)
        service = provider_service(provider, registry)
    except NoProvider as error:
        yield Severity.ERROR, _NOT_FOUND, path, f"{error}. What the policy matches is denied"
        return
    port = service.port(provider.port)
    if provider.grpc and port is not None and not port.protocol.is_http2:
        message = (
            f"port {provider.port} of {service.host} is not declared to speak gRPC, which the provider needs; "
            "name it grpc or set appProtocol: grpc"
        )
        yield Severity.WARNING, "wrong-protocol", path, message


def _namespaces(known: set[str], policy: AuthorizationPolicy) -> Iterator[_Finding]:
    """Namespaces that nothing is known of: most likely misspelt."""
    for index, rule in enumerate(policy.rules):
        for condition in rule.conditions():
            if condition.attribute is not Attribute.NAMESPACE:
                continue
            for name in (*condition.values, *condition.excluded):
                if "*" not in name and name not in known:
                    message = f"no namespace {name} is known: it has neither services nor pods"
                    yield Severity.WARNING, _NOT_FOUND, f"spec.rules[{index}]", message


def _peer(policies: SecurityPolicies, policy: PeerAuthentication, *, has_ca: bool) -> Iterator[_Finding]:
    """Policies that lose against older ones, and certificates that nobody issues."""
    rivals = [
        other
        for other in policies.peer_authentications_of(policy.namespace)
        if other.selector == policy.selector
    ]
    if rivals[0] is not policy:
        message = f"PeerAuthentication {rivals[0].key} ({rivals[0].source}) is older and is the one in force"
        yield Severity.WARNING, "duplicate-policy", "spec", message
    if MtlsMode.STRICT in (policy.mode, *policy.ports.values()) and not has_ca:
        message = "STRICT refuses everybody: this control plane issues no certificates (see --listen-tls)"
        yield Severity.WARNING, "no-certificates", "spec", message
