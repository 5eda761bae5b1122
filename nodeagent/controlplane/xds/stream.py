"""One client's ADS stream: requests in, responses out, both variants alike but for their messages.

Requests are read by one task and only change subscriptions. Responses are made and written by another, one at a
time, so that a client that reads slowly holds back its own responses and nothing piles up.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc
from envoy.config.core.v3 import base_pb2

from nodeagent.controlplane.change import Change
from nodeagent.controlplane.resources import INBOUND
from nodeagent.controlplane.view import Client, View
from nodeagent.controlplane.xds.guard import OPEN, Permit
from nodeagent.controlplane.xds.node import read_node
from nodeagent.controlplane.xds.subscription import Difference, Subscription

if TYPE_CHECKING:
    from nodeagent.controlplane.xds.hub import Hub

log = logging.getLogger(__name__)

MAX_NAMES: Final = 200_000
"""Names that one client may subscribe to, of one type."""
_MAX_UNKNOWN_TYPES: Final = 32


class StreamRefused(Exception):
    """The client asks for more than it may; ends its stream."""


class Stream(abc.ABC):
    """What both variants share: who the client is, its subscriptions, and the loop that sends."""

    variant = ""

    def __init__(self, hub: Hub, peer: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.hub = hub
        self.peer = peer
        self.connected = time.time()
        self.permit: Permit = OPEN.permit
        self.caller = ""
        """Who has authenticated, for people; empty: nobody had to."""
        self.client: Client | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self._context = context
        self._nonce = 0
        self._wake = asyncio.Event()
        self._unknown: set[str] = set()
        self._changed_at: float | None = None
        self._sending = False

    @property
    def busy(self) -> bool:
        """Whether something is to be sent, or being sent."""
        return self._wake.is_set() or self._sending

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Serve until the client leaves, breaks a limit, or the server closes."""
        reader = asyncio.create_task(self._read(requests))
        sender = asyncio.create_task(self._send())
        closing = asyncio.create_task(self.hub.closing.wait())
        try:
            done, _ = await asyncio.wait({reader, sender, closing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (reader, sender, closing):
                task.cancel()
            await asyncio.gather(reader, sender, closing, return_exceptions=True)
            if self.client is not None:
                self.hub.cache.release(self._perspective)

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            if self.client is None:
                self._identify(request.node)
            self.on_request(request)
            self._wake.set()

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed_at, self._changed_at = self._changed_at, None
            self._sending = True
            sent = await self.flush()
            self._sending = False
            if sent and changed_at is not None:
                self.hub.metrics.push_seconds.observe(time.monotonic() - changed_at)

    # -- the client -------------------------------------------------------------------------------------------

    def _identify(self, node: base_pb2.Node) -> None:
        client = read_node(node)
        self.permit(client)
        self.client = client
        workload = self.client.workload(self.hub.world)
        self._perspective = self.client.perspective(workload)
        self._cache = self.hub.cache.acquire(self._perspective)
        self.view = View(self.hub.world, self._perspective, workload, client.node)
        log.info(
            "%s connected from %s (%s)", self.client.node_id or "a client without id", self.peer, self.variant
        )

    def _refresh_view(self) -> None:
        """The client's own pod came, changed or went: its labels may be others now."""
        assert self.client is not None
        workload = self.client.workload(self.hub.world)
        perspective = self.client.perspective(workload)
        if perspective != self._perspective:
            old, self._perspective = self._perspective, perspective
            self._cache = self.hub.cache.acquire(perspective)
            self.hub.cache.release(old)
            for subscription in self.subscriptions.values():
                subscription.mark_everything()
        self.view = View(self.hub.world, perspective, workload, self.client.node)

    def notify(self, change: Change, at: float) -> None:
        """Configuration changed at monotonic time `at`: note what this client must look at again."""
        if self.client is None:
            return
        own = self.view.workload
        before = own.uid if own else None
        if change.workloads:
            self._refresh_view()
            after = self.view.workload.uid if self.view.workload else None
            if before != after:
                for subscription in self.subscriptions.values():
                    subscription.mark_group(INBOUND)
        for subscription in self.subscriptions.values():
            subscription.mark(self.view, change)
        if any(subscription.pending for subscription in self.subscriptions.values()):
            self._changed_at = self._changed_at or at
            self._wake.set()

    # -- requests ---------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def on_request(self, request: Any) -> None:
        """Take one request: subscriptions, acknowledgement."""

    def open(self, type_url: str) -> Subscription | None:
        """A new subscription; None (counted, logged once) if the type is not served."""
        kind = self.hub.kinds.get(type_url)
        if kind is None:
            self.hub.metrics.unknown_types.inc()
            if type_url not in self._unknown and len(self._unknown) < _MAX_UNKNOWN_TYPES:
                self._unknown.add(type_url)
                log.info("%s asks for %s, which is not served: answered with nothing", self.peer, type_url)
            return None
        found = self.subscriptions[type_url] = Subscription(kind)
        found.must_answer = True
        return found

    def check_names(self, subscription: Subscription) -> None:
        """Refuse more names than a client may hold."""
        if len(subscription.names) > MAX_NAMES:
            raise StreamRefused(f"more than {MAX_NAMES} names of {subscription.kind.type_url}")

    def take_answer(self, subscription: Subscription, nonce: str, error: str | None) -> bool:
        """Note an ACK or (with an error) a NACK; False if it is for an older message."""
        state = subscription.acknowledgement
        if not nonce or not state.concerns(nonce):
            return False
        if error is None:
            state.acked(nonce)
        else:
            state.nacked(error)
            self.hub.metrics.nacks.labels(subscription.kind.type_url).inc()
            assert self.client is not None
            log.warning("%s refused %s: %s", self.client.node_id, subscription.kind.type_url, state.nack)
        return True

    # -- responses --------------------------------------------------------------------------------------------

    @property
    def part_size(self) -> int | None:
        """Resources after which an answer is sent in part; None: it must be whole."""
        return None

    @abc.abstractmethod
    async def flush(self) -> int:
        """Send all that is due; returns the number of messages."""

    async def differences(self) -> AsyncIterator[tuple[Subscription, Difference, bool]]:
        """What is due by type, in the order make before break; the flag tells an answer that must be given."""
        for type_url in self.hub.kinds:
            subscription = self.subscriptions.get(type_url)
            if subscription is None or not subscription.pending:
                continue
            must = subscription.must_answer
            async for found in subscription.parts(self.view, self._cache, self.part_size):
                yield subscription, found, must

    async def write(
        self, subscription: Subscription, message: Any, version: str, count: int, *, first: bool = True
    ) -> None:
        """Send a message; returns when the transport has taken it."""
        type_url = subscription.kind.type_url
        subscription.acknowledgement.sending(message.nonce, version, first=first)
        await self._context.write(message)
        self.hub.metrics.pushes.labels(type_url).inc()
        self.hub.metrics.resources.labels(type_url).inc(count)

    def next_nonce(self) -> str:
        """A nonce that this stream has not used."""
        self._nonce += 1
        return str(self._nonce)
