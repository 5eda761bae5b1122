"""How long to wait between two looks at what the engine has recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHORTEST: Final = 0.01
LONGEST: Final = 0.2
"""Seconds; a record is in the log within a second."""
WANTED: Final = 512
"""Records to take at a look: a quarter of a worker's ring (na_engine_config.access_records), so that traffic may
become four times as much from one look to the next and nothing is lost."""
_GROWTH: Final = 2.0


@dataclass(slots=True)
class Pace:
    """The wait, by the rate of records: a look costs the same however many there are, and a ring that is full
    drops. It gets shorter at once and longer step by step."""

    wait: float = LONGEST

    def note(self, count: int, elapsed: float) -> None:
        """`count` records were taken, `elapsed` seconds after the look before."""
        ideal = WANTED * elapsed / count if count else LONGEST
        self.wait = min(max(ideal, SHORTEST), LONGEST, self.wait * _GROWTH)
