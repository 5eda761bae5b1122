"""Security policies to istio.security.Authorization: what a node proxy can decide about a connection (L4)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.empty_pb2 import Empty

from nodeagent.controlplane.istio.security import CONVERTED, STATIC_STRICT, PeerPolicy, SecurityPolicies
from nodeagent.controlplane.istio.security_values import (
    Action,
    Attribute,
    AuthorizationPolicy,
    Condition,
    MtlsMode,
    PeerAuthentication,
    Rule,
)
from nodeagent.controlplane.istio.trust import TrustBundle
from nodeagent.model.workload import Workload
from nodeagent.proto import authorization_pb2 as pb

Conditions: TypeAlias = tuple[Condition, ...]
_ACTIONS: Final = {Action.ALLOW: pb.ALLOW, Action.DENY: pb.DENY}
# Attributes with the fields of Match that compare them.
_TEXTS: Final = {Attribute.NAMESPACE: "namespaces", Attribute.PRINCIPAL: "principals"}
_ADDRESSES: Final = {Attribute.SOURCE_IP: "source_ips", Attribute.DESTINATION_IP: "destination_ips"}
_KNOWN: Final = frozenset(
    {
        *_TEXTS,
        *_ADDRESSES,
        Attribute.DESTINATION_PORT,
        Attribute.SERVICE_ACCOUNT,
        Attribute.TRUST_DOMAIN,
    }
)


def is_sent(policy: AuthorizationPolicy) -> bool:
    """Whether node proxies are told of a policy: they know ALLOW and DENY, and pods."""
    return policy.action in _ACTIONS and not policy.targets


def authorization(
    policy: AuthorizationPolicy, root_namespace: str, trust: TrustBundle
) -> pb.Authorization | None:
    """An AuthorizationPolicy; None if node proxies are not told of it.

    A rule of an ALLOW policy that needs more than a connection shows never matches, and is left out. Of a DENY policy
    the rest of the rule counts; where nothing is left of it, it never matches (as istiod has it).
    """
    if not is_sent(policy):
        return None
    scope = pb.NAMESPACE if policy.namespace != root_namespace else pb.GLOBAL
    found = pb.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=pb.WORKLOAD_SELECTOR if policy.selector else scope,
        action=_ACTIONS[policy.action],
        dry_run=policy.dry_run,
    )
    for rule in policy.rules:
        if policy.action is Action.DENY or all(map(_is_known, rule.conditions())):
            found.rules.extend(_rules(rule, trust))
    return found


def _is_known(condition: Condition) -> bool:
    """Whether a node proxy can decide a condition."""
    if condition.attribute is Attribute.TRUST_DOMAIN:
        # Principals begin with it: a pattern for its end cannot be written.
        every = condition.values + condition.excluded
        return all(value == "*" or not value.startswith("*") for value in every)
    return condition.attribute in _KNOWN


def _rules(rule: Rule, trust: TrustBundle) -> Iterable[pb.Rule]:
    """A rule; where sources ask for trust domains one for each source: a trust domain is a condition on the
    principal, and a match has only one of those, so that it becomes a clause of its own."""
    if not any(item.attribute is Attribute.TRUST_DOMAIN for source in rule.sources for item in source):
        yield _rule(rule.operations, rule.sources, rule.when, trust)
        return
    for source in rule.sources:
        domains = tuple(item for item in source if item.attribute is Attribute.TRUST_DOMAIN)
        rest = tuple(item for item in source if item not in domains)
        yield _rule(rule.operations, (rest,) if rest else (), (*domains, *rule.when), trust)


def _rule(
    operations: Sequence[Conditions], sources: Sequence[Conditions], when: Conditions, trust: TrustBundle
) -> pb.Rule:
    groups = [group for group in (operations, sources) if group]
    groups += [((condition,),) for condition in when]
    clauses = [pb.Clause(matches=[_match(item, trust) for item in group]) for group in groups]
    # What asks nothing (any more) is left out; if nothing else is there it stays, and matches nothing.
    asking = [clause for clause in clauses if all(match.ByteSize() for match in clause.matches)]
    return pb.Rule(clauses=asking or clauses[:1])


def _match(conditions: Conditions, trust: TrustBundle) -> pb.Match:
    """Conditions that must all hold."""
    found = pb.Match()
    for condition in filter(_is_known, conditions):
        for values, negated in ((condition.values, ""), (condition.excluded, "not_")):
            _add(found, negated, condition.attribute, values, trust)
    return found


def _add(
    found: pb.Match, negated: str, attribute: Attribute, values: tuple[str, ...], trust: TrustBundle
) -> None:
    """Add the values of a condition to a match."""
    if attribute in _ADDRESSES:
        getattr(found, negated + _ADDRESSES[attribute]).extend(map(_address, values))
    elif attribute is Attribute.DESTINATION_PORT:
        getattr(found, f"{negated}destination_ports").extend(map(int, values))
    elif attribute is Attribute.SERVICE_ACCOUNT:
        getattr(found, f"{negated}service_accounts").extend(map(_service_account, values))
    elif attribute is Attribute.TRUST_DOMAIN:
        patterns = (value if value.endswith("*") else f"{value}/*" for value in trust.trust_domains(values))
        getattr(found, f"{negated}principals").extend(map(_text, patterns))
    elif attribute is Attribute.PRINCIPAL:
        getattr(found, f"{negated}principals").extend(map(_text, trust.principals(values)))
    else:
        getattr(found, negated + _TEXTS[attribute]).extend(map(_text, values))


def _text(value: str) -> pb.StringMatch:
    if value == "*":
        return pb.StringMatch(presence=Empty())
    if value.startswith("*"):
        return pb.StringMatch(suffix=value[1:])
    if value.endswith("*"):
        return pb.StringMatch(prefix=value[:-1])
    return pb.StringMatch(exact=value)


def _address(value: str) -> pb.Address:
    network = ipaddress.ip_network(value, strict=False)
    return pb.Address(address=network.network_address.packed, length=network.prefixlen)


def _service_account(value: str) -> pb.ServiceAccountMatch:
    namespace, _, name = value.partition("/")
    return pb.ServiceAccountMatch(namespace=namespace, serviceAccount=name)


# -- PeerAuthentication ----------------------------------------------------------------------------------------


def static_strict(root_namespace: str) -> pb.Authorization:
    """The policy of workloads all of whose ports are STRICT."""
    return _deny(STATIC_STRICT, root_namespace, [pb.Rule(clauses=[_without_certificate()])])


def converted(policy: PeerAuthentication, peer: PeerPolicy) -> pb.Authorization | None:
    """A PeerAuthentication as a policy; None if its ports do not differ. `peer` is what comes of it."""
    others = _exceptions(peer)
    if not others:
        return None
    if peer.mode is not MtlsMode.STRICT:
        rules = [pb.Rule(clauses=[_without_certificate(port)]) for port in others]
    else:
        excepted = [pb.Clause(matches=[pb.Match(not_destination_ports=[port])]) for port in others]
        rules = [pb.Rule(clauses=[_without_certificate(), *excepted])]
    return _deny(CONVERTED + policy.name, policy.namespace, rules)


def _exceptions(peer: PeerPolicy) -> list[int]:
    """Ports that are STRICT where the workload is not, or the other way round."""
    strict = peer.mode is MtlsMode.STRICT
    return [port for port, mode in sorted(peer.ports.items()) if (mode is MtlsMode.STRICT) is not strict]


def _without_certificate(port: int | None = None) -> pb.Clause:
    match = pb.Match(not_principals=[pb.StringMatch(presence=Empty())])
    if port is not None:
        match.destination_ports.append(port)
    return pb.Clause(matches=[match])


def _deny(name: str, namespace: str, rules: Iterable[pb.Rule]) -> pb.Authorization:
    return pb.Authorization(
        name=name, namespace=namespace, scope=pb.WORKLOAD_SELECTOR, action=pb.DENY, rules=rules
    )


# -- of the mesh, of a workload --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authorizations:
    """All that node proxies are told, by resource name (`namespace/name`)."""

    policies: SecurityPolicies
    trust: TrustBundle

    def names(self) -> list[str]:
        """The name of every one that there may be."""
        found = [policy.key for policy in self.policies.authorization_policies()]
        peers = self.policies.peer_authentications()
        found += [f"{policy.namespace}/{CONVERTED}{policy.name}" for policy in peers if policy.ports]
        return found + ([f"{self.policies.root_namespace}/{STATIC_STRICT}"] if peers else [])

    def named(self, name: str) -> pb.Authorization | None:
        """The one of that name."""
        root = self.policies.root_namespace
        namespace, _, short = name.partition("/")
        if name == f"{root}/{STATIC_STRICT}":
            return static_strict(root) if self.policies.peer_authentications() else None
        if short.startswith(CONVERTED):
            policy = self.policies.peer_authentication(namespace, short.removeprefix(CONVERTED))
            known = policy is not None and policy.selector and namespace != root
            return converted(policy, self.policies.peer_with(policy, namespace)) if policy and known else None
        found = self.policies.authorization_policy(namespace, short)
        return authorization(found, root, self.trust) if found is not None else None


def names_for(policies: SecurityPolicies, workload: Workload) -> list[str]:
    """Names of the policies that select a workload, or come of its PeerAuthentication: what it must be told of."""
    namespace, labels = workload.namespace, workload.labels
    selecting = (policy for policy in policies.authorization(namespace, labels) if policy.selector)
    return [
        *sorted(policy.key for policy in selecting if is_sent(policy)),
        *_peer_names(policies, namespace, labels),
    ]


def _peer_names(policies: SecurityPolicies, namespace: str, labels: Mapping[str, str]) -> list[str]:
    own = policies.peer_policy_of(namespace, labels)
    peer = policies.peer_with(own, namespace)
    if own is not None and _exceptions(peer):
        return [f"{namespace}/{CONVERTED}{own.name}"]
    return [f"{policies.root_namespace}/{STATIC_STRICT}"] if peer.mode is MtlsMode.STRICT else []
