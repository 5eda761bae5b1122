"""L4 authorization: which resources hold for a workload, and what they let in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf import json_format
from harness.checks import Asked, admits

from nodeagent.compiler.authorization import AuthorizationIndex
from nodeagent.proto import authorization_pb2
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.policies import Rules

ALICE = "spiffe://cluster.local/ns/shop/sa/alice"
BOB = "spiffe://old.example/ns/shop/sa/bob"
STRICT = "istio-system/istio_converted_static_strict"


def policy(name: str = "p", namespace: str = "shop", scope: str = "NAMESPACE", **fields: Any) -> Any:
    """A resource from its JSON mapping; `matches`: one rule with one clause of these."""
    matches = fields.pop("matches", None)
    if matches is not None:
        fields["rules"] = [{"clauses": [{"matches": matches}]}]
    data = {"name": name, "namespace": namespace, "scope": scope, **fields}
    return json_format.ParseDict(data, authorization_pb2.Authorization())


def packed(address: str, length: int) -> dict[str, Any]:
    raw = parse_address(address)
    import base64

    return {"address": base64.b64encode(raw[12:] if "." in address else raw).decode(), "length": length}


def allows(match: Mapping[str, Any], asked: Asked) -> bool:
    index = AuthorizationIndex()
    index.put("shop/p", policy(matches=[match]))
    return admits(index.rules_for("shop", (), l4_only=True), asked)


PLAIN = Asked()
BY_ALICE = Asked(ALICE)


@pytest.mark.parametrize(
    ("match", "asked", "verdict"),
    [
        ({"principals": [{"exact": "cluster.local/ns/shop/sa/alice"}]}, BY_ALICE, True),
        ({"principals": [{"exact": "spiffe://cluster.local/ns/shop/sa/alice"}]}, BY_ALICE, False),
        ({"principals": [{"exact": "cluster.local/ns/shop/sa/alic"}]}, BY_ALICE, False),
        ({"principals": [{"prefix": "cluster.local/ns/shop/"}]}, BY_ALICE, True),
        ({"principals": [{"prefix": "luster.local"}]}, BY_ALICE, False),
        ({"principals": [{"suffix": "/sa/alice"}]}, BY_ALICE, True),
        ({"principals": [{"presence": {}}]}, BY_ALICE, True),
        ({"principals": [{"presence": {}}]}, PLAIN, False),
        ({"principals": [{"suffix": ""}]}, PLAIN, False),
        ({"notPrincipals": [{"exact": "cluster.local/ns/shop/sa/alice"}]}, BY_ALICE, False),
        ({"notPrincipals": [{"exact": "cluster.local/ns/shop/sa/alice"}]}, Asked(BOB), True),
        ({"notPrincipals": [{"presence": {}}]}, PLAIN, True),
        ({"namespaces": [{"exact": "shop"}]}, BY_ALICE, True),
        ({"namespaces": [{"exact": "sho"}]}, BY_ALICE, False),
        ({"namespaces": [{"prefix": "sh"}, {"exact": "x"}]}, BY_ALICE, True),
        ({"namespaces": [{"exact": "shop"}]}, PLAIN, False),
        ({"notNamespaces": [{"exact": "shop"}]}, PLAIN, True),
        ({"serviceAccounts": [{"namespace": "shop", "serviceAccount": "alice"}]}, BY_ALICE, True),
        ({"serviceAccounts": [{"namespace": "shop", "serviceAccount": "bob"}]}, Asked(BOB), True),
        ({"serviceAccounts": [{"namespace": "other", "serviceAccount": "alice"}]}, BY_ALICE, False),
        ({"notServiceAccounts": [{"namespace": "shop", "serviceAccount": "alice"}]}, PLAIN, True),
        ({"sourceIps": [packed("10.244.0.0", 16)]}, PLAIN, True),
        ({"sourceIps": [packed("10.244.77.1", 16)]}, PLAIN, True),  # host bits do not count
        ({"sourceIps": [packed("10.245.0.0", 16)]}, PLAIN, False),
        ({"sourceIps": [packed("fd00::", 8)]}, Asked(source="fd00::7"), True),
        ({"sourceIps": [packed("fd00::", 8)]}, PLAIN, False),
        ({"notSourceIps": [packed("0.0.0.0", 0)]}, PLAIN, False),
        ({"destinationIps": [packed("10.244.0.9", 32)]}, PLAIN, True),
        ({"destinationPorts": [8080, 9090]}, PLAIN, True),
        ({"destinationPorts": [9090]}, PLAIN, False),
        ({"destinationPorts": [0]}, PLAIN, False),  # nothing is sent to it, and yet it may be named
        ({"notDestinationPorts": [8080]}, PLAIN, False),
        # Kinds of one match: all of them.
        ({"namespaces": [{"exact": "shop"}], "destinationPorts": [9090]}, BY_ALICE, False),
        ({"namespaces": [{"exact": "shop"}], "destinationPorts": [8080]}, BY_ALICE, True),
        ({"principals": [{"presence": {}}], "notNamespaces": [{"exact": "shop"}]}, BY_ALICE, False),
        # A match without any condition never matches.
        ({}, BY_ALICE, False),
    ],
)
def test_a_match(match: Mapping[str, Any], asked: Asked, verdict: bool) -> None:
    assert allows(match, asked) is verdict


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ([], False),  # a policy without rules matches nothing
        ([{}], True),  # a rule without clauses everything
        ([{"clauses": [{}]}], True),  # and so does a clause without matches
        ([{"clauses": [{"matches": [{}]}]}], False),
        ([{"clauses": [{"matches": [{"destinationPorts": [1]}]}]}, {"clauses": []}], True),
        ([{"clauses": [{"matches": [{"destinationPorts": [1]}, {"destinationPorts": [8080]}]}]}], True),
        (
            [
                {
                    "clauses": [
                        {"matches": [{"destinationPorts": [8080]}]},
                        {"matches": [{"namespaces": [{"exact": "shop"}]}]},
                    ]
                }
            ],
            False,
        ),
    ],
)
def test_rules_clauses_and_matches_nest_as_in_istio(rules: list[Any], allowed: bool) -> None:
    index = AuthorizationIndex()
    index.put("shop/p", policy(rules=rules))
    assert admits(index.rules_for("shop", (), l4_only=True), PLAIN) is allowed


class TestWhichHold:
    def rules(self, index: AuthorizationIndex, *listed: str, l4_only: bool = True) -> tuple[Rules, ...]:
        return index.rules_for("shop", listed, l4_only=l4_only)

    def test_without_any_policy_everything_passes(self) -> None:
        assert self.rules(AuthorizationIndex()) == ()

    def test_listed_ones_and_those_of_the_namespace_and_of_the_mesh(self) -> None:
        index = AuthorizationIndex()
        for name, namespace, scope in (
            ("here", "shop", "NAMESPACE"),
            ("there", "bank", "NAMESPACE"),
            ("all", "istio-system", "GLOBAL"),
            ("mine", "shop", "WORKLOAD_SELECTOR"),
            ("others", "shop", "WORKLOAD_SELECTOR"),
        ):
            index.put(f"{namespace}/{name}", policy(name, namespace, scope))
        holding = index.holding_for("shop", ("shop/mine", "shop/gone"), l4_only=True)
        assert sorted(entry.name for entry in holding) == ["istio-system/all", "shop/here", "shop/mine"]

    def test_a_denial_comes_before_any_allowance(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/a", policy("a", rules=[{}]))
        assert admits(self.rules(index), PLAIN)
        index.put("shop/d", policy("d", action="DENY", matches=[{"destinationPorts": [8080]}]))
        assert not admits(self.rules(index), PLAIN)
        assert admits(self.rules(index), Asked(port=9090))
        index.remove("shop/d")
        assert admits(self.rules(index), PLAIN)

    def test_one_of_several_allowances_is_enough(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/none", policy("none"))
        index.put("shop/ports", policy("ports", matches=[{"destinationPorts": [8080]}]))
        assert admits(self.rules(index), PLAIN)
        assert not admits(self.rules(index), Asked(port=9090))

    def test_a_dry_run_is_told_but_decides_nothing(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/d", policy("d", action="DENY", rules=[{}], dryRun=True))
        index.put("shop/a", policy("a", dryRun=True))
        stages = self.rules(index)
        assert [(stage.action.name, stage.shadow) for stage in stages] == [("DENY", True), ("ALLOW", True)]
        assert admits(stages, PLAIN)

    def test_policies_are_named_by_rule(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/p", policy(rules=[{}, {}]))
        (stage,) = self.rules(index)
        assert [each.name for each in stage.policies] == [
            "ns[shop]-policy[p]-rule[0]",
            "ns[shop]-policy[p]-rule[1]",
        ]

    def test_beside_the_filters_of_a_listener_only_peer_authentication_is_asked(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/lock", policy("lock"))
        strict = policy(
            "istio_converted_static_strict",
            "istio-system",
            "WORKLOAD_SELECTOR",
            action="DENY",
            matches=[{"notPrincipals": [{"presence": {}}]}],
        )
        index.put(STRICT, strict)
        index.put(
            "shop/converted_peer_authentication_db", policy("converted_peer_authentication_db", action="DENY")
        )
        stages = self.rules(index, STRICT, l4_only=False)
        assert admits(stages, BY_ALICE)
        assert not admits(stages, PLAIN)
        assert not admits(self.rules(index, STRICT), BY_ALICE), "the lock is asked, too"
        assert admits(self.rules(index, l4_only=False), PLAIN), "strict only for those that list it"


class TestUnreadable:
    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"scope": 7}, "scope 7 is not known"),
            ({"action": 5}, "action 5 is not known"),
            ({"namespace": ""}, "is for a namespace, and names none"),
            ({"matches": [{"principals": [{}]}]}, "says neither exact, prefix, suffix nor presence"),
            ({"matches": [{"sourceIps": [{"address": "AAA="}]}]}, "an address has 4 or 16 bytes, not 2"),
            ({"matches": [{"sourceIps": [packed("10.0.0.0", 33)]}]}, "prefix length 33 is over 32"),
            ({"matches": [{"notDestinationPorts": [65536]}]}, "65536 is no port"),
            ({"matches": [{"extensions": [{"name": "sun"}]}]}, "extension 'sun' is not known"),
        ],
    )
    def test_the_reason_names_the_place(self, fields: dict[str, Any], error: str) -> None:
        with pytest.raises(ValueError, match=error.replace("[", r"\[")) as caught:
            AuthorizationIndex().put("shop/p", policy(**fields))
        if "matches" in fields:
            assert "rules[0].clauses[0].matches[0]" in str(caught.value)

    @pytest.mark.parametrize("l4_only", [True, False])
    def test_whom_it_may_be_for_is_denied_everything(self, l4_only: bool) -> None:
        index = AuthorizationIndex()
        index.refuse("shop/p", "cannot be decoded")
        for namespace, listed, verdict in (
            ("shop", (), False),
            ("bank", ("shop/p",), False),
            ("bank", (), True),
        ):
            stages = index.rules_for(namespace, listed, l4_only=l4_only)
            assert admits(stages, BY_ALICE) is verdict

    def test_the_version_before_stays(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/p", policy(matches=[{"destinationPorts": [8080]}]))
        index.refuse("shop/p", "cannot be decoded")
        stages = index.rules_for("shop", (), l4_only=True)
        assert admits(stages, PLAIN)
        assert not admits(stages, Asked(port=1))

    def test_a_good_version_ends_it(self) -> None:
        index = AuthorizationIndex()
        index.refuse("shop/p", "cannot be decoded")
        index.put("shop/p", policy(rules=[{}]))
        assert admits(index.rules_for("shop", (), l4_only=True), PLAIN)


class TestScale:
    def test_a_workload_is_not_asked_about_the_policies_of_others(self) -> None:
        index = AuthorizationIndex()
        for number in range(5000):
            index.put(f"n{number}/p", policy("p", f"n{number}", rules=[{}]))
        index.put("shop/p", policy())
        started = time.perf_counter()
        for _ in range(200):
            assert len(list(index.holding_for("shop", (), l4_only=True))) == 1
        assert time.perf_counter() - started < 0.5

    def test_workloads_alike_share_their_rules(self) -> None:
        index = AuthorizationIndex()
        index.put("shop/p", policy())
        first = index.rules_for("shop", ("shop/x",), l4_only=True)
        assert index.rules_for("shop", ["shop/x"], l4_only=True) is first
        index.put("shop/q", policy("q", rules=[{}]))
        assert len(index.rules_for("shop", ("shop/x",), l4_only=True)[0].policies) == 1

    def test_a_policy_may_change_whom_it_is_for(self) -> None:
        index = AuthorizationIndex()
        for scope, elsewhere, listing in (
            ("GLOBAL", True, True),
            ("NAMESPACE", False, True),
            ("WORKLOAD_SELECTOR", False, True),
            ("NAMESPACE", False, True),
        ):
            index.put("shop/p", policy(scope=scope))
            assert bool(index.rules_for("bank", (), l4_only=True)) is elsewhere
            assert bool(index.rules_for("bank", ("shop/p",), l4_only=True)) is listing
        index.remove("shop/p")
        assert index.rules_for("shop", ("shop/p",), l4_only=True) == ()
