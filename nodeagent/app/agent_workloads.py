"""The stream of workload types: feeds the index of who is where."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from nodeagent.compiler.workloads import IndexChange, WorkloadIndex, apply_addresses
from nodeagent.xds.lastgood import Held
from nodeagent.xds.protocol import Update
from nodeagent.xds.store import WILDCARD
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.transport import Transport
from nodeagent.xds.types import AUTHORIZATION, WORKLOAD_TYPES, Message

logger = logging.getLogger(__name__)

NAME: Final = "workloads"


class WorkloadStream:
    """Subscribes to all addresses and L4 policies; the stream's consumer."""

    def __init__(
        self,
        transport: Transport,
        node: Message,
        index: WorkloadIndex,
        changed: Callable[[IndexChange], None],
        stored: Callable[[], None],
    ) -> None:
        self._index = index
        self._changed = changed
        self._stored = stored
        self._restored = False
        self.policies: set[str] = set()
        """Names of L4 authorization policies received; enforcing them comes with HBONE."""
        self.stream = DeltaStream(NAME, transport.address, node, WORKLOAD_TYPES, self, transport)
        for url in WORKLOAD_TYPES:
            self.stream.subscribe(url, [WILDCARD])

    def apply(self, update: Update) -> Mapping[str, str]:
        """Put an update into the index."""
        if update.type_url == AUTHORIZATION:
            self.policies |= {received.name for received in update.resources}
            self.policies -= set(update.removed)
            return {}
        received = ((item.name, item.message) for item in update.resources)
        change, rejected = apply_addresses(self._index, received, update.removed)
        self._changed(change)
        self._stored()
        return rejected

    def restore(self, held: Mapping[str, Held]) -> None:
        """Take what an earlier run held."""
        for url in WORKLOAD_TYPES:
            if url in held:
                self.stream.protocol.restore(url, held[url].resources)
        self._restored = bool(held)

    @property
    def synced(self) -> bool:
        """Whether both types have been answered, or are held from an earlier run."""
        return self._restored or all(state.answered for state in self.stream.protocol.types.values())
