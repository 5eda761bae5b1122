"""Bypass on a node by real maps: the programs learn who is where before anybody is sent there, and people why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness import require

from nodeagent.dataplane.bpf import BpfObject
from nodeagent.dataplane.bypass_layout import NO_BYPASS, Life
from nodeagent.dataplane.bypass_maps import BypassMaps
from nodeagent.dataplane.bypass_services import LocalWorkload, Place
from nodeagent.dataplane.node_bypass import NodeBypass
from nodeagent.errors import BpfError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import Attribute, Callout, Guards, Policy, RuleAction, Rules, TextCheck
from nodeagent.snapshot.values import (
    ApplicationTunnel,
    Cluster,
    Destination,
    Endpoint,
    Inbound,
    InboundPort,
    Protocol,
    Snapshot,
    Tunnel,
    TunnelKind,
    View,
    WeightedCluster,
)

ASKED = (parse_address("10.96.0.1"), 80)


def spiffe(name: str) -> str:
    return f"spiffe://mesh.local/ns/default/sa/{name}"


def workload(number: int, name: str) -> LocalWorkload:
    return LocalWorkload(name, number, "v", (parse_address(f"10.0.0.{number}"),), 1000 + number, spiffe(name))


WEB, DB = workload(1, "web"), workload(2, "db")
AT_DB = Endpoint(DB.addresses[0], 9000, tunnel=Tunnel((DB.identity,)))
ELSEWHERE = Endpoint(parse_address("10.9.0.1"), 9000, tunnel=Tunnel((spiffe("far"),)))
OPEN_TCP = Inbound(fallback=Protocol.TCP)


class Node:
    """A node with real maps, which writes down who was named where."""

    def __init__(self, maps: BypassMaps) -> None:
        self.maps = maps
        self.named: list[tuple[int, int]] = []
        self.local: dict[str, Mapping[Place, int]] = {}
        self.refusing = False
        self.bypass = NodeBypass(
            cast(
                Any,
                SimpleNamespace(
                    bypass_maps=lambda: maps, count_full=lambda *_: None, name_namespace=self._name
                ),
            ),
            self.local.__setitem__,
            identities=True,
        )

    def _name(self, cookie: int, life: int, number: int) -> None:
        if self.refusing:
            raise BpfError("nothing is pinned there")
        assert life == self.bypass.life
        self.named.append((cookie, number))

    def put(
        self,
        *endpoints: Endpoint,
        inbound: Inbound | None = OPEN_TCP,
        protocol: Protocol = Protocol.TCP,
        here: tuple[LocalWorkload, ...] = (WEB, DB),
    ) -> bool:
        destination = Destination(*ASKED, protocol, clusters=(WeightedCluster("v/c"),))
        view = View("v", {"v/c": Cluster("v/c", "c")}, {"v/c": endpoints}, {}, {ASKED: destination})
        given = Snapshot(views={"v": view}, inbound={} if inbound is None else {"db": inbound})
        return self.bypass.update(given, [(each, cast(Any, None)) for each in here], ())

    def explain(self) -> list[str]:
        return list(self.bypass.explain("web", ASKED))


@pytest.fixture
def node() -> Iterator[Node]:
    require("root", "engine")
    with BpfObject("outbound") as outbound:
        maps = BypassMaps.of(outbound)
    yield Node(maps)
    maps.close()


def test_who_is_where_is_known_first(node: Node) -> None:
    assert node.put(AT_DB)
    assert node.named == [(WEB.cookie, 1), (DB.cookie, 2)]
    node.put(AT_DB)
    node.put(AT_DB, here=(WEB, replace(DB, number=3)))
    assert node.named[2:] == [(DB.cookie, 3)]
    assert node.maps.life.get(bytes(4)) == Life(node.bypass.life).pack()


def test_the_engine_knows_what_may_be_drawn(node: Node) -> None:
    node.put(AT_DB, ELSEWHERE)
    assert node.local == {"v/c": {(DB.addresses[0], 9000): DB.number}}
    node.local.clear()
    node.put(AT_DB, ELSEWHERE, Endpoint(WEB.addresses[0], 9000))
    assert node.local == {"v/c": {(DB.addresses[0], 9000): DB.number}}, "no tunnel, no identity"


def test_who_cannot_be_named_takes_no_part(node: Node) -> None:
    node.refusing = True
    node.put(AT_DB)
    assert node.bypass.state().counts.services == 0
    node.refusing = False
    node.put(AT_DB)
    assert node.bypass.state().counts.services == 1


def test_after_a_defect_all_begins_anew(node: Node) -> None:
    node.put(AT_DB)
    node.bypass.suspend("a defect")
    assert node.bypass.state().error == "a defect"
    assert node.maps.life.get(bytes(4)) == Life(NO_BYPASS).pack()
    assert node.explain() == ["through the engine: the client is not captured yet"]
    node.put(AT_DB)
    assert node.bypass.state().error == ""
    assert node.maps.services.count() == node.maps.backends.count() == node.maps.access.count() == 1
    assert node.maps.life.get(bytes(4)) == Life(node.bypass.life).pack()


def guarded(*stages: Rules | Callout, protocol: Protocol = Protocol.TCP) -> Inbound:
    return Inbound((InboundPort(9000, protocol, guards=Guards(stages)),))


SNI = TextCheck(Attribute.SNI, MatchKind.PRESENT)


@pytest.mark.parametrize(
    ("endpoints", "inbound", "line"),
    [
        ((AT_DB,), OPEN_TCP, "10.0.0.2:9000 past the engine, on this node: allowed"),
        (
            (AT_DB,),
            guarded(Rules(RuleAction.ALLOW, ())),
            "10.0.0.2:9000 refused at connect(): rbac_access_denied_matched_policy[none]",
        ),
        ((ELSEWHERE,), OPEN_TCP, "through the engine: no endpoint is on this node"),
        ((replace(AT_DB, tunnel=None),), OPEN_TCP, "it is reached in plaintext, without an identity"),
        (
            (replace(AT_DB, tunnel=Tunnel((DB.identity,), address=ELSEWHERE.address)),),
            OPEN_TCP,
            "it is reached through a waypoint or gateway",
        ),
        (
            (replace(AT_DB, tunnel=Tunnel((DB.identity,), kind=TunnelKind.MTLS)),),
            OPEN_TCP,
            "it takes mutual TLS itself",
        ),
        ((replace(AT_DB, port=15006),), OPEN_TCP, "its port is the agent's"),
        (
            (AT_DB, replace(ELSEWHERE, weight=100_000)),
            OPEN_TCP,
            "the choice among the endpoints is not an even one",
        ),
        ((AT_DB,), None, "the server's guards are not in force"),
        ((AT_DB,), guarded(protocol=Protocol.HTTP), "port 9000 speaks HTTP"),
        ((AT_DB,), guarded(Callout("c", grpc=True)), "an authorization service is asked"),
        (
            (AT_DB,),
            guarded(Rules(RuleAction.DENY, (), shadow=True)),
            "a policy is on trial (dry run)",
        ),
        (
            (AT_DB,),
            guarded(Rules(RuleAction.DENY, (Policy("p", SNI),))),
            "policy depends on what only shows there",
        ),
        (
            (AT_DB,),
            Inbound(fallback=Protocol.TCP, tunnel=ApplicationTunnel()),
            "the application is told of its peers by PROXY headers",
        ),
        (
            (Endpoint(WEB.addresses[0], 9000, tunnel=Tunnel((WEB.identity,))),),
            OPEN_TCP,
            "a workload reaches itself",
        ),
    ],
)
def test_people_are_told_why(
    node: Node, endpoints: tuple[Endpoint, ...], inbound: Inbound | None, line: str
) -> None:
    node.put(*endpoints, inbound=inbound)
    (found,) = node.explain()
    assert line in found
    assert ("through the engine" in found) == ("allowed" not in line and "refused" not in line)


def test_certificates_and_protocols_are_reasons(node: Node) -> None:
    node.put(AT_DB, protocol=Protocol.HTTP)
    assert node.explain() == ["through the engine: it speaks HTTP"]
    node.put(AT_DB, here=(replace(WEB, in_force=False), DB))
    assert node.explain() == ["through the engine: the client has no certificate in force"]
    node.put(AT_DB, here=(WEB, replace(DB, in_force=False)))
    assert node.explain() == ["10.0.0.2:9000 through the engine: the server has no certificate in force"]
