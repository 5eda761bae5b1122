"""What a connection past the engine is to statistics and access log: workloads, service, endpoint and policies, as the
engine would have found them if it had carried the connection."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from nodeagent.dataplane.access import AccessAnswer, AccessQuestion, Step
from nodeagent.dataplane.bypass_layout import Access, Ends, Flow
from nodeagent.dataplane.bypass_verdict import Verdict
from nodeagent.errors import EngineError
from nodeagent.snapshot.values import DestinationNeeded, Endpoint, Need, Snapshot, View


class FlowWorkload(Protocol):
    """An enrolled workload (bypass_services.LocalWorkload)."""

    @property
    def uid(self) -> str:
        """Of its enrolment."""

    @property
    def number(self) -> int:
        """The engine's."""

    @property
    def view(self) -> str:
        """Whose services it sees."""

    @property
    def identity(self) -> str:
        """Its SPIFFE ID; "" without a CA."""


class FlowDirectory(Protocol):
    """Who and what is behind the numbers in events."""

    @property
    def life(self) -> int:
        """Of this agent."""

    def workload_of(self, cookie: int) -> FlowWorkload | None:
        """Whose namespace it is."""

    def workload_at(self, address: bytes) -> FlowWorkload | None:
        """Who is connected to at an address."""

    def policy(self, number: int) -> str:
        """The name of a denying policy; "" for none."""


@dataclass(frozen=True, slots=True)
class FlowQuestion:
    """na_flow_question."""

    source: bytes
    destination: bytes
    asked: bytes
    netns_cookie: int
    life: int
    source_workload: int
    destination_workload: int
    service: int
    denied: bool
    policy: int
    destination_port: int
    asked_port: int

    @classmethod
    def of(cls, ends: Ends, flow: Flow) -> FlowQuestion:
        """That about a live connection."""
        return cls(
            source=ends.source,
            destination=ends.destination,
            asked=flow.asked,
            netns_cookie=flow.netns_cookie,
            life=flow.life,
            source_workload=flow.source,
            destination_workload=flow.destination,
            service=flow.service,
            denied=False,
            policy=0,
            destination_port=ends.destination_port,
            asked_port=flow.asked_port,
        )


@dataclass(frozen=True, slots=True)
class FlowNames:
    """na_flow_names."""

    source: int = 0
    destination: int = 0
    asked_tag: int = 0
    cluster_tag: int = 0
    endpoint_tag: int = 0
    inbound_tag: int = 0
    source_principal: str = ""
    destination_principal: str = ""
    policies: tuple[str, ...] = ()
    policy: str = ""
    detail: str = ""


class FlowNamer:
    """Answers questions. It goes by what is in force now, a moment after the connection began; numbers of workloads and
    services mean something only in the life that gave them out, so that all is found by namespaces and addresses."""

    def __init__(
        self,
        directory: FlowDirectory,
        snapshot: Callable[[], Snapshot],
        tag_of: Callable[[Hashable], int],
        explain: Callable[[str, AccessQuestion], AccessAnswer],
        need: Callable[[Need], None],
    ) -> None:
        """The rest is the engine owner's: what is in force, its numbers (builder.py), its guards, and whom it tells of
        what is missing."""
        self._directory = directory
        self._snapshot = snapshot
        self._tag_of = tag_of
        self._explain = explain
        self._need = need

    def answer(self, question: FlowQuestion) -> FlowNames:
        """What there is to say."""
        source = self._directory.workload_of(question.netns_cookie)
        destination = self._directory.workload_at(question.destination)
        view = self._snapshot().views.get(source.view) if source is not None else None
        asked = view.destinations.get((question.asked, question.asked_port)) if view is not None else None
        if asked is None and source is not None and question.life != self._directory.life:
            # Configured on demand, and no connection has asked this agent for it.
            self._need(DestinationNeeded(source.uid, source.view, question.asked, question.asked_port))
        cluster = asked.clusters[0].cluster if asked is not None and asked.clusters else ""
        endpoint = _endpoint(view, cluster, question)
        principals = _principals(source, destination, endpoint)
        policies, policy, detail = self._decision(question, destination, principals[0])
        is_ours = question.life == self._directory.life
        return FlowNames(
            source=source.number if source is not None else question.source_workload * is_ours,
            destination=destination.number
            if destination is not None
            else question.destination_workload * is_ours,
            asked_tag=self._tag_of(("destination", view.name, asked.key)) if view and asked else 0,
            cluster_tag=self._tag_of(("cluster", cluster)),
            endpoint_tag=self._endpoint_tag(cluster, endpoint),
            inbound_tag=self._inbound_tag(destination, question.destination_port),
            source_principal=principals[0],
            destination_principal=principals[1],
            policies=policies,
            policy=policy,
            detail=detail,
        )

    def denial(self, question: FlowQuestion) -> str:
        """Why such a connection is refused at present (%CONNECTION_TERMINATION_DETAILS%); "" if policy allows it."""
        source = self._directory.workload_of(question.netns_cookie)
        destination = self._directory.workload_at(question.destination)
        answer = self._ask(question, destination, _principals(source, destination, None)[0])
        return answer.detail if answer is not None else ""

    def _endpoint_tag(self, cluster: str, endpoint: Endpoint | None) -> int:
        if endpoint is None:
            return 0
        return self._tag_of(("endpoint", cluster, endpoint.address, endpoint.port, endpoint.workload))

    def _inbound_tag(self, destination: FlowWorkload | None, port: int) -> int:
        return self._tag_of(("inbound", destination.uid, port)) if destination is not None else 0

    # -- policies --

    def _decision(
        self, question: FlowQuestion, destination: FlowWorkload | None, principal: str
    ) -> tuple[tuple[str, ...], str, str]:
        """Policies that allow, the one that denies, and the words for that."""
        if question.denied and question.life == self._directory.life:
            policy = self._directory.policy(question.policy)
            return (), policy, Verdict(Access.DENY, policy).detail
        answer = self._ask(question, destination, principal)
        if answer is None or not answer.allowed:
            return (), "", answer.detail if answer is not None and question.denied else ""
        return _allowing(answer), "", ""

    def _ask(
        self, question: FlowQuestion, destination: FlowWorkload | None, principal: str
    ) -> AccessAnswer | None:
        if destination is None:
            return None
        asked = AccessQuestion(
            port=question.destination_port,
            source=question.source,
            destination=question.destination,
            principal=principal,
        )
        try:
            return self._explain(destination.uid, asked)
        except EngineError:
            return None  # its inbound configuration is not in force any more


def _endpoint(view: View | None, cluster: str, question: FlowQuestion) -> Endpoint | None:
    endpoints = view.endpoints.get(cluster, ()) if view is not None else ()
    place = question.destination, question.destination_port
    return next((each for each in endpoints if (each.address, each.port) == place), None)


def _principals(
    source: FlowWorkload | None, destination: FlowWorkload | None, endpoint: Endpoint | None
) -> tuple[str, str]:
    """Of both, or of none: they prove who they are to each other, or are plaintext to the mesh."""
    own, other = (each.identity if each is not None else "" for each in (source, destination))
    if not own or not other or (endpoint is not None and endpoint.tunnel is None):
        return "", ""
    return own, other


def _allowing(answer: AccessAnswer) -> tuple[str, ...]:
    """The first policy that matched of each stage that allows; those that deny have none that matched."""
    found: list[str] = []
    is_open = False
    for step in answer.steps:
        if step.step is Step.STAGE:
            is_open = step.words == ("allow",)
        elif is_open and step.step is Step.POLICY and step.words[1] == "matched":
            found.append(step.words[0])
            is_open = False
    return tuple(found)
