"""Medians and their intervals."""

from __future__ import annotations

import random

import pytest

from nodeagent.bench.statistics import estimate, median


def test_median_of_odd_and_even() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


def test_nothing_gives_nothing() -> None:
    assert estimate([]) is None


@pytest.mark.parametrize(
    ("count", "low", "high", "confidence"),
    [
        (1, 1, 1, 0.0),
        (2, 1, 2, 0.5),
        (5, 1, 5, 0.9375),  # 1 - 2 / 2**5
        (6, 1, 6, 0.96875),
        (9, 2, 8, 0.9609375),  # the tables of the sign test: ranks 2 and 8
        (20, 6, 15, 0.958611),
    ],
)
def test_exact_order_statistic_interval(count: int, low: int, high: int, confidence: float) -> None:
    values = [float(rank) for rank in range(1, count + 1)]
    random.Random(1).shuffle(values)
    found = estimate(values)
    assert found is not None
    assert (found.low, found.high) == (low, high)
    assert found.confidence == pytest.approx(confidence, abs=1e-6)
    assert found.count == count


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = random.Random(7)
    hits = 0
    for _ in range(2000):
        found = estimate([generator.expovariate(1.0) for _ in range(11)])
        assert found is not None
        hits += found.low <= 0.693147 <= found.high
    # Exact coverage for 11 values and ranks 2, 10 is 98.8 %; three standard errors are 0.7 %.
    assert hits / 2000 > 0.98
