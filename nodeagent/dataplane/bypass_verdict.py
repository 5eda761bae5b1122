"""Whether a connection may be made, said before there is one: the engine's guards with what is known beforehand.

Who a peer is and from which addresses it may come is known, what it will send is not. So checks have three values,
and what depends on the unknown is left to the engine. What is decided here is what the engine would say
(na_engine_explain_access), down to the name of the policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from nodeagent.dataplane.bypass_checks import Facts, Holds, UndecidableError, asks_for_address, compile_check
from nodeagent.dataplane.bypass_layout import Access
from nodeagent.snapshot.address import is_v4
from nodeagent.snapshot.policies import Attribute, Callout, ConnectionStage, Guards, RuleAction, Rules
from nodeagent.snapshot.values import Inbound, Protocol

_SPIFFE: Final = re.compile(
    r"spiffe://([a-z0-9._-]{1,255})/ns/([A-Za-z0-9._-]+)/sa/([A-Za-z0-9._-]+)", re.ASCII
)
_IDENTITIES_REMEMBERED: Final = 4096
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
    """What is asked of each connection to a port, in order; None if the engine must have them all."""
    protocol, guards = _speaks(inbound, port)
    if inbound.tunnel is not None or protocol is not Protocol.TCP:
        return None
    return (*inbound.every, *guards.connection)


def _speaks(inbound: Inbound, port: int) -> tuple[Protocol, Guards]:
    for each in inbound.ports:
        if each.port == port:
            return each.protocol, each.guards
    return inbound.fallback, inbound.fallback_guards


def why_not_judged(inbound: Inbound, port: int) -> str:
    """Why the engine must have all connections to a port, for people; "" if it depends."""
    if inbound.tunnel is not None:
        return "the application is told of its peers by PROXY headers"
    protocol, guards = _speaks(inbound, port)
    if protocol is not Protocol.TCP:
        return f"port {port} speaks {protocol.name}"
    for stage in (*inbound.every, *guards.connection):
        if isinstance(stage, Callout):
            return "an authorization service is asked"
        if stage.shadow:
            return "a policy is on trial (dry run)"
    return ""


class Judge:
    """What stages say to each peer."""

    __slots__ = ("_stages", "asks_for_address")

    def __init__(self, stages: Sequence[ConnectionStage]) -> None:
        self.asks_for_address = any(map(_asks_for_address, stages))
        """Whether a verdict may depend on the peer's addresses."""
        self._stages = tuple(map(_compile, stages))

    def verdict(self, peer: Peer, target: Target) -> Verdict:
        """On a connection of the peer to the target, whichever addresses of both it is between."""
        verdict: Verdict | None = None
        for facts in _facts(peer, target):
            found = self._ask(facts)
            if found.access is Access.ENGINE or verdict not in (None, found):
                return ENGINE
            verdict = found
        return verdict or ENGINE

    def _ask(self, facts: Facts) -> Verdict:
        """What the first stage says that does not let pass."""
        try:
            for stage in self._stages:
                verdict = stage(facts)
                if verdict.access is not Access.ALLOW:
                    return verdict
        except UndecidableError:
            return ENGINE
        return ALLOW


def judge(stages: Sequence[ConnectionStage], peer: Peer, target: Target) -> Verdict:
    """What stages say to one peer; for several make a Judge."""
    return Judge(stages).verdict(peer, target)


# -- what is known --


def _facts(peer: Peer, target: Target) -> Iterator[Facts]:
    """For each pair of addresses that a connection may be between."""
    texts = None if peer.principal is None else _texts_of(peer.principal)
    for destination in target.addresses:
        if not peer.addresses:
            yield Facts(texts, None, destination, target.port)
        for address in peer.addresses:
            if is_v4(address) == is_v4(destination):
                yield Facts(texts, address, destination, target.port)


@lru_cache(_IDENTITIES_REMEMBERED)
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


def _asks_for_address(stage: ConnectionStage) -> bool:
    return isinstance(stage, Rules) and any(asks_for_address(policy.check) for policy in stage.policies)


def _compile(stage: ConnectionStage) -> Callable[[Facts], Verdict]:
    # A shadow counts what it finds, and an authorization service is not asked from here.
    if not isinstance(stage, Rules) or stage.shadow:
        return lambda facts: ENGINE
    policies = [(policy.name, compile_check(policy.check)) for policy in stage.policies]
    match stage.action:
        case RuleAction.ALLOW:
            return partial(_allowing, [holds for _, holds in policies])
        case RuleAction.DENY:
            return partial(_denying, policies)
        case RuleAction.LOG:
            return partial(_logging, policies)


def _allowing(policies: list[Holds], facts: Facts) -> Verdict:
    """Which one allows it does not matter."""
    verdict = Verdict(Access.DENY)
    for holds in policies:
        held = holds(facts)
        if held:
            return ALLOW
        if held is None:
            verdict = ENGINE
    return verdict


def _denying(policies: list[tuple[str, Holds]], facts: Facts) -> Verdict:
    """By the first one that matches, which must be known."""
    for name, holds in policies:
        held = holds(facts)
        if held is not False:
            return Verdict(Access.DENY, name) if held and name else ENGINE
    return ALLOW


def _logging(policies: list[tuple[str, Holds]], facts: Facts) -> Verdict:
    """Matches are counted, which the engine does."""
    return ENGINE if any(holds(facts) is not False for _, holds in policies) else ALLOW
