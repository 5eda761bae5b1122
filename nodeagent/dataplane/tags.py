"""Numbers that stand for snapshot values in the engine, and back.

The engine reports a long connection under the number that it began with, however long its endpoint has been
out of the configuration. So a number is never given out twice, and what it stood for is kept after its
release, up to a limit; beyond that the oldest is forgotten, and reports of it come without the value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

RETIRED_LIMIT: Final = 16384

V = TypeVar("V")


class TagTable(Generic[V]):
    """Numbers from 1 up, by key. A key that is released and comes back gets a new number.

    A key may have a parent, which need not have a number itself, and goes with it.
    """

    def __init__(self, retired_limit: int = RETIRED_LIMIT) -> None:
        self._tags: dict[Hashable, int] = {}
        self._values: dict[int, V] = {}
        self._children: dict[Hashable, set[Hashable]] = {}
        self._parents: dict[Hashable, Hashable] = {}
        self._retired: deque[int] = deque()
        self._retired_limit = retired_limit
        self._last = 0

    def assign(self, key: Hashable, value: V, parent: Hashable = None) -> tuple[int, bool]:
        """The number of `key`, which stands for `value` from now on, and whether it is a new one."""
        tag = self._tags.get(key)
        fresh = tag is None
        if tag is None:
            self._last += 1
            tag = self._tags[key] = self._last
            if parent is not None:
                self._parents[key] = parent
                self._children.setdefault(parent, set()).add(key)
        self._values[tag] = value
        return tag, fresh

    def tag_of(self, key: Hashable) -> int:
        """The number of a key in use, 0 if it is not."""
        return self._tags.get(key, 0)

    def children(self, parent: Hashable) -> frozenset[Hashable]:
        """The keys in use that go with `parent`."""
        return frozenset(self._children.get(parent, ()))

    def release(self, key: Hashable) -> None:
        """The key and its children are out of use; nothing happens if they never were in."""
        for child in self.children(key):
            self.release(child)
        parent = self._parents.pop(key, None)
        if parent is not None:
            siblings = self._children[parent]
            siblings.discard(key)
            if not siblings:
                del self._children[parent]
        tag = self._tags.pop(key, None)
        if tag is not None:
            self._retire(tag)

    def _retire(self, tag: int) -> None:
        self._retired.append(tag)
        if len(self._retired) > self._retired_limit:
            del self._values[self._retired.popleft()]

    def resolve(self, tag: int) -> V | None:
        """What the number stands for or stood for; None for 0 and for what is forgotten."""
        return self._values.get(tag)

    def __len__(self) -> int:
        """How many are in use."""
        return len(self._tags)
