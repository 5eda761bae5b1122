"""Guards through the engine's owner: who may ask a workload in a namespace for what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from harness import Namespace, pki, require

from nodeagent.dataplane.access import AccessQuestion, AccessStep, Step
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.errors import EngineError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
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
from nodeagent.snapshot.values import Inbound, InboundPort, Protocol, Snapshot

LOOPBACK = parse_address("127.0.0.1")
INBOUND, APPLICATION = 15006, 9000
QUESTION = AccessQuestion(
    APPLICATION, parse_address("10.0.0.1"), LOOPBACK, pki.WEB, method="GET", authority="back"
)


def path(value: str, kind: MatchKind = MatchKind.EXACT) -> TextCheck:
    return TextCheck(Attribute.PATH, kind, value)


def allow(name: str, check: Check) -> Rules:
    return Rules(RuleAction.ALLOW, (Policy(name, check),))


def deny(name: str, check: Check) -> Rules:
    return Rules(RuleAction.DENY, (Policy(name, check),))


def guarded(*request: Rules, connection: tuple[Rules, ...] = (), every: tuple[Rules, ...] = ()) -> Inbound:
    guards = Guards(connection, request)
    return Inbound((InboundPort(APPLICATION, Protocol.HTTP, guards=guards),), every=every)


class Bench:
    """An engine that guards a workload in a namespace."""

    def __init__(self, engine: EngineOwner, namespace: Namespace) -> None:
        self.engine = engine
        self.namespace = namespace

    async def put(self, inbound: Inbound) -> None:
        """Put it in force on all workers."""
        self.engine.apply(Snapshot(inbound={"pod": inbound}))
        async with asyncio.timeout(5):
            while not self.engine.settled():
                await asyncio.sleep(0.005)

    def explain(self, question: AccessQuestion = QUESTION) -> tuple[bool, str]:
        answer = self.engine.explain_access("pod", question)
        return answer.allowed, answer.detail


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    require("root", "engine")
    namespace = Namespace(f"nt-guards-{id(object())}")
    engine = EngineOwner(EngineSettings(access_log=True))
    engine.start()
    try:
        engine.add_workload("pod", namespace.handle, "v", [LOOPBACK], [])
        yield Bench(engine, namespace)
    finally:
        await engine.stop(0)
        engine.close()
        namespace.close()


@pytest.mark.netns
async def test_it_is_explained_step_by_step(bench: Bench) -> None:
    await bench.put(guarded(deny("no-admin", path("/admin", MatchKind.PREFIX)), allow("read", path("/a/b"))))
    answer = bench.engine.explain_access("pod", replace(QUESTION, path="/a/./c/../b?x=/admin"))
    assert answer.allowed
    assert answer.steps == (
        AccessStep(Step.PROTOCOL, ("http",)),
        AccessStep(Step.GUARDS, ("request",)),
        AccessStep(Step.STAGE, ("deny",)),
        AccessStep(Step.POLICY, ("no-admin", "not matched")),
        AccessStep(Step.STAGE, ("allow",)),
        AccessStep(Step.POLICY, ("read", "matched")),
        AccessStep(Step.VERDICT, ("allowed",)),
    )
    refused = bench.engine.explain_access("pod", replace(QUESTION, path="/a/../%61dmin"))
    assert (refused.allowed, refused.status) == (False, 403)
    assert refused.detail == "rbac_access_denied_matched_policy[no-admin]"
    assert refused.steps[-1] == AccessStep(Step.VERDICT, ("denied", "403", refused.detail))


@pytest.mark.netns
@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (Always(), True),
        (Not(Always()), False),
        (AllOf(()), True),
        (AnyOf(()), False),
        (AnyOf((Not(Always()), AllOf((Always(), Always())))), True),
        (TextCheck(Attribute.PRINCIPAL, MatchKind.EXACT, pki.WEB), True),
        (TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT), True),
        (TextCheck(Attribute.NAMESPACE, MatchKind.EXACT, "default"), True),
        (TextCheck(Attribute.SERVICE_ACCOUNT, MatchKind.EXACT, "default/web"), True),
        (TextCheck(Attribute.TRUST_DOMAIN, MatchKind.SUFFIX, ".local"), True),
        (TextCheck(Attribute.SNI, MatchKind.PRESENT), False),
        (TextCheck(Attribute.HEADER, MatchKind.EXACT, "b", "X-Two"), True),
        (TextCheck(Attribute.HEADER, MatchKind.EXACT, "a,b", "X-Two"), False),
        (TextCheck(Attribute.HEADER, MatchKind.EXACT, "BACK", ":authority"), True),
        (TextCheck(Attribute.HEADER, MatchKind.EXACT, "GET", ":method"), True),
        (TextCheck(Attribute.METADATA, MatchKind.PRESENT, name="f\x1fa"), False),
        (TextCheck(Attribute.PATH, MatchKind.EXACT, "/{*}", template=True), False),
        (TextCheck(Attribute.PATH, MatchKind.EXACT, "/{**}", template=True), True),
        (AddressCheck(Place.PEER, parse_address("10.0.0.0"), 104), True),
        (AddressCheck(Place.DESTINATION, parse_address("10.0.0.0"), 104), False),
        (AddressCheck(Place.PEER, bytes(16), 0), False),
        (PortCheck(APPLICATION, APPLICATION), True),
        (PortCheck(1, 80), False),
    ],
)
async def test_checks_reach_the_engine(bench: Bench, check: Check, holds: bool) -> None:
    await bench.put(guarded(allow("p", check)))
    question = replace(QUESTION, headers=(("x-two", "a"), ("x-two", "b")))
    assert bench.explain(question)[0] is holds


@pytest.mark.netns
async def test_every_connection_is_asked_first(bench: Bench) -> None:
    strict = deny("strict", Not(TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT)))
    await bench.put(guarded(allow("all", Always()), every=(strict,)))
    assert bench.explain() == (True, "")
    denied = (False, "rbac_access_denied_matched_policy[strict]")
    assert bench.explain(replace(QUESTION, principal="")) == denied
    assert bench.explain(replace(QUESTION, principal="", port=1)) == denied


@pytest.mark.netns
async def test_without_a_method_it_is_a_connection(bench: Bench) -> None:
    await bench.put(guarded(deny("http", Always()), connection=(deny("tcp", Always()),)))
    assert bench.explain() == (False, "rbac_access_denied_matched_policy[http]")
    assert bench.explain(replace(QUESTION, method=None)) == (False, "rbac_access_denied_matched_policy[tcp]")


@pytest.mark.netns
async def test_bad_guards_close_their_port_and_are_named(bench: Bench) -> None:
    bad = Guards(request=(deny("bad", path("(", MatchKind.REGEX)),))
    good = InboundPort(80, Protocol.HTTP)
    (rejection,) = bench.engine.apply(
        Snapshot(inbound={"pod": Inbound((InboundPort(APPLICATION, Protocol.HTTP, guards=bad), good))})
    )
    assert (rejection.kind, rejection.table, rejection.virtual_host) == (
        "workload",
        "pod",
        f"port {APPLICATION}",
    )
    assert "policy bad" in rejection.message
    assert "missing )" in rejection.message
    assert bench.explain() == (False, "inbound_configuration_not_in_force")
    assert bench.explain(replace(QUESTION, port=80)) == (True, "")
    assert not bench.engine.apply(Snapshot(inbound={"pod": guarded()}))
    assert bench.explain() == (True, "")


@pytest.mark.netns
async def test_what_cannot_be_asked_says_why(bench: Bench) -> None:
    with pytest.raises(EngineError, match="other is not served here"):
        bench.engine.explain_access("other", QUESTION)
    with pytest.raises(EngineError, match="not in force"):
        bench.engine.explain_access("pod", QUESTION)
    await bench.put(guarded())
    for question in (
        replace(QUESTION, path="/a b"),
        replace(QUESTION, path="/%00"),
        replace(QUESTION, method="G T"),
        replace(QUESTION, authority="a, b"),
        replace(QUESTION, headers=(("a b", "c"),)),
    ):
        with pytest.raises(EngineError, match="no such request can be"):
            bench.engine.explain_access("pod", question)
