"""Classes of receivers, and verdicts on them by sender and port."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nodeagent.dataplane.bypass_layout import Access, AccessKey
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.dataplane.bypass_verdict import Peer, Target, judge
from nodeagent.dataplane.datagram_layout import ANY_PORT, OUTSIDERS
from nodeagent.dataplane.datagram_outsiders import MAX_PREFIXES, judge_outsiders, verdict_on
from nodeagent.dataplane.datagram_plan import UDP, DatagramPlan, DatagramPlanner, Receiver
from nodeagent.snapshot.address import parse_address
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

ALICE_ID, BOB_ID = ("spiffe://cluster.local/ns/default/sa/" + name for name in ("alice", "bob"))
HERE, THERE = parse_address("10.244.1.9"), parse_address("10.244.2.9")
V6 = parse_address("fd00::9")


def sender(number: int, identity: str, *, in_force: bool = True) -> LocalWorkload:
    addresses = (parse_address(f"10.244.1.{number}"), parse_address(f"fd00::{number}"))
    return LocalWorkload(str(number), number, "view", addresses, 100 + number, identity, in_force)


ALICE, BOB = sender(1, ALICE_ID), sender(2, BOB_ID)
IS_ALICE = TextCheck(Attribute.PRINCIPAL, MatchKind.EXACT, ALICE_ID)


def rules(action: RuleAction, check: Check, *, shadow: bool = False) -> tuple[Rules, ...]:
    return (Rules(action, (Policy("the-policy", check),), shadow),)


def plan(
    asked: tuple[Rules, ...], senders: Sequence[LocalWorkload] = (ALICE, BOB), *, identities: bool = True
) -> DatagramPlan:
    planner = DatagramPlanner(identities=identities)
    return planner.plan([Receiver((HERE, V6), asked), Receiver((THERE,), asked)], senders)


def verdicts(made: DatagramPlan, who: LocalWorkload, address: bytes = HERE) -> dict[int, Access]:
    number = made.classes[address]
    return {
        key.port: verdict.access
        for key, verdict in made.access.items()
        if (key.source, key.destination, key.protocol) == (who.number, number, UDP)
    }


def test_nothing_is_asked_of_those_without_policies() -> None:
    made = plan(())
    assert (made.classes, made.access) == ({}, {})
    assert made.senders == {101: 1, 102: 2}


def test_workloads_alike_are_one_class_with_a_verdict_for_each_sender() -> None:
    made = plan(rules(RuleAction.ALLOW, IS_ALICE))
    assert made.classes[HERE] == made.classes[THERE] != made.classes[V6], "each family is a class"
    assert verdicts(made, ALICE) == {ANY_PORT: Access.ALLOW}
    assert verdicts(made, BOB) == {ANY_PORT: Access.DENY}


def test_ports_that_policies_name_have_verdicts_of_their_own() -> None:
    made = plan(rules(RuleAction.DENY, PortCheck(53, 54)))
    assert verdicts(made, BOB) == {53: Access.DENY, 54: Access.DENY, ANY_PORT: Access.ALLOW}
    denied = next(verdict for key, verdict in made.access.items() if key.port == 53)
    assert denied.policy == "the-policy"


def test_a_long_range_of_ports_that_differs_leaves_the_others_unsaid() -> None:
    made = plan(rules(RuleAction.DENY, PortCheck(1000, 2000)))
    assert verdicts(made, BOB) == {}, "what is not said refuses"
    made = plan(rules(RuleAction.ALLOW, Not(PortCheck(65_535, 65_535))))
    assert verdicts(made, BOB) == {65_535: Access.DENY, ANY_PORT: Access.ALLOW}


def test_who_is_told_apart_by_its_address_is_so_in_each_family() -> None:
    network = AddressCheck(Place.PEER, parse_address("10.244.1.1"), 128)
    made = plan(rules(RuleAction.ALLOW, network))
    assert verdicts(made, BOB) == verdicts(made, BOB, V6) == {ANY_PORT: Access.DENY}
    assert verdicts(made, ALICE) == {ANY_PORT: Access.ALLOW}
    assert verdicts(made, ALICE, V6) == {ANY_PORT: Access.DENY}


def test_a_class_that_asks_where_to_has_one_workload() -> None:
    made = plan(rules(RuleAction.DENY, AddressCheck(Place.DESTINATION, THERE, 128)))
    assert made.classes[HERE] != made.classes[THERE]
    assert verdicts(made, BOB, HERE) == {ANY_PORT: Access.ALLOW}
    assert verdicts(made, BOB, THERE) == {ANY_PORT: Access.DENY}


def test_dry_runs_and_logging_have_no_say() -> None:
    assert plan(rules(RuleAction.DENY, Always(), shadow=True)).classes == {}
    assert plan(rules(RuleAction.LOG, Always())).classes == {}


def test_what_needs_more_than_is_known_is_not_said() -> None:
    made = plan(rules(RuleAction.DENY, TextCheck(Attribute.SNI, MatchKind.EXACT, "a")))
    assert verdicts(made, BOB) == {}


def test_a_sender_without_its_certificate_reaches_nobody_with_policies() -> None:
    late = sender(3, ALICE_ID, in_force=False)
    made = plan(rules(RuleAction.ALLOW, Always()), [late])
    assert (made.senders, made.access) == ({}, {})
    nobody = sender(4, "")
    made = plan(rules(RuleAction.ALLOW, IS_ALICE), [nobody], identities=False)
    assert verdicts(made, nobody) == {ANY_PORT: Access.DENY}


def test_classes_keep_their_numbers_and_get_new_ones_for_new_rules() -> None:
    planner = DatagramPlanner(identities=True)
    first, second = rules(RuleAction.ALLOW, IS_ALICE), rules(RuleAction.DENY, IS_ALICE)
    before = planner.plan([Receiver((HERE,), first)], [ALICE])
    again = planner.plan([Receiver((HERE,), rules(RuleAction.ALLOW, IS_ALICE))], [ALICE])
    assert again == before
    other = planner.plan([Receiver((HERE,), second)], [ALICE])
    assert other.classes[HERE] > before.classes[HERE]
    assert AccessKey(1, before.classes[HERE], ANY_PORT, UDP) not in other.access


def test_outsiders_are_excluded_at_ports_that_services_lead_to() -> None:
    """Where policy wants an identity; where it depends on where they come from, by that."""

    def excluded(asked: tuple[Rules, ...]) -> dict[int, str]:
        receivers = [Receiver((HERE,), asked, (80, 53)), Receiver((THERE,), asked)]
        made = DatagramPlanner(identities=True).plan(receivers, [ALICE])
        found = {key.port: each.policy for key, each in made.access.items() if key.source == OUTSIDERS}
        assert made.excludes == bool(found)
        return found

    assert excluded(rules(RuleAction.ALLOW, IS_ALICE)) == {80: "", 53: ""}
    assert excluded(rules(RuleAction.DENY, PortCheck(53, 53))) == {53: "the-policy"}
    assert excluded(rules(RuleAction.DENY, IS_ALICE)) == {}
    somewhere = AddressCheck(Place.PEER, parse_address("10.0.0.0"), 104)
    assert excluded(rules(RuleAction.ALLOW, somewhere)) == {80: "", 53: ""}


def range_of(text: str) -> AddressCheck:
    address, _, bits = text.partition("/")
    return AddressCheck(Place.PEER, parse_address(address), int(bits) + (96 if "." in text else 0))


def test_outsiders_are_told_apart_by_where_they_come_from() -> None:
    within = AllOf((range_of("10.0.0.0/8"), Not(AnyOf((range_of("10.1.0.0/16"), range_of("10.2.3.4/32"))))))
    other = AnyOf((within, range_of("10.1.7.0/24"), range_of("fd00:1::/32"), IS_ALICE))
    receivers = [Receiver((HERE, V6), rules(RuleAction.ALLOW, other), (53,))]
    made = DatagramPlanner(identities=True).plan(receivers, [ALICE])

    def lets_in(source: str) -> bool:
        address = parse_address(source)
        return made.lets_in(made.classes[HERE if "." in source else V6], 53, address)

    assert lets_in("10.9.9.9")
    assert not lets_in("11.0.0.1")
    assert not lets_in("10.1.0.1")
    assert lets_in("10.1.7.255")
    assert not lets_in("10.2.3.4")
    assert lets_in("10.2.3.5")
    assert lets_in("fd00:1::9")
    assert not lets_in("fd00:2::9")
    assert made.lets_in(made.classes[HERE], 54, parse_address("11.0.0.1")), "no service leads there"


def test_outsiders_get_in_nowhere_by_what_cannot_be_said() -> None:
    sni = TextCheck(Attribute.SNI, MatchKind.EXACT, "a")
    for asked in (rules(RuleAction.DENY, sni), rules(RuleAction.ALLOW, AnyOf((sni, IS_ALICE)))):
        made = DatagramPlanner(identities=True).plan([Receiver((HERE,), asked, (53,))], [ALICE])
        assert not made.lets_in(made.classes[HERE], 53, parse_address("192.0.2.1"))
    many = AnyOf(tuple(range_of(f"10.{n >> 8}.{n & 255}.0/24") for n in range(MAX_PREFIXES)))
    made = DatagramPlanner(identities=True).plan(
        [Receiver((HERE,), rules(RuleAction.ALLOW, many), (53,))], [ALICE]
    )
    assert not made.lets_in(made.classes[HERE], 53, parse_address("10.0.0.1"))


def test_prefixes_say_what_the_rules_say_of_each_address() -> None:
    """Of random rules, against the rules themselves."""
    rng = random.Random(11)
    for _ in range(60):
        checks = [
            range_of(f"10.0.{rng.randrange(4)}.{rng.randrange(256)}/{rng.randrange(20, 33)}")
            for _ in range(8)
        ]
        check = AnyOf(tuple(Not(each) if rng.random() < 0.3 else each for each in rng.sample(checks, 4)))
        asked = (
            *rules(RuleAction.DENY, AllOf(tuple(rng.sample(checks, 2)))),
            *rules(RuleAction.ALLOW, check),
        )
        found = judge_outsiders(asked, v4=True, targets=(HERE,), port=53)
        for _ in range(50):
            address = parse_address(f"10.0.{rng.randrange(6)}.{rng.randrange(256)}")
            assert verdict_on(found, address) == judge(asked, Peer("", (address,)), Target((HERE,), 53))
