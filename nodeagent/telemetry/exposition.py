"""Prometheus' text format, version 0.0.4, for many series: label text is made once per series, not once per
scrape.

(prometheus_client builds a dict of labels per sample; with 10,000 series of 20 buckets that would be
seconds.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def escape(value: str) -> str:
    """A label value between its quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def label_text(names: Iterable[str], values: Iterable[str]) -> str:
    """`a="x",b="y"`."""
    return ",".join(f'{name}="{escape(value)}"' for name, value in zip(names, values, strict=True))


def number(value: float) -> str:
    """A sample's value: whole numbers without a fraction."""
    return str(int(value)) if value == int(value) else repr(value)


def header(name: str, kind: str, text: str) -> str:
    """The two lines that begin a family."""
    help_text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"


def sample(name: str, labels: str, value: float) -> str:
    """One line."""
    return f"{name}{{{labels}}} {number(value)}\n" if labels else f"{name} {number(value)}\n"


def histogram(name: str, labels: str, bounds: Sequence[str], counts: Sequence[int], total: float) -> str:
    """The lines of one series. `counts` is per bucket, one more than `bounds`: the last is above all
    bounds."""
    lines = []
    cumulative = 0
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        cumulative += count
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {cumulative}\n')
    lines.append(f"{name}_sum{{{labels}}} {number(total)}\n{name}_count{{{labels}}} {cumulative}\n")
    return "".join(lines)
