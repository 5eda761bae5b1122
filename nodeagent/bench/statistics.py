"""Medians and what can be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with an interval that holds the true one with the probability `confidence`, whatever the
    distribution."""

    median: float
    low: float
    high: float
    confidence: float
    count: int


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """The median and the narrowest interval between order statistics that is confident enough; None without
    values.

    That the true median lies outside of [k-th smallest, k-th largest] means that fewer than k of n fair coins
    fell on one side: binomial, exact, with no assumption on the distribution. Fewer than six values cannot
    give 95 %; the interval is then their whole range, and `confidence` says how little that is worth.
    """
    if not values:
        return None
    ordered = sorted(values)
    depth = 1
    while depth < (len(ordered) + 1) // 2 and _coverage(len(ordered), depth + 1) >= confidence:
        depth += 1
    covered = _coverage(len(ordered), depth)
    return Estimate(median(ordered), ordered[depth - 1], ordered[-depth], covered, len(ordered))


def _coverage(count: int, depth: int) -> float:
    """Probability that the median lies between the depth-th smallest and the depth-th largest value."""
    outside: float = sum(math.comb(count, heads) for heads in range(depth)) / 2**count
    return max(0.0, 1 - 2 * outside)
