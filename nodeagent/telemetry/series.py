"""A bounded set of series that share their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

LIMIT: Final = 10_000
IDLE_SECONDS: Final = 900.0
"""A series that nothing was added to for this long makes room for a new one, at the limit."""
_SWEEP_SECONDS: Final = 30.0


class Series(Protocol):
    """What is counted under one set of labels."""

    touched: float


L = TypeVar("L")
S = TypeVar("S", bound=Series)


class SeriesTable(Generic[L, S]):
    """Series by labels, at most `limit`.

    At the limit, series that have been idle are dropped (Prometheus takes that as a restart of the counter).
    If there are none, what is new folds into the series of `overflow(labels)`, which come on top of the
    limit; so `overflow` must map to few values.
    """

    def __init__(
        self,
        create: Callable[[L], S],
        overflow: Callable[[L], L],
        clock: Callable[[], float],
        limit: int = LIMIT,
    ) -> None:
        self._create = create
        self._overflow = overflow
        self._clock = clock
        self._limit = limit
        self._series: dict[L, S] = {}
        self._folded: dict[L, S] = {}
        self._swept = float("-inf")
        self.overflows = 0
        """Additions that were folded."""
        self.dropped = 0
        """Idle series that made room."""

    def get(self, labels: L) -> S:
        """The series to add to."""
        now = self._clock()
        series = self._series.get(labels)
        if series is None:
            series = self._new(labels, now)
        series.touched = now
        return series

    def _new(self, labels: L, now: float) -> S:
        if len(self._series) >= self._limit:
            self._sweep(now)
        if len(self._series) < self._limit:
            series = self._series[labels] = self._create(labels)
            return series
        self.overflows += 1
        folded = self._overflow(labels)
        if folded not in self._folded:
            self._folded[folded] = self._create(folded)
        return self._folded[folded]

    def _sweep(self, now: float) -> None:
        """Drop what is idle; not at every new series, since it looks at all."""
        if now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        idle = [labels for labels, series in self._series.items() if now - series.touched > IDLE_SECONDS]
        for labels in idle:
            del self._series[labels]
        self.dropped += len(idle)

    def __iter__(self) -> Iterator[S]:
        """All as they are at the first step; additions meanwhile do no harm."""
        yield from [*self._series.values(), *self._folded.values()]

    def __len__(self) -> int:
        return len(self._series) + len(self._folded)
