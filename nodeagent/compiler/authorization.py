"""L4 authorization: istio.security.Authorization resources, and which of them hold for a workload.

They are how a node proxy is told of policies: AuthorizationPolicies without what needs HTTP, and PeerAuthentications
turned into denials. Rules as in ztunnel: a policy matches if one of its rules does; a rule if all of its clauses do; a
clause if one of its matches does, or if it has none; a match if each kind of condition in it holds, and never if it has
no condition at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from nodeagent.compiler.report import set_fields
from nodeagent.snapshot.address import LENGTH, widen_address
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
    Check,
    Not,
    Place,
    Policy,
    PortCheck,
    RuleAction,
    Rules,
    TextCheck,
)

NEVER: Final = AnyOf(())
_SCHEME: Final = "spiffe://"
_STRICT: Final = "istio_converted_static_strict"
_CONVERTED: Final = "converted_peer_authentication_"
_TEXT_KINDS: Final = {"exact": MatchKind.EXACT, "prefix": MatchKind.PREFIX, "suffix": MatchKind.SUFFIX}
_V4_BITS: Final = 32
_BITS: Final = 8 * LENGTH


class PolicyScope(IntEnum):
    """istio.security.Scope: for whom a policy is."""

    GLOBAL = 0
    NAMESPACE = 1
    WORKLOAD_SELECTOR = 2
    """For the workloads that list it (Workload.authorization_policies)."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """One resource as it is in force. `policies` are its rules; none of an ALLOW lets nobody in."""

    name: str
    """Of the resource, `namespace/name`."""
    namespace: str
    scope: PolicyScope
    action: RuleAction
    policies: tuple[Policy, ...]
    dry_run: bool = False
    error: str = ""
    """Why the resource cannot be used; whom it is for is denied everything."""

    @property
    def is_converted(self) -> bool:
        """Whether it is a PeerAuthentication, not an AuthorizationPolicy."""
        short = self.name.rpartition("/")[2]
        return short == _STRICT or short.startswith(_CONVERTED)


class AuthorizationIndex:
    """All Authorization resources of the mesh, by name."""

    def __init__(self) -> None:
        self._entries: dict[str, Authorization] = {}
        self._general: dict[str, dict[str, Authorization]] = {}
        """Those for all workloads of a namespace; under "" those for all of the mesh."""
        self._rules: dict[tuple[str, tuple[str, ...], bool], tuple[Rules, ...]] = {}
        """What was made of them, until one changes: workloads alike share it."""

    def put(self, name: str, message: Any) -> None:
        """Add or replace a resource; ValueError says what is wrong with it (refuse() is then to be called)."""
        self._put(compile_authorization(name, message))

    def refuse(self, name: str, reason: str) -> None:
        """The version received last cannot be used. The one before stays in force; if there is none, whoever may be
        meant is denied everything: those that list it, and those of the namespace that it is named after."""
        held = self._entries.get(name)
        if held is None or held.error:
            namespace = name.partition("/")[0]
            denial = Policy(_policy_name(namespace, name.rpartition("/")[2], "unreadable"), Always())
            scope, action = PolicyScope.NAMESPACE, RuleAction.DENY
            self._put(Authorization(name, namespace, scope, action, (denial,), error=reason))

    def _put(self, entry: Authorization) -> None:
        self.remove(entry.name)
        self._entries[entry.name] = entry
        if entry.scope is not PolicyScope.WORKLOAD_SELECTOR:
            self._general.setdefault(_reach(entry), {})[entry.name] = entry

    def remove(self, name: str) -> None:
        """Drop a resource."""
        self._rules.clear()
        entry = self._entries.pop(name, None)
        if entry is not None and entry.scope is not PolicyScope.WORKLOAD_SELECTOR:
            reach = _reach(entry)
            del self._general[reach][name]
            if not self._general[reach]:
                del self._general[reach]

    def holding_for(self, namespace: str, listed: Iterable[str], *, l4_only: bool) -> Iterator[Authorization]:
        """The policies of a workload: all, or (not `l4_only`) those that no filter of a listener stands for."""
        found = {**self._general.get("", {}), **self._general.get(namespace, {})}
        found.update((name, self._entries[name]) for name in listed if name in self._entries)
        for entry in found.values():
            if l4_only or entry.is_converted or entry.error:
                yield entry

    def rules_for(self, namespace: str, listed: Iterable[str], *, l4_only: bool) -> tuple[Rules, ...]:
        """What is asked of each connection to a workload, in order: what denies, then what allows."""
        key = (namespace, tuple(listed), l4_only)
        if key not in self._rules:
            self._rules[key] = gather(self.holding_for(namespace, key[1], l4_only=l4_only))
        return self._rules[key]

    def __iter__(self) -> Iterator[Authorization]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)


def _reach(entry: Authorization) -> str:
    """The namespace for whose workloads a policy is; "" for all."""
    return "" if entry.scope is PolicyScope.GLOBAL else entry.namespace


def gather(entries: Iterable[Authorization]) -> tuple[Rules, ...]:
    """Stages that ask for dry runs first, then for any denial, then for an allowance if any is needed."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    stages = []
    for dry_run in (True, False):
        for action in (RuleAction.DENY, RuleAction.ALLOW):
            chosen = [entry for entry in ordered if (entry.dry_run, entry.action) == (dry_run, action)]
            if chosen:
                policies = tuple(policy for entry in chosen for policy in entry.policies)
                stages.append(Rules(action, policies, shadow=dry_run))
    return tuple(stages)


def compile_authorization(name: str, message: Any) -> Authorization:
    """A resource; ValueError says what of it cannot be read."""
    try:
        scope = PolicyScope(message.scope)
    except ValueError:
        raise ValueError(f"scope {message.scope} is not known") from None
    if scope is PolicyScope.NAMESPACE and not message.namespace:
        raise ValueError("is for a namespace, and names none")
    if message.action not in (RuleAction.ALLOW, RuleAction.DENY):
        raise ValueError(f"action {message.action} is not known")
    policies = tuple(
        Policy(
            _policy_name(message.namespace, message.name, f"rule[{index}]"), _rule(rule, f"rules[{index}]")
        )
        for index, rule in enumerate(message.rules)
    )
    action = RuleAction(message.action)
    return Authorization(name, message.namespace, scope, action, policies, bool(message.dry_run))


def _policy_name(namespace: str, name: str, part: str) -> str:
    return f"ns[{namespace}]-policy[{name}]-{part}"


def _rule(rule: Any, place: str) -> Check:
    return _all([_clause(clause, f"{place}.clauses[{index}]") for index, clause in enumerate(rule.clauses)])


def _clause(clause: Any, place: str) -> Check:
    if not clause.matches:
        return Always()
    return _any([_match(match, f"{place}.matches[{index}]") for index, match in enumerate(clause.matches)])


def _match(match: Any, place: str) -> Check:
    if match.extensions:
        # It may narrow the match down by what is not known here.
        raise ValueError(f"{place}: extension {match.extensions[0].name!r} is not known")
    conditions = []
    for field in set_fields(match):
        kind = field.removeprefix("not_")
        checks = []
        for index, value in enumerate(getattr(match, field)):
            try:
                checks.append(_READERS[kind](value))
            except ValueError as error:
                raise ValueError(f"{place}.{field}[{index}]: {error}") from None
        conditions.append(Not(_any(checks)) if field != kind else _any(checks))
    return _all(conditions) if conditions else NEVER


def _all(checks: list[Check]) -> Check:
    return checks[0] if len(checks) == 1 else AllOf(tuple(checks)) if checks else Always()


def _any(checks: list[Check]) -> Check:
    return checks[0] if len(checks) == 1 else AnyOf(tuple(checks))


def _text(attribute: Attribute, match: Any, scheme: str = "") -> Check:
    kind = match.WhichOneof("match_type")
    if kind == "presence":
        return TextCheck(attribute, MatchKind.PRESENT)
    if kind is None:
        raise ValueError("says neither exact, prefix, suffix nor presence")
    value = getattr(match, kind)
    # A suffix that begins with "/" cannot reach into the scheme: SPIFFE IDs have a trust domain.
    return TextCheck(attribute, _TEXT_KINDS[kind], value if kind == "suffix" else scheme + value)


def _principal(match: Any) -> Check:
    return _text(Attribute.PRINCIPAL, match, _SCHEME)


def _namespace(match: Any) -> Check:
    return _text(Attribute.NAMESPACE, match)


def _service_account(match: Any) -> Check:
    value = f"{match.namespace}/{match.serviceAccount}"
    return TextCheck(Attribute.SERVICE_ACCOUNT, MatchKind.EXACT, value)


def _source(address: Any) -> Check:
    return address_check(Place.PEER, address.address, address.length)


def _destination(address: Any) -> Check:
    return address_check(Place.DESTINATION, address.address, address.length)


def address_check(place: Place, address: bytes, length: int) -> AddressCheck:
    """A CIDR range from an address of 4 or 16 bytes and its prefix length; ValueError if it is none."""
    bits = 8 * len(address)
    wide = widen_address(address)
    if length > bits:
        raise ValueError(f"prefix length {length} is over {bits}")
    prefix = length + (_BITS - _V4_BITS if bits == _V4_BITS else 0)
    mask = ((1 << prefix) - 1) << (_BITS - prefix)
    return AddressCheck(place, (int.from_bytes(wide) & mask).to_bytes(LENGTH), prefix)


def _port(port: int) -> Check:
    """Port 0 may be named, as under Istio; nothing is ever sent to it."""
    if not 0 <= port < 65536:
        raise ValueError(f"{port} is no port")
    return PortCheck(port, port)


_READERS: Final = {
    "namespaces": _namespace,
    "principals": _principal,
    "source_ips": _source,
    "destination_ips": _destination,
    "destination_ports": _port,
    "service_accounts": _service_account,
}
