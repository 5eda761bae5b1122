"""Where streams meet the world: every change is told to every client that it may concern."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nodeagent.controlplane.cache import ResourceCache
from nodeagent.controlplane.change import Change
from nodeagent.controlplane.kinds import KINDS
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.world import World
from nodeagent.controlplane.xds.stream import Stream


class Hub:
    """The connected streams, and the resources that they share."""

    def __init__(self, world: World, metrics: Metrics) -> None:
        self.world = world
        self.metrics = metrics
        self.kinds = {kind.type_url: kind for kind in KINDS}
        self.cache = ResourceCache(world, self.kinds)
        self.closing = asyncio.Event()
        self.streams: set[Stream] = set()

    def publish(self, change: Change) -> None:
        """The world changed: forget what was made of the old one, and tell the clients."""
        if not change:
            return
        at = time.monotonic()
        self.cache.invalidate(change)
        for stream in self.streams:
            stream.notify(change, at)

    def clients(self) -> list[dict[str, Any]]:
        """Connected clients with the state of each of their types, for people."""
        found = [_describe(stream) for stream in self.streams if stream.client is not None]
        return sorted(found, key=lambda row: (row["node"], row["connected"]))


def _describe(stream: Stream) -> dict[str, Any]:
    client = stream.client
    assert client is not None
    return {
        "node": client.node_id,
        "type": client.kind,
        "namespace": client.namespace,
        "pod": client.pod,
        "peer": stream.peer,
        "caller": stream.caller,
        "transport": stream.variant,
        "on_demand": client.on_demand,
        "connected": stream.connected,
        "busy": stream.busy,
        "types": {
            type_url: {
                "state": subscription.acknowledgement.state.value,
                "sent_version": subscription.acknowledgement.sent_version,
                "acked_version": subscription.acknowledgement.acked_version,
                "sent_at": subscription.acknowledgement.sent_at,
                "nack": subscription.acknowledgement.nack or None,
                "nacks": subscription.acknowledgement.nacks,
                "wildcard": subscription.wildcard,
                "names": len(subscription.names),
                "resources": len(subscription.sent),
            }
            for type_url, subscription in sorted(stream.subscriptions.items())
        },
    }
