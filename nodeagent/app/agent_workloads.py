"""The stream of what all nodes are told: feeds the index of who is where, that of L4 policies, and says which trust
domains the mesh has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from nodeagent.compiler.authorization import AuthorizationIndex
from nodeagent.compiler.workloads import IndexChange, WorkloadIndex, apply_addresses
from nodeagent.xds.lastgood import Held
from nodeagent.xds.protocol import Update
from nodeagent.xds.store import WILDCARD
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.transport import Transport
from nodeagent.xds.types import AUTHORIZATION, MESH, WORKLOAD_TYPES, Message

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
        *,
        trust: Callable[[Sequence[str]], str] | None = None,
    ) -> None:
        """`trust` is told the mesh's trust domains, as MeshConfig has them, and returns what is wrong with them; None:
        nobody asks. Control planes that do not serve it are no matter."""
        self._index = index
        self._changed = changed
        self._stored = stored
        self._trust = trust
        self._restored = False
        self.policies = AuthorizationIndex()
        self.policies_changed: Callable[[], None] = lambda: None
        """Called when policies came, changed or went, and when the first answer says that there are none."""
        self._types = WORKLOAD_TYPES if trust is None else (*WORKLOAD_TYPES, MESH)
        self.stream = DeltaStream(NAME, transport.address, node, self._types, self, transport)
        for url in self._types:
            self.stream.subscribe(url, [WILDCARD])
        self.stream.protocol.on_answered = self._answered

    def apply(self, update: Update) -> Mapping[str, str]:
        """Put an update into the indexes."""
        if update.type_url == AUTHORIZATION:
            rejected = self._apply_policies(update)
        elif update.type_url == MESH:
            rejected = self._apply_mesh(update)
        else:
            received = ((item.name, item.message) for item in update.resources)
            change, rejected = apply_addresses(self._index, received, update.removed)
            self._changed(change)
        self._stored()
        return rejected

    def _apply_mesh(self, update: Update) -> Mapping[str, str]:
        """There is one; where it goes, so do its aliases. What cannot be read leaves the one before."""
        assert self._trust is not None
        if not update.resources and update.unreadable:
            return {}
        found = [
            (item.name, (item.message.trust_domain, *item.message.trust_domain_aliases))
            for item in update.resources
        ]
        name, domains = found[-1] if found else ("", ())
        problem = self._trust([domain for domain in domains if domain])
        return {name: problem} if problem else {}

    def _apply_policies(self, update: Update) -> Mapping[str, str]:
        rejected: dict[str, str] = {}
        for name in update.removed:
            self.policies.remove(name)
        for item in update.resources:
            try:
                self.policies.put(item.name, item.message)
            except ValueError as error:
                rejected[item.name] = str(error)
        for name, reason in (*rejected.items(), *update.unreadable.items()):
            self.policies.refuse(name, reason)
        self.policies_changed()
        return rejected

    def _answered(self, type_url: str) -> None:
        if type_url == AUTHORIZATION:
            self.policies_changed()

    def restore(self, held: Mapping[str, Held]) -> None:
        """Take what an earlier run held."""
        for url in self._types:
            if url in held:
                self.stream.protocol.restore(url, held[url].resources)
        self._restored = any(url in held for url in WORKLOAD_TYPES)

    @property
    def knows_policies(self) -> bool:
        """Whether the policies are all known: before, nothing may be let in by them."""
        return self._restored or self.stream.protocol.types[AUTHORIZATION].answered

    @property
    def synced(self) -> bool:
        """Whether both types have been answered, or are held from an earlier run."""
        return self._restored or all(self.stream.protocol.types[url].answered for url in WORKLOAD_TYPES)
