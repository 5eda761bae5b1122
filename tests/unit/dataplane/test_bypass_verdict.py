"""Verdicts before there is a connection: what they say the engine would say, too, and what they cannot know they leave
to it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

import pytest
from harness import Namespace, require

from nodeagent.dataplane.access import AccessQuestion
from nodeagent.dataplane.bypass_layout import Access
from nodeagent.dataplane.bypass_verdict import (
    ALLOW,
    ENGINE,
    Judge,
    Peer,
    Target,
    Verdict,
    judge,
    stages_of,
)
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchFlags, MatchKind
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
    Callout,
    Check,
    Guards,
    Not,
    Place,
    Policy,
    PortCheck,
    RuleAction,
    Rules,
    TextCheck,
)
from nodeagent.snapshot.values import ApplicationTunnel, Inbound, InboundPort, Protocol, Snapshot

WEB, DB = "spiffe://mesh.local/ns/shop/sa/web", "spiffe://mesh.local/ns/data/sa/db"
V4, OTHER_V4, V6 = parse_address("10.0.0.1"), parse_address("10.0.1.1"), parse_address("fd00::1")
TARGET = Target((parse_address("10.0.0.9"), parse_address("fd00::9")), 9000)


def rules(action: RuleAction, *checks: Check, shadow: bool = False) -> Rules:
    return Rules(action, tuple(Policy(f"p{i}", check) for i, check in enumerate(checks)), shadow)


def allow(*checks: Check) -> Rules:
    return rules(RuleAction.ALLOW, *checks)


def deny(*checks: Check) -> Rules:
    return rules(RuleAction.DENY, *checks)


def principal(value: str, kind: MatchKind = MatchKind.EXACT) -> TextCheck:
    return TextCheck(Attribute.PRINCIPAL, kind, value)


def peer_in(address: str, prefix: int) -> AddressCheck:
    return AddressCheck(Place.PEER, parse_address(address), prefix)


SNI = TextCheck(Attribute.SNI, MatchKind.EXACT, "a.example")
MEMBER = TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT)
DENIED = Verdict(Access.DENY)
V6_NETWORK = peer_in("fd00::", 8)


@pytest.mark.parametrize(
    ("stages", "peer", "verdict"),
    [
        ((), Peer(""), ALLOW),
        ((allow(),), Peer(WEB), DENIED),
        ((deny(),), Peer(WEB), ALLOW),
        ((allow(principal(WEB)),), Peer(WEB), ALLOW),
        ((allow(principal(WEB)),), Peer(DB), DENIED),
        ((allow(principal(WEB)),), Peer(""), DENIED),
        ((allow(principal(WEB)),), Peer(None), ENGINE),
        ((deny(principal(DB), MEMBER),), Peer(WEB), Verdict(Access.DENY, "p1")),
        # Which of two denies is not known: neither is the verdict.
        ((deny(principal(DB), MEMBER),), Peer(None), ENGINE),
        ((deny(Not(MEMBER)),), Peer(None), ALLOW),
        ((deny(Not(MEMBER)),), Peer(""), Verdict(Access.DENY, "p0")),
        # The engine takes for an identity only what is one.
        ((deny(Not(MEMBER)),), Peer("spiffe://MESH/ns/a/sa/b"), Verdict(Access.DENY, "p0")),
        ((allow(SNI),), Peer(WEB), ENGINE),
        ((allow(SNI, principal(WEB)),), Peer(WEB), ALLOW),
        ((deny(AllOf((SNI, principal(DB)))),), Peer(WEB), ALLOW),
        ((deny(AnyOf((SNI, principal(WEB)))),), Peer(WEB), Verdict(Access.DENY, "p0")),
        ((deny(TextCheck(Attribute.HEADER, MatchKind.PRESENT, name="x")),), Peer(WEB), ALLOW),
        # An address of either kind may be the connection's.
        ((allow(V6_NETWORK),), Peer(WEB, (V4, V6)), ENGINE),
        ((allow(V6_NETWORK, peer_in("10.0.0.0", 104)),), Peer(WEB, (V4, V6)), ALLOW),
        ((allow(peer_in("10.0.0.0", 120)),), Peer(WEB, (V4, OTHER_V4)), ENGINE),
        ((deny(peer_in("10.1.0.0", 112)),), Peer(WEB, (V4, OTHER_V4)), ALLOW),
        ((allow(peer_in("10.0.0.0", 104)),), Peer(WEB), ENGINE),
        ((deny(PortCheck(1, 8999)), allow(PortCheck(9000, 9000))), Peer(None), ALLOW),
        # What is counted, or asked, only the engine can.
        ((rules(RuleAction.LOG, MEMBER),), Peer(WEB), ENGINE),
        ((rules(RuleAction.LOG, principal(DB)),), Peer(WEB), ALLOW),
        ((rules(RuleAction.DENY, principal(DB), shadow=True),), Peer(WEB), ENGINE),
        ((Callout("c", grpc=True),), Peer(WEB), ENGINE),
        ((deny(MEMBER), Callout("c", grpc=True)), Peer(WEB), Verdict(Access.DENY, "p0")),
        # What the engine refuses as a whole.
        ((deny(AllOf((principal("(", MatchKind.REGEX), Not(Always())))),), Peer(WEB), ENGINE),
    ],
)
def test_what_is_known_decides(stages: tuple[Rules | Callout, ...], peer: Peer, verdict: Verdict) -> None:
    assert judge(stages, peer, TARGET) == verdict


def test_addresses_of_another_family_are_no_connection() -> None:
    assert judge((), Peer(WEB, (V6,)), Target((V4,), 9000)) == ENGINE


def test_only_ports_that_speak_tcp_are_judged() -> None:
    every, connection = allow(MEMBER), deny(SNI)
    guards = Guards(connection=(connection,))
    ports = (
        InboundPort(1, Protocol.TCP, guards=guards),
        InboundPort(2, Protocol.HTTP, guards=guards),
        InboundPort(3, Protocol.DETECT),
        InboundPort(4, Protocol.REFUSE),
    )
    inbound = Inbound(ports, Protocol.TCP, every=(every,))
    assert stages_of(inbound, 1) == (every, connection)
    assert [stages_of(inbound, port) for port in (2, 3, 4)] == [None] * 3
    assert stages_of(inbound, 5) == (every,)
    assert stages_of(Inbound(ports), 5) is None, "it may be HTTP"
    assert stages_of(Inbound(ports, Protocol.TCP, tunnel=ApplicationTunnel()), 1) is None


def test_whether_the_address_matters() -> None:
    assert Judge((deny(Not(AnyOf((MEMBER, V6_NETWORK)))),)).asks_for_address
    assert not Judge((deny(MEMBER, AddressCheck(Place.DESTINATION, V4, 128)), allow())).asks_for_address


def test_denials_are_worded_as_the_engine_does() -> None:
    assert DENIED.detail == "rbac_access_denied_matched_policy[none]"
    assert Verdict(Access.DENY, "a b").detail == "rbac_access_denied_matched_policy[a_b]"


# -- the engine's own answers --


def _texts(rng: random.Random) -> tuple[MatchKind, str]:
    part = rng.choice((WEB, DB, "shop", "shop/web", "mesh.local", "/ns/shop/", "db", "SHOP"))
    kind = rng.choice(
        (
            MatchKind.EXACT,
            MatchKind.PREFIX,
            MatchKind.SUFFIX,
            MatchKind.CONTAINS,
            MatchKind.PRESENT,
            MatchKind.REGEX,
        )
    )
    patterns = (".*/ns/shop/.*", ".+", "spiffe://.+/ns/shop/(.+/|)sa/web(/.+)?", "spiffe://mesh[^/]*/.*")
    return kind, rng.choice(patterns) if kind is MatchKind.REGEX else part


def _check(rng: random.Random, depth: int = 0) -> Check:
    choice = rng.randrange(10 if depth < 3 else 6)
    if choice == 0:
        return Always()
    if choice in (1, 2):
        place = rng.choice(list(Place))
        return AddressCheck(
            place, rng.choice((V4, V6, OTHER_V4, *TARGET.addresses)), rng.choice((0, 8, 104, 120, 128))
        )
    if choice == 3:
        return PortCheck(rng.choice((1, 9000)), 9000)
    if choice in (4, 5):
        kind, value = _texts(rng)
        attribute = rng.choice([*Attribute][:-1])  # the last is to a connection what METADATA is
        name = "x" if attribute in (Attribute.HEADER, Attribute.METADATA) else ""
        flags = MatchFlags(rng.choice((0, 0, 1, 2, 4)))
        return TextCheck(attribute, kind, value, name, flags)
    if choice == 6:
        return Not(_check(rng, depth + 1))
    checks = tuple(_check(rng, depth + 1) for _ in range(rng.randrange(4)))
    return AllOf(checks) if choice < 8 else AnyOf(checks)


def _stages(rng: random.Random) -> tuple[Rules, ...]:
    def stage() -> Rules:
        action = rng.choice((RuleAction.ALLOW, RuleAction.DENY, RuleAction.DENY, RuleAction.LOG))
        checks = [_check(rng) for _ in range(rng.randrange(1, 4))]
        return rules(action, *checks, shadow=rng.random() < 0.05)

    return tuple(stage() for _ in range(rng.randrange(1, 3)))


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    require("root", "engine")
    made = Namespace("nt-verdicts")
    yield made
    made.close()


@pytest.fixture
async def engine(namespace: Namespace) -> AsyncIterator[EngineOwner]:
    owner = EngineOwner(EngineSettings())
    owner.start()
    try:
        owner.add_workload("pod", namespace.handle, "v", TARGET.addresses, [])
        yield owner
    finally:
        await owner.stop(0)
        owner.close()


def _agrees(engine: EngineOwner, verdict: Verdict, who: str, source: bytes, destination: bytes) -> bool:
    answer = engine.explain_access("pod", AccessQuestion(TARGET.port, source, destination, who))
    if verdict.access is Access.ALLOW:
        return answer.allowed
    return not answer.allowed and answer.detail == verdict.detail


@pytest.mark.netns
@pytest.mark.parametrize("seed", range(4))
async def test_the_engine_says_the_same(engine: EngineOwner, seed: int) -> None:
    rng = random.Random(seed)
    decided = dict.fromkeys(Access, 0)
    for _ in range(250):
        every, connection = _stages(rng), _stages(rng)
        inbound = Inbound((InboundPort(9000, Protocol.TCP, guards=Guards(connection)),), every=every)
        engine.apply(Snapshot(inbound={"pod": inbound}))
        stages = stages_of(inbound, 9000)
        assert stages is not None
        addresses = tuple(rng.sample((V4, V6, OTHER_V4), rng.randrange(4)))
        for who in (WEB, DB, "", None):
            verdict = judge(stages, Peer(who, addresses), TARGET)
            decided[verdict.access] += 1
            if verdict == ENGINE:
                continue
            pairs = [
                (source, destination)
                for destination in TARGET.addresses
                for source in addresses or (V4, V6, OTHER_V4)
                if (source[:12] == V4[:12]) == (destination[:12] == V4[:12])
            ]
            assert pairs
            for source, destination in pairs:
                for name in (WEB, DB) if who is None else (who,):
                    assert _agrees(engine, verdict, name, source, destination), (stages, who, source, verdict)
    assert all(count > 20 for count in decided.values()), decided
