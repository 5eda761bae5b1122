"""The state-of-the-world variant of ADS."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeAlias

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from nodeagent.controlplane.resources import Resource, message_url
from nodeagent.controlplane.translate.packing import CLUSTER_TYPE, ENDPOINT_TYPE
from nodeagent.controlplane.xds.stream import Stream
from nodeagent.controlplane.xds.subscription import WILDCARD, Difference, Subscription

Request: TypeAlias = discovery_pb2.DiscoveryRequest
Response: TypeAlias = discovery_pb2.DiscoveryResponse


class SotwStream(Stream):
    """A stream of DiscoveryRequests and -Responses.

    Responses of complete kinds (LDS, CDS) hold all that the client wants; those of others what changed. A version is
    a hash of all that the client has, so that one who comes back with it is not sent the same again.
    """

    variant = "sotw"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._named: set[str] = set()
        self._brought: dict[str, str] = {}
        self._unserved: list[Response] = []

    def on_request(self, request: Request) -> None:
        """A request with a stale nonce is ignored: the client will answer the newer message."""
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            subscription = self.open(request.type_url)
            if subscription is None:
                self._answer_unserved(request)
                return
            self._brought[request.type_url] = request.version_info
        elif request.response_nonce:
            error = request.error_detail.message if request.HasField("error_detail") else None
            if not self.take_answer(subscription, request.response_nonce, error):
                return
        self._set_names(subscription, list(request.resource_names))

    def _set_names(self, subscription: Subscription, names: list[str]) -> None:
        """The whole list of names. Empty means everything, until the client has once named something."""
        type_url = subscription.kind.type_url
        if names:
            self._named.add(type_url)
        elif type_url not in self._named and subscription.kind.wildcard:
            names = [WILDCARD]
        wanted = set(names)
        known = set(subscription.names) | ({WILDCARD} if subscription.wildcard else set())
        if wanted == known:
            return
        subscription.unsubscribe(known - wanted)
        subscription.subscribe(self.view, sorted(wanted - known))
        self.check_names(subscription)
        # A complete response is the only way to say that something is no longer there.
        subscription.must_answer |= subscription.kind.complete

    def _answer_unserved(self, request: Request) -> None:
        if request.response_nonce:
            return
        self._unserved = [other for other in self._unserved if other.type_url != request.type_url]
        self._unserved.append(Response(type_url=request.type_url, version_info="0", nonce=self.next_nonce()))

    async def flush(self) -> int:
        """What is new first, in order; deletions when everything that refers to them has been sent without them."""
        count = 0
        late: list[Subscription] = []
        unserved, self._unserved = self._unserved, []
        for response in unserved:
            await self._context.write(response)
        async for subscription, found, must in self.differences():
            if subscription.kind.type_url == CLUSTER_TYPE:
                self._resend_endpoints(found.updates)
            deletes = subscription.kind.complete and bool(found.dropped)
            if deletes:
                late.append(subscription)
            if found.updates or (must and not deletes):
                count += await self._respond(subscription, found)
        for subscription in reversed(late):
            count += await self._respond(subscription, Difference())
        return count

    def _resend_endpoints(self, clusters: Iterable[str]) -> None:
        """A changed cluster warms up until it is sent its endpoints, also when they are as before."""
        endpoints = self.subscriptions.get(ENDPOINT_TYPE)
        if endpoints is not None:
            endpoints.resend(clusters)

    async def _respond(self, subscription: Subscription, found: Difference) -> int:
        """Send a message, unless the client has that very state from an earlier connection."""
        held = [item for item in subscription.sent.values() if isinstance(item, Resource)]
        if subscription.kind.complete:
            resources = held = [*held, *found.dropped]
        else:
            resources = list(found.updates.values())
        version = _version(held)
        type_url = subscription.kind.type_url
        if self._brought.pop(type_url, "") == version:
            subscription.acknowledgement.already(version)
            return 0
        message = Response(type_url=type_url, version_info=version, nonce=self.next_nonce())
        url = message_url(type_url)
        message.resources.extend(AnyMessage(type_url=url, value=item.body) for item in resources)
        await self.write(subscription, message, version, len(resources))
        return 1


def _version(held: Iterable[Resource]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for item in sorted(held, key=lambda resource: resource.name):
        digest.update(f"{item.name}\0{item.version}\n".encode())
    return digest.hexdigest()
