"""The delta xDS protocol, client side, with no input or output: responses in, requests out.

Rules: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol. Each response is answered by
exactly one request with its nonce; a NACK is an answer with error_detail, and what was good in the response
applies all the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from nodeagent.model.extensions import MORE
from nodeagent.xds.store import Resource, TypeState
from nodeagent.xds.types import Message, body_url, message_class, short_name

logger = logging.getLogger(__name__)

NACK_MESSAGE_LIMIT: Final = 4096
STEP: Final = 100
"""Resources that are applied without a pause: one or two milliseconds."""
_INVALID_ARGUMENT: Final = 3  # google.rpc.Code


@dataclass(frozen=True, slots=True)
class Received:
    """A decoded resource under the name by which it was asked for."""

    name: str
    message: Message


@dataclass(frozen=True, slots=True)
class Update:
    """What one response changes: resources that came, and names that are not there (any more)."""

    type_url: str
    resources: tuple[Received, ...] = ()
    removed: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Names of which something came that is no resource of the type, and why: rejected already."""


class Consumer(Protocol):
    """Takes updates; called on the event loop, in the order of the responses."""

    def apply(self, update: Update) -> Mapping[str, str]:
        """Put an update in force and return what cannot be: resource name -> why. The others must be."""


def _describe(rejected: Mapping[str, str]) -> str:
    """All rejections in one bounded line."""
    return "; ".join(f"{name}: {message}" for name, message in rejected.items())[:NACK_MESSAGE_LIMIT]


class DeltaProtocol:
    """The state of the exchange over all types of one stream; survives reconnects."""

    def __init__(
        self,
        node: Message,
        types: Sequence[str],
        consumer: Consumer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        self._consumer = consumer
        self._clock = clock
        self._node_sent = False
        self._expiry: dict[tuple[str, str], float] = {}
        self.types: dict[str, TypeState] = {url: TypeState(url) for url in types}
        self.on_answered: Callable[[str], None] = lambda type_url: None
        """Called when a type has been answered for the first time, be it that there is nothing of it."""

    # -- requests --

    def subscribe(self, type_url: str, names: Iterable[str]) -> bool:
        """Want names of a type; True if there is something new to ask for."""
        return self.types[type_url].subscribe(names)

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> bool:
        """Want names no more; the consumer is not told of it."""
        return self.types[type_url].unsubscribe(names)

    @property
    def outstanding(self) -> str:
        """A type of which something is still to come; empty: of none."""
        return next((short_name(url) for url, state in self.types.items() if state.outstanding), "")

    def reopen(self) -> None:
        """A new stream begins."""
        self._node_sent = False
        for state in self.types.values():
            state.reopen()

    def requests(self) -> Iterator[Message]:
        """The requests that subscriptions call for now."""
        for state in self.types.values():
            changes = state.take_changes()
            if changes is not None:
                subscribe, unsubscribe, held = changes
                yield self._request(
                    state.type_url,
                    resource_names_subscribe=subscribe,
                    resource_names_unsubscribe=unsubscribe,
                    initial_resource_versions=held,
                )

    def _request(self, type_url: str, **fields: object) -> Message:
        from envoy.service.discovery.v3 import discovery_pb2

        if not self._node_sent:
            self._node_sent = True
            fields["node"] = self.node
        return discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)

    # -- responses --

    def receive(self, response: Message) -> Message:
        """Apply a response; returns its ACK or NACK."""
        steps = self.receive_in_steps(response)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def receive_in_steps(self, response: Message) -> Generator[None, None, Message]:
        """As receive(), yielding now and then, so that a response of a hundred thousand resources does not
        keep everything else waiting."""
        state = self.types.get(response.type_url)
        if state is None:
            return self._answer(response, f"type {response.type_url} was not asked for")
        rejected: dict[str, str] = {}
        seen: set[str] = set()
        self._remove(state.type_url, [name for name in response.removed_resources if state.wants(name)])
        for start in range(0, len(response.resources), STEP):
            if start:
                yield
            self._apply(state, response.resources[start : start + STEP], seen, rejected)
        self._conclude(state, response, rejected)
        return self._answer(response, _describe(rejected))

    def _conclude(self, state: TypeState, response: Message, rejected: Mapping[str, str]) -> None:
        whole = response.control_plane.identifier != MORE
        first, state.answered = whole and not state.answered, whole or state.answered
        state.opened_at = None
        state.last_update = time.time()
        state.version = response.system_version_info
        for name, message in rejected.items():
            state.reject(name, message)
        state.nack = _describe(state.rejected)
        if rejected:
            state.nacks += 1
            logger.warning("rejected %s of %s", short_name(state.type_url), _describe(rejected))
        if first:
            self.on_answered(state.type_url)

    def _answer(self, response: Message, error: str) -> Message:
        request = self._request(response.type_url, response_nonce=response.nonce)
        if error:
            request.error_detail.code = _INVALID_ARGUMENT
            request.error_detail.message = error
        return request

    def _apply(
        self, state: TypeState, items: Sequence[Message], seen: set[str], rejected: dict[str, str]
    ) -> None:
        """Put what is good of some resources in force; what is not goes into `rejected`."""
        decoded: dict[str, tuple[Resource, Message]] = {}
        absent: list[str] = []
        unreadable: dict[str, str] = {}
        for item in items:
            for name in self._names(state, item):
                if name in seen:
                    decoded.pop(name, None)
                    unreadable[name] = "is in one response more than once"
                elif not item.HasField("resource"):
                    self._without_body(state, name, item, absent)
                else:
                    try:
                        decoded[name] = self._decode(state.type_url, item)
                    except ValueError as error:
                        unreadable[name] = str(error)
                seen.add(name)
        received = tuple(Received(name, message) for name, (_, message) in decoded.items())
        refused = self._consume(Update(state.type_url, received, unreadable=unreadable))
        rejected.update(unreadable)
        rejected.update(refused)
        for name, (resource, _) in decoded.items():
            if name not in refused:
                state.accept(name, resource)
        self._remove(state.type_url, absent)
        self._note_expiry(state, items)

    def _names(self, state: TypeState, item: Message) -> list[str]:
        """The wanted names that a resource answers: its own, or aliases by which it was asked for."""
        if state.wants(item.name):
            return [item.name]
        names = [alias for alias in item.aliases if alias in state.wanted]
        if not names and not state.narrowed:
            state.unrequested += 1
        return names

    def _without_body(self, state: TypeState, name: str, item: Message, removed: list[str]) -> None:
        """A TTL heartbeat keeps what is there; else it is VHDS's way of saying that a name is not there."""
        held = state.resources.get(name)
        if held is None or (held.version != item.version and not item.HasField("ttl")):
            removed.append(name)

    def _decode(self, type_url: str, item: Message) -> tuple[Resource, Message]:
        if item.resource.type_url != body_url(type_url):
            raise ValueError(
                f"is a {item.resource.type_url or 'message without type'}, not a {body_url(type_url)}"
            )
        body = item.resource.value
        try:
            message = message_class(type_url).FromString(body)
        except DecodeError as error:
            raise ValueError(f"cannot be decoded: {error}") from None
        return Resource(item.version, body), message

    def _consume(self, update: Update) -> Mapping[str, str]:
        if not (update.resources or update.removed or update.unreadable):
            return {}
        try:
            return self._consumer.apply(update)
        except Exception as error:
            # The last good state must survive a defect of ours, and the server should know.
            logger.exception("applying %s failed", short_name(update.type_url))
            return {received.name: f"internal error: {error!r}" for received in update.resources}

    # -- what is held over a restart, what ends by itself --

    def restore(self, type_url: str, resources: Mapping[str, Resource], absent: Iterable[str] = ()) -> None:
        """Take resources of an earlier run: they are in force and wanted until the server says otherwise."""
        state = self.types[type_url]
        if not state.wildcard:
            state.subscribe(absent)
            for name in absent:
                state.mark_absent(name)
        decoded = []
        for name, resource in resources.items():
            try:
                decoded.append(Received(name, message_class(type_url).FromString(resource.body)))
            except DecodeError as error:
                logger.warning("dropping stored %s %s: %s", short_name(type_url), name, error)
        rejected = self._consume(Update(type_url, tuple(decoded)))
        good = [received.name for received in decoded if received.name not in rejected]
        if not state.wildcard:
            state.subscribe(good)
        for name in good:
            state.accept(name, resources[name])

    def _note_expiry(self, state: TypeState, items: Iterable[Message]) -> None:
        for item in items:
            key = (state.type_url, item.name)
            if item.HasField("ttl") and item.name in state.resources:
                self._expiry[key] = self._clock() + item.ttl.ToTimedelta().total_seconds()
            else:
                self._expiry.pop(key, None)

    def expire(self) -> None:
        """Remove the resources whose time is over."""
        now = self._clock()
        over = [key for key, deadline in self._expiry.items() if deadline <= now]
        for type_url, name in over:
            self._remove(type_url, [name])

    def give_up(self, age: float) -> None:
        """Take names for absent that a server has left unanswered for `age` seconds (Envoy's
        initial_fetch_timeout)."""
        deadline = time.monotonic() - age
        for state in self.types.values():
            if state.opened_at is not None and state.opened_at <= deadline:
                state.opened_at = None
            late = [name for name, asked in state.asked_at.items() if asked <= deadline]
            self._remove(state.type_url, late, answered=False)

    def _remove(self, type_url: str, names: list[str], *, answered: bool = True) -> None:
        """Names are not there (any more), or taken for such."""
        if not names:
            return
        unanswered = self.types[type_url].unanswered
        (unanswered.difference_update if answered else unanswered.update)(names)
        self._consume(Update(type_url, removed=tuple(names)))
        for name in names:
            self.types[type_url].mark_absent(name)
            self._expiry.pop((type_url, name), None)
