"""What one client wants of one type, what it has, and what must be sent so that it has what it wants."""

from __future__ import annotations

import asyncio
import enum
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.controlplane.cache import PerspectiveCache
from nodeagent.controlplane.change import Change
from nodeagent.controlplane.resources import Group, Kind, Resource
from nodeagent.controlplane.view import View

WILDCARD: Final = "*"
# Groups made before other clients get a turn.
_GROUPS_PER_TURN: Final = 200


class SyncState(enum.StrEnum):
    """Whether a client has taken what it was sent, in istioctl's words."""

    NOT_SENT = "NOT SENT"
    SYNCED = "SYNCED"
    STALE = "STALE"


@dataclass(slots=True)
class Acknowledgement:
    """The exchange of versions with the client, for people and for telling stale answers."""

    nonce: str = ""
    sent_version: str = ""
    sent_at: float = 0.0
    acked_nonce: str = ""
    acked_version: str = ""
    nack: str = ""
    """Why the client refused what it was last sent; empty if it did not."""
    nacks: int = 0
    _parts: set[str] = field(default_factory=set)
    """Nonces of the messages that the last answer was sent in."""
    _refused: bool = False
    """One of these was refused."""

    @property
    def state(self) -> SyncState:
        """Whether the last message was taken."""
        if not self.nonce:
            return SyncState.SYNCED if self.acked_version else SyncState.NOT_SENT
        return SyncState.SYNCED if self.acked_nonce == self.nonce else SyncState.STALE

    def sending(self, nonce: str, version: str, *, first: bool = True) -> None:
        """A message goes out; `first` is False for a further part of the same answer."""
        if first:
            self._parts.clear()
            self._refused = False
        self._parts.add(nonce)
        self.nonce = nonce
        self.sent_version = version
        self.sent_at = time.time()

    def already(self, version: str) -> None:
        """The client has this version from an earlier connection."""
        self.sent_version = self.acked_version = version

    def concerns(self, nonce: str) -> bool:
        """Whether a nonce is of the last answer; of an earlier one nobody wants to know any more."""
        return nonce in self._parts

    def acked(self, nonce: str) -> None:
        """The client took a message; with the last one the whole answer, if it refused no part."""
        if nonce != self.nonce or self._refused:
            return
        self.acked_nonce = self.nonce
        self.acked_version = self.sent_version
        self.nack = ""

    def nacked(self, reason: str) -> None:
        """The client refused a message of the last answer."""
        self._refused = True
        self.nack = reason or "no reason given"
        self.nacks += 1


@dataclass(slots=True)
class Difference:
    """What to tell a client."""

    updates: dict[str, Resource] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    dropped: list[Resource] = field(default_factory=list)
    """The bodies of those removed that this connection had sent."""
    more: bool = False
    """This is a part, with updates only; others follow."""

    def __bool__(self) -> bool:
        return bool(self.updates or self.removed)


class Subscription:
    """Names or everything of one type. Changes mark groups dirty; difference() turns marks into what to send.

    Marks are sets: however many changes come while a client is slow, it is sent the newest state once.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.wildcard = False
        self.names: dict[str, Group | None] = {}
        self.sent: dict[str, Resource | str] = {}
        """What the client has: the resource, or only its version if it brought it from an earlier connection."""
        self.must_answer = False
        """Send a message even if there is nothing to say: the client waits for it."""
        self.acknowledgement = Acknowledgement()
        self._by_group: dict[Group | None, set[str]] = defaultdict(set)
        self._answers: dict[str, tuple[str, ...]] = {}
        self._held: dict[Group, set[str]] = {}
        self._asked: set[str] = set()
        self._forced: set[str] = set()
        self._dirty: set[Group] = set()
        self._everything = False
        self._moved = False

    @property
    def pending(self) -> bool:
        """Whether difference() may have something to say."""
        return bool(self._asked or self._dirty or self._everything or self._moved or self.must_answer)

    # -- what the client wants --------------------------------------------------------------------------------

    def subscribe(self, view: View, names: Iterable[str], *, force: bool = True) -> None:
        """Add names; `*` means everything. A name that is already subscribed is answered again."""
        for name in names:
            if name == WILDCARD:
                self.wildcard = True
                self._everything = True
                continue
            self._forget_group(name)
            self._place(view, name)
            self._asked.add(name)
            if force:
                self._forced.add(name)

    def unsubscribe(self, names: Iterable[str]) -> None:
        """Drop names. One that the wildcard still covers is sent again, as the client forgot it (xDS delta)."""
        for name in names:
            if name == WILDCARD:
                self.wildcard = False
                self._held.clear()
                self.sent = {own: self.sent[own] for own in self._answered() if own in self.sent}
                continue
            known = name in self.names
            self._forget_group(name)
            self.names.pop(name, None)
            self._asked.discard(name)
            answered = self._answers.pop(name, (name,))
            if self.wildcard:
                if known:
                    self._asked.add(name)
                    self._forced.add(name)
                continue
            for own in answered if answered == (name,) else set(answered) - self._answered():
                self.sent.pop(own, None)

    def bring(self, versions: Mapping[str, str]) -> None:
        """What the client has from an earlier connection (initial_resource_versions)."""
        self.sent.update(versions)

    def resend(self, names: Iterable[str]) -> None:
        """Send these again, where subscribed, although they did not change."""
        again = [name for name in names if name in self.names]
        self._asked.update(again)
        self._forced.update(again)

    def _answered(self) -> set[str]:
        return {own for answers in self._answers.values() for own in answers}

    def _place(self, view: View, name: str) -> None:
        group = self.kind.group_of(view, name)
        self.names[name] = group
        self._by_group[group].add(name)

    def _forget_group(self, name: str) -> None:
        if name in self.names:
            members = self._by_group[self.names[name]]
            members.discard(name)
            if not members:
                del self._by_group[self.names[name]]

    # -- what changed -----------------------------------------------------------------------------------------

    def mark(self, view: View, change: Change) -> None:
        """Note what a change may have altered."""
        groups = self.kind.affected(view, change)
        if not self.wildcard:
            groups &= self._by_group.keys()
        self._dirty |= groups
        if self.names and self.kind.moves(change):
            self._moved = True

    def mark_group(self, group: Group) -> None:
        """Look at a group again, whatever changed."""
        if self.wildcard or group in self._by_group:
            self._dirty.add(group)

    def mark_everything(self) -> None:
        """All may be different: the client is another one than was thought."""
        self._everything = True
        self._moved = True

    async def difference(self, view: View, cache: PerspectiveCache) -> Difference:
        """What the client lacks or should drop; clears the marks and takes it as sent."""
        whole = [part async for part in self.parts(view, cache)]
        return whole[-1]

    async def parts(
        self, view: View, cache: PerspectiveCache, size: int | None = None
    ) -> AsyncIterator[Difference]:
        """As difference(), but updates are handed out whenever there are `size` of them; the last part has no
        `more`."""
        found = Difference()
        asked, forced, dirty = self._asked, self._forced, self._dirty
        everything, moved = self._everything, self._moved
        self._asked, self._forced, self._dirty = set(), set(), set()
        self._everything = self._moved = self.must_answer = False
        if moved or everything:
            asked |= self._regroup(view, all_names=everything)
        if self.wildcard:
            groups = self.kind.groups(view) if everything else dirty
            async for _ in self._check_groups(view, cache, groups, everything, found):
                if size is not None and len(found.updates) >= size:
                    self.sent.update(found.updates)
                    yield Difference(found.updates, more=True)
                    found.updates = {}
        else:
            for group in dirty:
                asked |= self._by_group.get(group, set())
        for name in sorted(asked):
            self._check_name(view, cache, name, name in forced, found)
        found.removed -= found.updates.keys()
        for name in found.removed:
            known = self.sent.pop(name, None)
            if isinstance(known, Resource):
                found.dropped.append(known)
        self.sent.update(found.updates)
        yield found

    def _regroup(self, view: View, *, all_names: bool) -> set[str]:
        """Find out again where names belong; returns those that must be looked at."""
        if not self.names:
            return set()
        touched = set()
        for name, before in list(self.names.items()):
            if all_names or self.kind.group_of(view, name) != before:
                self._forget_group(name)
                self._place(view, name)
                touched.add(name)
        return touched

    async def _check_groups(
        self,
        view: View,
        cache: PerspectiveCache,
        groups: Iterable[Group],
        everything: bool,
        found: Difference,
    ) -> AsyncIterator[None]:
        """Add what groups have to `found`, yielding now and then; what is gone from them is added at the end."""
        present: set[str] = set()
        gone: set[str] = set()
        before = set(self._held) if everything else set()
        for count, group in enumerate(list(groups), 1):
            made = cache.resources(self.kind, view, group)
            before.discard(group)
            if made is None:
                present.update(self._held.get(group, ()))
                continue
            # update(), not |=: with a dict's keys on the right that would copy the whole set each time.
            gone.update(self._held.get(group, set()).difference(made))
            present.update(made)
            if made:
                self._held[group] = set(made)
            else:
                self._held.pop(group, None)
            found.updates.update({name: item for name, item in made.items() if not self._has(item)})
            if count % _GROUPS_PER_TURN == 0:
                await asyncio.sleep(0)
                yield
        for group in before:
            gone |= self._held.pop(group)
        if everything:
            gone |= self.sent.keys() - self._answered() - present
        found.removed |= gone - present

    def _check_name(
        self, view: View, cache: PerspectiveCache, name: str, force: bool, found: Difference
    ) -> None:
        group = self.names.get(name) if name in self.names else self.kind.group_of(view, name)
        made = cache.resources(self.kind, view, group) if group is not None else {}
        if made is None:
            return
        picked = tuple(self.kind.pick(made, name))
        for item in picked:
            if force or not self._has(item):
                found.updates[item.name] = item
        before = self._answers.get(name)
        now = tuple(item.name for item in picked)
        if name in self.names:
            self._answers[name] = now
        if picked:
            found.removed |= set(before or ()) - set(now)
        elif force or before is None or before or name in self.sent:
            found.removed |= set(before or (name,))

    def _has(self, item: Resource) -> bool:
        known = self.sent.get(item.name)
        if known is None:
            return False
        if isinstance(known, str):
            return known == item.version
        return known.version == item.version and known.aliases == item.aliases
