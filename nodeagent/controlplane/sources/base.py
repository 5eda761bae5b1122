"""What a source of configuration is: it delivers raw objects and says which came, changed and went."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class ObjectKey(NamedTuple):
    """What identifies an object: its kind (with API group), namespace and name."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class RawObject:
    """An object as read: not decoded yet. `source` is file:line or the like."""

    key: ObjectKey
    version: str
    """The API version without its group: v1, v1beta1."""
    body: Mapping[str, Any]
    source: str = field(compare=False)
    created: float
    """Seconds since the epoch: metadata.creationTimestamp, else when the source first saw the object."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong together."""

    changed: tuple[RawObject, ...] = ()
    removed: tuple[ObjectKey, ...] = ()


class Source(Protocol):
    """Where configuration comes from. Problems go to the report that the source was made with."""

    async def load(self) -> Batch:
        """All objects at start."""
        ...

    def watch(self) -> AsyncIterator[Batch]:
        """Changes after load(), as they come; ends when the source is closed."""
        ...

    def close(self) -> None:
        """End watch()."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the source has read, for people: shown by the admin API."""
        ...
