"""The delta variant of ADS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from nodeagent.controlplane.resources import Resource, message_url
from nodeagent.controlplane.translate.packing import CLUSTER_TYPE, ENDPOINT_TYPE
from nodeagent.controlplane.xds.stream import Stream
from nodeagent.controlplane.xds.subscription import WILDCARD, Subscription
from nodeagent.model.extensions import MORE

Request: TypeAlias = discovery_pb2.DeltaDiscoveryRequest
Response: TypeAlias = discovery_pb2.DeltaDiscoveryResponse
# Half of what clients of this protocol accept in one message (200 MiB).
MAX_MESSAGE_BYTES: Final = 100 << 20
PART: Final = 1000
"""Resources after which an answer is sent in part, to clients that know parts."""


class DeltaStream(Stream):
    """A stream of DeltaDiscoveryRequests and -Responses."""

    variant = "delta"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._unserved: list[Response] = []

    def on_request(self, request: Request) -> None:
        """Subscription changes count even when the nonce is stale; an answer only for the last message."""
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            subscription = self.open(request.type_url)
            if subscription is None:
                self._answer_unserved(request)
                return
            self._first(subscription, request)
            return
        error = request.error_detail.message if request.HasField("error_detail") else None
        self.take_answer(subscription, request.response_nonce, error)
        subscription.subscribe(self.view, request.resource_names_subscribe)
        subscription.unsubscribe(request.resource_names_unsubscribe)
        self.check_names(subscription)

    def _first(self, subscription: Subscription, request: Request) -> None:
        """The first request of a type: no names mean everything, for the types that have a wildcard."""
        subscription.bring(request.initial_resource_versions)
        names = list(request.resource_names_subscribe)
        if not names and subscription.kind.wildcard:
            names = [WILDCARD]
        subscription.subscribe(self.view, names, force=False)
        subscription.unsubscribe(request.resource_names_unsubscribe)
        self.check_names(subscription)

    def _answer_unserved(self, request: Request) -> None:
        if request.response_nonce and not request.resource_names_subscribe:
            return
        names = [name for name in request.resource_names_subscribe if name != WILDCARD]
        response = Response(type_url=request.type_url, removed_resources=names, nonce=self.next_nonce())
        # One answer a type is enough: a client cannot make this grow.
        self._unserved = [other for other in self._unserved if other.type_url != request.type_url]
        self._unserved.append(response)

    @property
    def part_size(self) -> int | None:
        """Each part is on its way while the next is made, and what the client needs first is there first."""
        return PART if self.client is not None and self.client.parts else None

    async def flush(self) -> int:
        """Additions of all types first, in order; then removals in reverse, when nothing refers to them any more."""
        count = 0
        begun: set[str] = set()
        removals: list[tuple[Subscription, set[str]]] = []
        unserved, self._unserved = self._unserved, []
        for response in unserved:
            await self._context.write(response)
        async for subscription, found, must in self.differences():
            updates = list(found.updates.values())
            if subscription.kind.type_url == CLUSTER_TYPE:
                self._resend_endpoints(updates)
            type_url = subscription.kind.type_url
            must = must or type_url in begun
            if updates or (must and not found.removed):
                count += await self._send_updates(
                    subscription, updates, first=type_url not in begun, more=found.more
                )
                begun.add(type_url)
            if found.removed:
                removals.append((subscription, found.removed))
        for subscription, names in reversed(removals):
            message = self._message(subscription)
            message.removed_resources.extend(sorted(names))
            first = subscription.kind.type_url not in begun
            await self.write(subscription, message, message.system_version_info, 0, first=first)
            count += 1
        return count

    def _resend_endpoints(self, clusters: Iterable[Resource]) -> None:
        """A changed cluster warms up until it is sent its endpoints, also when they are as before."""
        endpoints = self.subscriptions.get(ENDPOINT_TYPE)
        if endpoints is not None:
            endpoints.resend(cluster.name for cluster in clusters)

    async def _send_updates(
        self, subscription: Subscription, updates: list[Resource], *, first: bool, more: bool
    ) -> int:
        count = 0
        for part in _parts(updates):
            message = self._message(subscription)
            if more:
                message.control_plane.identifier = MORE
            type_url = subscription.kind.type_url
            for item in part:
                message.resources.add(
                    name=item.name,
                    version=item.version,
                    aliases=item.aliases,
                    resource=AnyMessage(type_url=message_url(type_url), value=item.body),
                )
            await self.write(subscription, message, message.system_version_info, len(part), first=first)
            first = False
            count += 1
        return count

    def _message(self, subscription: Subscription) -> Response:
        return Response(
            type_url=subscription.kind.type_url,
            system_version_info=str(self.hub.world.generation),
            nonce=self.next_nonce(),
        )


def _parts(updates: list[Resource]) -> Iterator[list[Resource]]:
    """Split so that no message is larger than clients take; at least one part, it may be empty."""
    part: list[Resource] = []
    size = 0
    for item in updates:
        if part and size + len(item.body) > MAX_MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item.body)
    yield part
