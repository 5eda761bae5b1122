"""Whether a connection may be made, said before there is one: the engine's guards with what is known beforehand.

Who a peer is and from which addresses it may come is known, what it will send is not. So checks have three values,
and what depends on the unknown is left to the engine. What is decided here is what the engine would say
(na_engine_explain_access), down to the name of the policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from nodeagent.dataplane._native import lib
from nodeagent.dataplane.bypass_layout import Access
from nodeagent.snapshot.address import is_v4
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
    Check,
    ConnectionStage,
    Not,
    Place,
    PortCheck,
    RuleAction,
    Rules,
    TextCheck,
)
from nodeagent.snapshot.values import Inbound, Protocol

_MAPPED_BITS: Final = 96
_SPIFFE: Final = re.compile(
    r"spiffe://([a-z0-9._-]{1,255})/ns/([A-Za-z0-9._-]+)/sa/([A-Za-z0-9._-]+)", re.ASCII
)
_TEXTS_REMEMBERED: Final = 8192
_WHITE: Final = str.maketrans(dict.fromkeys(" \t\r\n\v\f", "_"))
_NONE_MATCHED: Final = "none"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of an answer. `policy` is the name of the one that denies; "" if it is that none allows."""

    access: Access
    policy: str = ""

    @property
    def detail(self) -> str:
        """Of a denial, as the engine and Envoy word it (%CONNECTION_TERMINATION_DETAILS%)."""
        name = self.policy.translate(_WHITE) or _NONE_MATCHED
        return f"rbac_access_denied_matched_policy[{name}]"


ENGINE: Final = Verdict(Access.ENGINE)
ALLOW: Final = Verdict(Access.ALLOW)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks."""

    principal: str | None
    """Its SPIFFE ID, "" if nobody vouches for it; None: it has one, which is not known."""
    addresses: tuple[bytes, ...] = ()
    """It comes from one of these; none: from anywhere."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked: any of these addresses, at the port."""

    addresses: tuple[bytes, ...]
    port: int


def stages_of(inbound: Inbound, port: int) -> tuple[ConnectionStage, ...] | None:
    """What is asked of each connection to a port, in order; None if it is not TCP alone that is spoken there, or if
    connections reach the application in another way than they are made."""
    if inbound.tunnel is not None:
        return None
    listed = next((each for each in inbound.ports if each.port == port), None)
    protocol = inbound.fallback if listed is None else listed.protocol
    if protocol is not Protocol.TCP:
        return None
    guards = inbound.fallback_guards if listed is None else listed.guards
    return (*inbound.every, *guards.connection)


def asks_for_address(stages: Iterable[ConnectionStage]) -> bool:
    """Whether a verdict may depend on the peer's addresses."""
    return any(
        _asks_for_address(policy.check)
        for stage in stages
        if isinstance(stage, Rules)
        for policy in stage.policies
    )


def _asks_for_address(check: Check) -> bool:
    match check:
        case AllOf(checks) | AnyOf(checks):
            return any(map(_asks_for_address, checks))
        case Not(operand):
            return _asks_for_address(operand)
        case AddressCheck(place):
            return place is not Place.DESTINATION
    return False


def judge(stages: Sequence[ConnectionStage], peer: Peer, target: Target) -> Verdict:
    """What the stages say to a connection of the peer to the target, whichever addresses of both it is between."""
    verdict: Verdict | None = None
    for facts in _facts(peer, target):
        found = _ask(stages, facts)
        if found.access is Access.ENGINE or verdict not in (None, found):
            return ENGINE
        verdict = found
    return verdict or ENGINE


# -- what is known --


class _Undecidable(Exception):
    """A check that the engine could not even make."""


@dataclass(frozen=True, slots=True)
class _Facts:
    texts: dict[Attribute, str] | None
    """Of the peer's identity; None: not known, but there."""
    peer: bytes | None
    destination: bytes
    port: int


def _facts(peer: Peer, target: Target) -> Iterator[_Facts]:
    """For each pair of addresses that a connection may be between."""
    texts = None if peer.principal is None else _texts_of(peer.principal)
    for destination in target.addresses:
        if not peer.addresses:
            yield _Facts(texts, None, destination, target.port)
        for address in peer.addresses:
            if is_v4(address) == is_v4(destination):
                yield _Facts(texts, address, destination, target.port)


def _texts_of(principal: str) -> dict[Attribute, str]:
    """The identity's texts; the engine takes no others for SPIFFE IDs of workloads (spiffe.c)."""
    found = _SPIFFE.fullmatch(principal)
    if found is None:
        return {}
    domain, namespace, account = found.groups()
    return {
        Attribute.PRINCIPAL: principal,
        Attribute.NAMESPACE: namespace,
        Attribute.SERVICE_ACCOUNT: f"{namespace}/{account}",
        Attribute.TRUST_DOMAIN: domain,
    }


# -- asking (rules.c) --


def _ask(stages: Iterable[ConnectionStage], facts: _Facts) -> Verdict:
    """What the first stage says that does not let pass."""
    try:
        for stage in stages:
            # A shadow counts what it finds, an authorization service is not asked from here.
            if not isinstance(stage, Rules) or stage.shadow:
                return ENGINE
            verdict = _ask_rules(stage, facts)
            if verdict.access is not Access.ALLOW:
                return verdict
    except _Undecidable:
        return ENGINE
    return ALLOW


def _ask_rules(rules: Rules, facts: _Facts) -> Verdict:
    found = _first_match(rules, facts)
    match rules.action:
        case RuleAction.LOG:
            return ALLOW if found is False else ENGINE  # which counts it
        case RuleAction.DENY:
            if isinstance(found, str) and found:
                return Verdict(Access.DENY, found)
            return ALLOW if found is False else ENGINE
        case RuleAction.ALLOW:
            # Which one allows it does not matter.
            if any(_holds(policy.check, facts) for policy in rules.policies):
                return ALLOW
            return Verdict(Access.DENY) if found is False else ENGINE


def _first_match(rules: Rules, facts: _Facts) -> str | Literal[False] | None:
    """The name of the first policy that matches; False: none does, None: not known."""
    for policy in rules.policies:
        held = _holds(policy.check, facts)
        if held is not False:
            return policy.name if held else None
    return False


# -- evaluating (check.c): None is unknown --


def _holds(check: Check, facts: _Facts) -> bool | None:
    match check:
        case Always():
            return True
        case AllOf(checks):
            return _all(checks, facts)
        case AnyOf(checks):
            return _any(checks, facts)
        case Not(operand):
            held = _holds(operand, facts)
            return None if held is None else not held
        case TextCheck():
            return _text_holds(check, facts)
        case AddressCheck():
            return _address_holds(check, facts)
        case PortCheck(low, high):
            return low <= facts.port <= high


def _all(checks: Iterable[Check], facts: _Facts) -> bool | None:
    result: bool | None = True
    for check in checks:
        held = _holds(check, facts)
        if held is False:
            return False
        result = result and held
    return result


def _any(checks: Iterable[Check], facts: _Facts) -> bool | None:
    result: bool | None = False
    for check in checks:
        held = _holds(check, facts)
        if held:
            return True
        result = None if held is None else result
    return result


def _text_holds(check: TextCheck, facts: _Facts) -> bool | None:
    if check.attribute in (Attribute.HEADER, Attribute.PATH):
        return False  # a connection has no request
    if check.attribute in (Attribute.SNI, Attribute.METADATA):
        return None
    if facts.texts is None and check.kind is not MatchKind.PRESENT:
        return None
    text = "there" if facts.texts is None else facts.texts.get(check.attribute, "")
    return _engine_says(int(check.kind), check.value, int(check.flags), text)


@lru_cache(_TEXTS_REMEMBERED)
def _engine_says(kind: int, value: str, flags: int, text: str) -> bool:
    code = lib.na_check_text_holds(kind, value.encode(), flags, text.encode())
    if code < 0 or "\0" in value:
        raise _Undecidable
    return bool(code)


def _address_holds(check: AddressCheck, facts: _Facts) -> bool | None:
    address = facts.destination if check.place is Place.DESTINATION else facts.peer
    if address is None:
        return None
    if check.prefix < _MAPPED_BITS and is_v4(address):
        return False  # a range of IPv6 holds no address of IPv4
    shift = 128 - check.prefix
    return int.from_bytes(address) >> shift == int.from_bytes(check.address) >> shift
