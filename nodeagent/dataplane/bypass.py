"""Owner of the maps by which connections within the node pass the engine: puts in force what is planned.

What becomes stricter is written first, what lets more through last, and what is referred to before what refers to it:
verdicts, then endpoints, services, clients. A set of endpoints that changes gets another number, so that no connection
draws from a half of it.
"""

from __future__ import annotations

import logging
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.dataplane.bypass_layout import (
    NO_BYPASS,
    Access,
    AccessEntry,
    AccessKey,
    ServiceKey,
    Source,
)
from nodeagent.dataplane.bypass_maps import BypassMaps
from nodeagent.dataplane.bypass_plan import PlanChanges
from nodeagent.dataplane.bypass_tables import BoundedTable, NoteFull, ServiceTables
from nodeagent.dataplane.bypass_verdict import Verdict
from nodeagent.dataplane.tags import TagTable
from nodeagent.errors import BpfError

logger = logging.getLogger(__name__)

POLICY_NAMES: Final = 65_536
"""Names of denying policies that have a number; others deny without one."""
_COOKIE: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class BypassCounts:
    """How much is in force."""

    services: int
    endpoints: int
    verdicts: int
    sources: int
    refused: Mapping[str, int]
    """What waits for room, by map."""


class Bypass:
    """Writes the maps of one life. Not for several threads at once; calls are short, but for the first of many."""

    def __init__(self, maps: BypassMaps, note_full: NoteFull) -> None:
        """`maps` are empty, and stay the caller's."""
        self.life = secrets.randbelow((1 << 32) - 1) + 1
        """The number of this agent's life."""
        self.error = ""
        """Why nothing passes the engine at present: what the kernel has refused."""
        self._maps = maps
        self._policies: TagTable[str] = TagTable()
        self._has_begun = False
        self._access: BoundedTable[AccessKey, Verdict] = BoundedTable(
            maps.access, AccessKey.pack, self._pack_verdict, note_full
        )
        self._sources: BoundedTable[int, Source] = BoundedTable(
            maps.sources, _COOKIE.pack, Source.pack, note_full
        )
        self._services = ServiceTables(maps.services, maps.backends, note_full)

    def _pack_verdict(self, verdict: Verdict) -> bytes:
        return AccessEntry(verdict.access, self._number(verdict.policy)).pack()

    def _number(self, policy: str) -> int:
        if not policy or len(self._policies) >= POLICY_NAMES:
            return 0
        return self._policies.assign(policy, policy)[0]

    # -- writing --

    def apply(self, changes: PlanChanges, everything: Callable[[], PlanChanges]) -> None:
        """Put a change in force. Where the kernel refuses something nothing passes the engine (`error` tells why); the
        next call then begins anew, with `everything` that is planned."""
        try:
            if self.error:
                self._begin_anew()
                changes = everything()
            self._write(changes)
            if not self._has_begun:
                self._maps.begin_life(self.life)
                self._has_begun = True
        except BpfError as error:
            self.suspend(str(error))
        else:
            self.error = ""

    def _write(self, changes: PlanChanges) -> None:
        services = {key: slots for key, slots in changes.services.items() if slots is not None}
        verdicts = {key: verdict for key, verdict in changes.access.items() if verdict is not None}
        # Stricter: also what will be another source in a moment.
        self._sources.remove(changes.sources)
        self._access.remove(key for key, verdict in changes.access.items() if verdict is None)
        self._access.remove(
            key
            for key, verdict in verdicts.items()
            if verdict.access is Access.DENY and key in self._access.held
        )
        self._services.remove(key for key, slots in changes.services.items() if slots is None)
        self._services.withdraw(services)
        # Looser.
        self._access.put(verdicts)
        self._services.put(services)
        self._sources.put({key: source for key, source in changes.sources.items() if source is not None})

    def _begin_anew(self) -> None:
        self._services.forget()
        self._access.forget()
        self._sources.forget()

    def suspend(self, error: str) -> None:
        """Let nothing pass the engine, for a reason, until the next apply() begins anew."""
        if error != self.error:
            logger.error("no connections pass the engine until that is mended: %s", error)
        self.error = error
        self._has_begun = False
        try:
            self._maps.begin_life(NO_BYPASS)
        except BpfError as failure:
            logger.error("what passes the engine cannot be ended: %s", failure)

    # -- what is there --

    def service(self, number: int) -> ServiceKey | None:
        """What a service's number stands for, or stood for not long ago."""
        return self._services.ids.resolve(number)

    def policy(self, number: int) -> str:
        """The name of a denying policy; "" for 0."""
        return self._policies.resolve(number) or ""

    def counts(self) -> BypassCounts:
        """How much is in force, and what is not for want of room."""
        waiting = {
            "services": len(self._services.waiting),
            "access": len(self._access.waiting),
            "sources": len(self._sources.waiting),
        }
        return BypassCounts(
            len(self._services.held),
            self._services.used,
            len(self._access.held),
            len(self._sources.held),
            {name: count for name, count in waiting.items() if count},
        )
