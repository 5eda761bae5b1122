"""What one stream holds of one xDS type: the accepted resources, and how the exchange stands.

Bodies are kept serialised: they are the smallest form, and what goes to disk and into a configuration dump.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WILDCARD: Final = "*"


class Resource(NamedTuple):
    """A received resource; `body` is the serialised message. (A tuple, since there are many.)"""

    version: str
    body: bytes


@dataclass(slots=True)
class TypeState:
    """One type of one stream. Survives reconnects; what belongs to a single stream is reset by `reopen`."""

    type_url: str
    wanted: set[str] = field(default_factory=set)
    resources: dict[str, Resource] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    """Wanted by name, and the server says that there is no such thing."""
    unanswered: set[str] = field(default_factory=set)
    """Of those the ones that the server has left without an answer for too long."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Why the last version received of a name cannot be used; an earlier one may still be in `resources`."""
    answered: bool = False
    """A response has come, ever."""
    version: str = ""
    last_update: float = 0.0
    """Of the last response; seconds since the epoch, 0 never."""
    nack: str = ""
    nacks: int = 0
    unrequested: int = 0
    """Resources that came without ever having been asked for, and were passed over."""
    narrowed: bool = False
    """Something was unsubscribed from, ever: what comes unrequested may be on the way since before."""
    asked_at: dict[str, float] = field(default_factory=dict)
    """When a name was asked for that has no answer yet (monotonic seconds)."""
    opened_at: float | None = None
    """When the present stream's first request was made, as long as nothing has answered it (monotonic seconds)."""

    _requested: bool = False
    _to_subscribe: set[str] = field(default_factory=set)
    _to_unsubscribe: set[str] = field(default_factory=set)

    @property
    def wildcard(self) -> bool:
        """Whether everything of the type is wanted."""
        return WILDCARD in self.wanted

    @property
    def in_sync(self) -> bool:
        """Whether everything received last is in force."""
        return not self.rejected

    @property
    def outstanding(self) -> bool:
        """Whether something is still to be asked for, or was and has no answer yet."""
        unsaid = bool(self.wanted) and (not self._requested or self._to_subscribe or self._to_unsubscribe)
        return bool(unsaid or self.asked_at) or self.opened_at is not None

    def wants(self, name: str) -> bool:
        """Whether a resource of the name is of use."""
        return name in self.wanted or self.wildcard

    def known(self, name: str) -> bool:
        """Whether the name has been answered: it is there, it is known not to be, or it is of no use."""
        return name in self.resources or name in self.absent or name in self.rejected

    def subscribe(self, names: Iterable[str]) -> bool:
        """Want more names; False if all were wanted already."""
        new = {name for name in names if name not in self.wanted}
        self.wanted |= new
        self._to_subscribe |= new
        self._to_unsubscribe -= new
        now = time.monotonic()
        for name in new:
            if name != WILDCARD and not self.known(name):
                self.asked_at[name] = now
        return bool(new)

    def unsubscribe(self, names: Iterable[str]) -> bool:
        """Want names no more, and forget what they stand for; False if none was wanted."""
        gone = {name for name in names if name in self.wanted}
        self.wanted -= gone
        self.narrowed = self.narrowed or bool(gone)
        self._to_subscribe -= gone
        self._to_unsubscribe |= gone
        if not self.wildcard:
            for name in list(self.resources) if WILDCARD in gone else gone:
                if name not in self.wanted:
                    self.forget(name)
        for name in gone:
            self.asked_at.pop(name, None)
        self.absent -= gone
        self.unanswered -= gone
        return bool(gone)

    def forget(self, name: str) -> None:
        """Drop all that is held of a name."""
        self.resources.pop(name, None)
        self.rejected.pop(name, None)
        self.asked_at.pop(name, None)

    def mark_absent(self, name: str) -> None:
        """The server has no such resource."""
        self.forget(name)
        if name in self.wanted:
            self.absent.add(name)

    def accept(self, name: str, resource: Resource) -> None:
        """A received resource is in force."""
        self.resources[name] = resource
        self.absent.discard(name)
        self.unanswered.discard(name)
        self.rejected.pop(name, None)
        self.asked_at.pop(name, None)

    def reject(self, name: str, message: str) -> None:
        """The last version received cannot be used."""
        self.rejected[name] = message
        self.asked_at.pop(name, None)

    def reopen(self) -> None:
        """A new stream begins: everything must be asked for again, from what is held."""
        self._requested = False
        self.opened_at = None
        now = time.monotonic()
        self.asked_at = dict.fromkeys(self.asked_at, now)

    def take_changes(self) -> tuple[list[str], list[str], dict[str, str]] | None:
        """(subscribe, unsubscribe, initial versions) for the next request; None when nothing is to be said.

        The first request of a stream names everything wanted and the versions held, without the rejected
        ones, so that the server sends those again. The wildcard alone is said by naming nothing.
        """
        if not self._requested:
            if not self.wanted:
                return None
            self._requested = True
            self.opened_at = time.monotonic()
            subscribe = [] if self.wanted == {WILDCARD} else sorted(self.wanted)
            unsubscribe: list[str] = []
            held = {n: r.version for n, r in self.resources.items() if n not in self.rejected}
        else:
            if not (self._to_subscribe or self._to_unsubscribe):
                return None
            subscribe, unsubscribe, held = sorted(self._to_subscribe), sorted(self._to_unsubscribe), {}
        self._to_subscribe.clear()
        self._to_unsubscribe.clear()
        return subscribe, unsubscribe, held
