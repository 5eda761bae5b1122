"""Connections past the engine get the names that the engine would have found."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import pytest

from nodeagent.dataplane.access import AccessAnswer, AccessQuestion, AccessStep, Step
from nodeagent.dataplane.flow_names import FlowNamer, FlowNames, FlowQuestion
from nodeagent.errors import EngineError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import (
    Cluster,
    Destination,
    DestinationNeeded,
    Endpoint,
    Need,
    Protocol,
    Snapshot,
    Tunnel,
    View,
    WeightedCluster,
)

LIFE = 7
CLIENT, SERVER, VIP = map(parse_address, ("10.0.0.1", "10.0.0.2", "10.96.0.1"))
NETNS = 1000
CALLERS = "ns[default]-policy[callers]-rule[0]"


@dataclass
class Enrolled:
    """A workload of the node."""

    uid: str
    number: int
    view: str = "default"
    identity: str = ""


@dataclass
class Node:
    """Who is here, and what guards say."""

    client: Enrolled | None = field(
        default_factory=lambda: Enrolled("client", 11, identity="spiffe://td/ns/a/sa/client")
    )
    server: Enrolled | None = field(
        default_factory=lambda: Enrolled("server", 12, identity="spiffe://td/ns/a/sa/server")
    )
    answer: AccessAnswer | None = field(default_factory=lambda: AccessAnswer((), True))
    asked: list[AccessQuestion] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    life: int = LIFE

    def workload_of(self, cookie: int) -> Enrolled | None:
        return self.client if cookie == NETNS else None

    def workload_at(self, address: bytes) -> Enrolled | None:
        return self.server if address == SERVER else None

    def policy(self, number: int) -> str:
        return {0: "", 4: "ns[default]-policy[no one]-rule[0]"}[number]

    def explain(self, uid: str, question: AccessQuestion) -> AccessAnswer:
        assert uid == "server"
        self.asked.append(question)
        if self.answer is None:
            raise EngineError("not in force")
        return self.answer


ENDPOINT = Endpoint(SERVER, 9000, tunnel=Tunnel(("spiffe://td/ns/a/sa/server",)))
VIEW = View(
    "default",
    clusters={"default/c": Cluster("default/c", "c")},
    endpoints={"default/c": (Endpoint(CLIENT, 9000), ENDPOINT)},
    destinations={(VIP, 80): Destination(VIP, 80, Protocol.TCP, clusters=(WeightedCluster("default/c"),))},
)
TAGS: dict[Hashable, int] = {
    ("destination", "default", (VIP, 80)): 20,
    ("cluster", "default/c"): 21,
    ("endpoint", "default/c", SERVER, 9000, None): 22,
    ("inbound", "server", 9000): 23,
}
QUESTION = FlowQuestion(
    source=CLIENT,
    destination=SERVER,
    asked=VIP,
    netns_cookie=NETNS,
    life=LIFE,
    source_workload=11,
    destination_workload=12,
    service=3,
    denied=False,
    policy=0,
    destination_port=9000,
    asked_port=80,
)


@pytest.fixture
def node() -> Node:
    return Node()


def _answer(node: Node, question: FlowQuestion = QUESTION, view: View = VIEW) -> FlowNames:
    snapshot = Snapshot(views={"default": view})
    namer = FlowNamer(node, lambda: snapshot, lambda key: TAGS.get(key, 0), node.explain, node.needs.append)
    return namer.answer(question)


def test_all_that_the_engine_would_have_found(node: Node) -> None:
    assert _answer(node) == FlowNames(
        source=11,
        destination=12,
        asked_tag=20,
        cluster_tag=21,
        endpoint_tag=22,
        inbound_tag=23,
        source_principal="spiffe://td/ns/a/sa/client",
        destination_principal="spiffe://td/ns/a/sa/server",
    )
    [asked] = node.asked
    assert (asked.port, asked.source, asked.destination) == (9000, CLIENT, SERVER)
    assert asked.principal == "spiffe://td/ns/a/sa/client"
    assert asked.method is None


def test_an_endpoint_without_a_tunnel_is_plaintext(node: Node) -> None:
    plain = replace(VIEW, endpoints={"default/c": (replace(ENDPOINT, tunnel=None),)})
    found = _answer(node, view=plain)
    assert (found.source_principal, found.destination_principal) == ("", "")
    assert node.asked[0].principal == ""


def test_policies_that_allow_are_the_first_of_each_stage(node: Node) -> None:
    node.answer = AccessAnswer(
        (
            AccessStep(Step.STAGE, ("deny",)),
            AccessStep(Step.POLICY, ("never", "not matched")),
            AccessStep(Step.STAGE, ("shadow allow",)),
            AccessStep(Step.POLICY, ("dry", "matched")),
            AccessStep(Step.STAGE, ("allow",)),
            AccessStep(Step.POLICY, ("other", "not matched")),
            AccessStep(Step.POLICY, (CALLERS, "matched")),
            AccessStep(Step.POLICY, ("later", "matched")),
            AccessStep(Step.VERDICT, ("allowed",)),
        ),
        True,
    )
    assert _answer(node).policies == (CALLERS,)


def test_a_denial_has_the_policys_name_and_envoys_words(node: Node) -> None:
    found = _answer(node, replace(QUESTION, denied=True, policy=4))
    assert found.policy == "ns[default]-policy[no one]-rule[0]"
    assert found.detail == "rbac_access_denied_matched_policy[ns[default]-policy[no_one]-rule[0]]"
    found = _answer(node, replace(QUESTION, denied=True))
    assert (found.policy, found.detail) == ("", "rbac_access_denied_matched_policy[none]")
    assert not node.asked, "policy may be another one by now"


def test_a_denial_of_an_earlier_life_is_explained_by_what_is_in_force(node: Node) -> None:
    node.answer = AccessAnswer((), False, 403, "rbac_access_denied_matched_policy[none]")
    found = _answer(node, replace(QUESTION, life=LIFE - 1, denied=True, policy=99))
    assert found.detail == "rbac_access_denied_matched_policy[none]"
    assert not _answer(node, replace(QUESTION, life=LIFE - 1)).detail, "it was allowed then"


def test_an_earlier_lifes_numbers_are_not_taken_for_ours(node: Node) -> None:
    earlier = replace(QUESTION, life=LIFE - 1, source_workload=98, destination_workload=99)
    assert _answer(node, earlier) == _answer(node)
    node.client = node.server = None
    found = _answer(node, earlier)
    assert (found.source, found.destination) == (0, 0)
    found = _answer(node)
    assert (found.source, found.destination) == (11, 12), "who has left meanwhile is still told of"
    assert found.cluster_tag == 0


def test_what_is_gone_is_left_out(node: Node) -> None:
    node.answer = None
    found = _answer(node, view=View("default"))
    assert (found.asked_tag, found.cluster_tag, found.endpoint_tag, found.inbound_tag) == (0, 0, 0, 23)
    assert found.policies == ()
    assert found.source_principal, "both have an identity, and what the endpoint was nobody knows"


def test_what_an_earlier_life_was_asked_for_is_asked_for(node: Node) -> None:
    _answer(node, view=View("default"))
    assert not node.needs, "it may have gone a moment ago"
    _answer(node, replace(QUESTION, life=LIFE - 1), View("default"))
    assert node.needs == [DestinationNeeded("client", "default", VIP, 80)]


def test_a_revoked_connection_ends_for_what_guards_say(node: Node) -> None:
    namer = FlowNamer(node, Snapshot, lambda key: 0, node.explain, node.needs.append)
    node.answer = AccessAnswer((), False, 403, "rbac_access_denied_matched_policy[none]")
    assert namer.denial(QUESTION) == "rbac_access_denied_matched_policy[none]"
    node.answer = None
    assert namer.denial(QUESTION) == ""
    node.server = None
    assert namer.denial(QUESTION) == ""
