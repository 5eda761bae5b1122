"""How results are put into words, the same in the table and in the report."""

from __future__ import annotations

from enum import StrEnum

from nodeagent.bench.results import Metric
from nodeagent.bench.statistics import Estimate


class Verdict(StrEnum):
    """What a ratio says of the subject."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"
    """The interval holds 1."""


def number(value: float) -> str:
    """A value with three significant digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval(ratio: Estimate) -> str:
    """`0.52x (0.50-0.55)`."""
    return f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def verdict(ratio: Estimate, metric: Metric) -> Verdict:
    """Better or worse only if the whole interval is on one side of 1."""
    if ratio.low <= 1 <= ratio.high:
        return Verdict.OPEN
    return Verdict.BETTER if (ratio.high < 1) == metric.lower_is_better else Verdict.WORSE
