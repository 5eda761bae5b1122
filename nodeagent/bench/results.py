"""What was measured, as plain values: the JSON file is these, one to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from nodeagent.bench.statistics import Estimate, estimate

SUBJECT: Final = "nodeagent"
"""The proxy that the others are compared with."""
DIRECT: Final = "direct"
"""No proxy at all."""


class Compare(StrEnum):
    """How a metric of the subject is set against a peer's."""

    RATIO = "ratio"
    """Divided by the peer's."""
    ADDED = "added"
    """After taking off what it is without a proxy, divided by the peer's."""
    NONE = "none"
    """Shown, not compared."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured quantity. `key` is its name in the values of a sample."""

    key: str
    title: str
    unit: str
    compare: Compare = Compare.RATIO
    lower_is_better: bool = True

    @property
    def label(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one peer in one round."""

    peer: str
    round: int
    values: Mapping[str, float]
    steal_percent: float = 0.0
    dropped: bool = False
    """Not taken into account, because the processor was taken away."""
    curve: tuple[tuple[float, float], ...] = ()
    """Latency: (share of requests, microseconds), for plots."""


@dataclass(slots=True)
class CaseResult:
    """All measurements of a case."""

    scenario: str
    name: str
    metrics: tuple[Metric, ...]
    samples: list[Sample] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Peers that could not be measured, and why."""

    def peers(self) -> list[str]:
        """Who was measured, in order of appearance; the subject first."""
        found = dict.fromkeys(sample.peer for sample in self.samples)
        return sorted(found, key=lambda peer: peer != SUBJECT)

    def kept(self, peer: str) -> Iterator[Sample]:
        """The samples of a peer that count."""
        return (sample for sample in self.samples if sample.peer == peer and not sample.dropped)

    def values(self, metric: Metric, peer: str) -> list[float]:
        """A peer's values in order of rounds."""
        return [sample.values[metric.key] for sample in self.kept(peer) if metric.key in sample.values]

    def level(self, metric: Metric, peer: str) -> Estimate | None:
        """A peer's median; for ADDED, of what it adds."""
        if metric.compare is Compare.ADDED and peer != DIRECT:
            return estimate(list(self._added(metric, peer).values()))
        return estimate(self.values(metric, peer))

    def ratio(self, metric: Metric, peer: str) -> Estimate | None:
        """The median over the rounds of the subject's value divided by a peer's."""
        if metric.compare is Compare.NONE or peer in (SUBJECT, DIRECT):
            return None
        by_round = self._added if metric.compare is Compare.ADDED else self._by_round
        mine, theirs = by_round(metric, SUBJECT), by_round(metric, peer)
        common = [number for number in mine if theirs.get(number, 0.0) > 0]
        return estimate([mine[number] / theirs[number] for number in common])

    def dropped(self) -> int:
        """Measurements that do not count."""
        return sum(sample.dropped for sample in self.samples)

    def _by_round(self, metric: Metric, peer: str) -> dict[int, float]:
        return {s.round: s.values[metric.key] for s in self.kept(peer) if metric.key in s.values}

    def _added(self, metric: Metric, peer: str) -> dict[int, float]:
        """What a peer adds to the direct way, measured in the same round."""
        direct = self._by_round(metric, DIRECT)
        with_proxy = self._by_round(metric, peer)
        return {number: value - direct[number] for number, value in with_proxy.items() if number in direct}


@dataclass(slots=True)
class Results:
    """A whole run."""

    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    command: str
    started: str
    """ISO 8601, UTC."""
    found: dict[str, str] = field(default_factory=dict)
    """Peers and their versions."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peers that are not here, and how to get them."""
    cases: list[CaseResult] = field(default_factory=list)
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        """The run, with the estimates beside the samples that they are made of."""
        document = asdict(self)
        for case, raw in zip(self.cases, document["cases"], strict=True):
            raw["estimates"] = [
                {"metric": metric.key, "peer": peer, "level": _as_dict(case.level(metric, peer)),
                 "ratio": _as_dict(case.ratio(metric, peer))}
                for metric in case.metrics
                for peer in case.peers()
            ]  # fmt: skip
        return document


def _as_dict(value: Estimate | None) -> dict[str, Any] | None:
    return asdict(value) if value is not None else None


def rotated(items: Sequence[str], by: int) -> list[str]:
    """The items, beginning with another one each time."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
