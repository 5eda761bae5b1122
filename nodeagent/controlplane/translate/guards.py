"""The filters that decide who may do what at a pod's ports, in istiod's order: CUSTOM, tokens, AUDIT, DENY, ALLOW."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from envoy.config.listener.v3 import listener_components_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from google.protobuf.message import Message

from nodeagent.controlplane.istio.extension_providers import NoProvider, provider_named, provider_service
from nodeagent.controlplane.istio.security import PeerPolicy
from nodeagent.controlplane.istio.security_values import Action, AuthorizationPolicy, MtlsMode
from nodeagent.controlplane.translate import callouts
from nodeagent.controlplane.translate.callouts import HTTP_RBAC, NETWORK_RBAC
from nodeagent.controlplane.translate.packing import pack
from nodeagent.controlplane.translate.rbac import JWT_FILTER, NotForTcp, never, rbac_policy
from nodeagent.controlplane.translate.tokens import jwt_filter
from nodeagent.controlplane.view import View

Filter: TypeAlias = listener_components_pb2.Filter
HttpFilter: TypeAlias = http_connection_manager_pb2.HttpFilter
RBAC: TypeAlias = rbac_pb2.RBAC
Protocol: TypeAlias = Literal["http", "tcp"]

HTTP_EXT_AUTHZ: Final = "envoy.filters.http.ext_authz"
NETWORK_EXT_AUTHZ: Final = "envoy.filters.network.ext_authz"
_BAD_CUSTOM: Final = "-deny-due-to-bad-CUSTOM-action"
_STAT_PREFIX: Final = "tcp."
_ACTIONS: Final = {Action.AUDIT: RBAC.LOG, Action.DENY: RBAC.DENY, Action.ALLOW: RBAC.ALLOW}
_DRY_RUN_PREFIXES: Final = {Action.ALLOW: "istio_dry_run_allow_", Action.DENY: "istio_dry_run_deny_"}


@dataclass(frozen=True, slots=True)
class Guards:
    """The filters of every chain of a pod's inbound listener."""

    http: Sequence[HttpFilter] = ()
    """Before the router."""
    tcp: Sequence[Filter] = ()
    """Before the TCP proxy."""
    peer: PeerPolicy = field(default_factory=PeerPolicy)
    """Who may connect at all. A node agent is told so by its L4 policies, and knows by its tunnels who does: for it
    there is nothing here."""

    def closed(self, port: int | None = None) -> bool:
        """Whether plain connections to a port, or to all others, are refused."""
        mode = self.peer.mode if port is None else self.peer.at(port)
        return mode is MtlsMode.STRICT


def guards(view: View) -> Guards:
    """The guards of the client's own pod."""
    namespace, labels, security = view.own_namespace, view.own_labels, view.world.security
    policies = security.authorization(namespace, labels)
    keys = view.world.key_sets.of
    tokens = jwt_filter(security.tokens(namespace, labels), keys)
    jwt = [HttpFilter(name=JWT_FILTER, typed_config=pack(tokens))] if tokens is not None else []
    return Guards(
        http=[
            *(_http_filter(name, config) for name, config in _custom(view, policies, "http")),
            *jwt,
            *(_http_filter(HTTP_RBAC, config) for config in _local(view, policies, "http")),
        ],
        tcp=[
            *(_network_filter(name, config) for name, config in _custom(view, policies, "tcp")),
            *(_network_filter(NETWORK_RBAC, config) for config in _local(view, policies, "tcp")),
        ],
        peer=PeerPolicy() if view.perspective.knows_peers else security.peer(namespace, labels),
    )


def _http_filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=pack(config))


def _network_filter(name: str, config: Message) -> Filter:
    return Filter(name=name, typed_config=pack(config))


# -- AUDIT, DENY, ALLOW --


def _local(view: View, policies: Iterable[AuthorizationPolicy], protocol: Protocol) -> Iterator[Message]:
    """An RBAC filter for each action that there are policies of, in their order."""
    for action, envoy_action in _ACTIONS.items():
        own = [policy for policy in policies if policy.action is action]
        enforced = [policy for policy in own if not policy.dry_run]
        tried = [policy for policy in own if policy.dry_run]
        if own:
            yield _rbac(
                protocol,
                _rules(view, enforced, envoy_action, protocol) if enforced else None,
                _rules(view, tried, envoy_action, protocol) if tried else None,
                _DRY_RUN_PREFIXES.get(action, "") if tried else "",
            )


def _rbac(protocol: Protocol, rules: RBAC | None, shadow: RBAC | None, prefix: str) -> Message:
    """The configuration of an RBAC filter."""
    settings: dict[str, Any] = {
        "rules": rules,
        "shadow_rules": shadow,
        "shadow_rules_stat_prefix": prefix,
    }
    made: Message
    if protocol == "http":
        made = http_rbac_pb2.RBAC(**settings)
    else:
        made = network_rbac_pb2.RBAC(**settings, stat_prefix=_STAT_PREFIX)
    return made


def _rules(
    view: View, policies: Iterable[AuthorizationPolicy], action: Any, protocol: Protocol, prefix: str = ""
) -> RBAC:
    """The rules of policies, each under its name."""
    found = RBAC(action=action)
    for policy in policies:
        for name, rule in _named_rules(view, policy, action, protocol):
            found.policies[prefix + name].CopyFrom(rule)
    return found


def _named_rules(
    view: View, policy: AuthorizationPolicy, action: Any, protocol: Protocol
) -> Iterator[tuple[str, rbac_pb2.Policy]]:
    stem = f"ns[{policy.namespace}]-policy[{policy.name}]"
    if not policy.rules:
        yield f"{stem}-rule[0]", never()
    for index, rule in enumerate(policy.rules):
        try:
            made = rbac_policy(rule, view.world.trust, tcp=protocol == "tcp", widen=action != RBAC.ALLOW)
        except NotForTcp:
            continue
        yield f"{stem}-rule[{index}]", made


# -- CUSTOM --


def _custom(
    view: View, policies: Iterable[AuthorizationPolicy], protocol: Protocol
) -> Iterator[tuple[str, Message]]:
    """For each provider an RBAC filter that only notes which policy matches, and the filter that asks then."""
    by_provider: Mapping[str, list[AuthorizationPolicy]] = defaultdict(list)
    for policy in policies:
        if policy.action is Action.CUSTOM and not policy.dry_run:
            by_provider[policy.provider].append(policy)
    for name, own in sorted(by_provider.items()):
        yield from _callout(view, name, own, protocol)


def _callout(
    view: View, name: str, policies: list[AuthorizationPolicy], protocol: Protocol
) -> Iterator[tuple[str, Message]]:
    rules = _rules(view, policies, RBAC.DENY, protocol, callouts.policy_prefix(name))
    rbac_name = HTTP_RBAC if protocol == "http" else NETWORK_RBAC
    try:
        provider = provider_named(view.world.mesh.providers, name)
        service = provider_service(provider, view.world.registry)
    except NoProvider:
        # Whatever nobody can be asked about is refused; analysis says why.
        yield rbac_name, _rbac(protocol, _all_refused(rules), None, "")
        return
    if protocol == "http":
        yield rbac_name, _rbac(protocol, None, rules, callouts.SHADOW_PREFIX)
        yield HTTP_EXT_AUTHZ, callouts.http_callout(provider, service)
        return
    asked = callouts.network_callout(provider, service)
    if asked is not None:
        yield rbac_name, _rbac(protocol, None, rules, callouts.SHADOW_PREFIX)
        yield NETWORK_EXT_AUTHZ, asked


def _all_refused(rules: RBAC) -> RBAC:
    found = RBAC(action=RBAC.DENY)
    for name, policy in rules.policies.items():
        found.policies[name + _BAD_CUSTOM].CopyFrom(policy)
    return found
