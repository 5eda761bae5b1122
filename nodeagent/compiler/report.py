"""What the compiler has to say of a resource that it took: the fields that have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

LIMIT: Final = 32
"""Warnings kept per resource; a resource that needs more is said to have more."""


@dataclass(slots=True)
class Report:
    """Gathers the warnings of one resource, each once, in order."""

    _warnings: dict[str, None] = field(default_factory=dict)
    _where: str = ""

    def warn(self, what: str) -> None:
        """Note something; `what` begins with the field's name."""
        text = f"{self._where}{what}"
        if text in self._warnings:
            return
        if len(self._warnings) < LIMIT:
            self._warnings[text] = None
        else:
            self._warnings["and more"] = None

    def at(self, place: str) -> Report:
        """A report of a part: what it gathers goes to the same list, with the place before it."""
        return Report(self._warnings, f"{self._where}{place}.")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything noted."""
        return tuple(self._warnings)

    def unsupported(self, message: Any, understood: Iterable[str]) -> None:
        """Note each field that is set and that neither matters nor is understood."""
        for name in set_fields(message):
            if name not in understood:
                self.warn(f"{name} is not supported yet and has no effect")


def set_fields(message: Any) -> Iterator[str]:
    """Names of the fields of a protobuf message that are set."""
    for descriptor, _ in message.ListFields():
        yield descriptor.name
