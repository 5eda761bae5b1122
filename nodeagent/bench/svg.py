"""Plots as inline SVG: bars with intervals, and latency curves. Pure functions from values to text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from nodeagent.bench.results import SUBJECT

COLOURS: Final = {
    SUBJECT: "#0b6e99",
    "direct": "#8a8a8a",
    "floor": "#b5b5b5",
    "envoy": "#c2528b",
    "haproxy": "#7a9a3a",
    "nginx": "#c9882b",
}
_OTHER_COLOUR: Final = "#555555"
_ROW: Final = 26
_LABEL: Final = 96
_WIDTH: Final = 640
# Room to the right of the longest bar for what is written beside it.
_NOTE: Final = 190
# Of curves: size, margins, and how many nines the axis has.
_HEIGHT: Final = 260
_LEFT: Final = 60
_BOTTOM: Final = 30
_RIGHT: Final = 110
_NINES: Final = 4.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A peer's median with its interval, and what is written beside it."""

    peer: str
    value: float
    low: float
    high: float
    text: str


def colour(peer: str) -> str:
    """The peer's colour in all plots."""
    return COLOURS.get(peer, _OTHER_COLOUR)


def bars(title: str, items: Sequence[Bar]) -> str:
    """Horizontal bars from zero, one a peer."""
    top = max((item.high for item in items), default=0.0) or 1.0
    plot = _WIDTH - _LABEL - _NOTE
    parts = [_open(_WIDTH, 24 + _ROW * len(items), title)]
    parts.append(f'<text x="0" y="14" class="title">{escape(title)}</text>')
    for index, item in enumerate(items):
        y = 24 + index * _ROW
        width = max(0.0, item.value) / top * plot
        low, high = (_LABEL + max(0.0, edge) / top * plot for edge in (item.low, item.high))
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 14}" class="end">{escape(item.peer)}</text>')
        parts.append(
            f'<rect x="{_LABEL}" y="{y + 2}" width="{width:.1f}" height="16" fill="{colour(item.peer)}"/>'
        )
        parts.append(f'<path d="M{low:.1f} {y + 10}H{high:.1f}" class="interval"/>')
        parts.append(f'<text x="{high + 6:.1f}" y="{y + 14}">{escape(item.text)}</text>')
    return "".join(parts) + "</svg>"


def curves(title: str, items: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Latency by percentile: both axes logarithmic, so that the tail has room."""
    values = [value for points in items.values() for _, value in points if value > 0]
    if not values:
        return ""
    scale = _Scale(math.log10(min(values)), max(math.log10(max(values)), math.log10(min(values)) + 0.1))
    parts = [_open(_WIDTH, _HEIGHT, title), f'<text x="0" y="14" class="title">{escape(title)}</text>']
    parts += scale.grid()
    for index, (peer, points) in enumerate(items.items()):
        path = " ".join(f"{scale.x(share):.1f},{scale.y(value):.1f}" for share, value in points if value > 0)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(peer)}" stroke-width="1.6"/>')
        x, y = _WIDTH - _RIGHT + 10, 40 + index * 18
        parts.append(f'<text x="{x}" y="{y}" fill="{colour(peer)}">{escape(peer)}</text>')
    return "".join(parts) + "</svg>"


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a percentile curve's points are: nines to the right, powers of ten upwards."""

    low: float
    high: float
    """log10 of microseconds."""

    def x(self, share: float) -> float:
        """Place of a share of the requests; beyond the last nine all is one place."""
        nines = min(_NINES, -math.log10(max(1e-9, 1 - share)))
        return _LEFT + nines / _NINES * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Place of a latency."""
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - 24)

    def grid(self) -> Iterator[str]:
        """Lines with their labels."""
        for share in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999):
            yield f'<path d="M{self.x(share):.1f} 24V{_HEIGHT - _BOTTOM}" class="grid"/>'
            yield f'<text x="{self.x(share):.1f}" y="{_HEIGHT - 10}" class="middle">{100 * share:g} %</text>'
        for power in range(math.ceil(self.low), math.floor(self.high) + 1):
            y = self.y(10.0**power)
            yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" class="grid"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{_duration(10.0**power)}</text>'


def dots(title: str, items: Mapping[str, Sequence[float]]) -> str:
    """Every round's value, one row a peer: how much they scatter."""
    values = [value for series in items.values() for value in series]
    if not values:
        return ""
    top = max(values) or 1.0
    plot = _WIDTH - _LABEL - 20
    parts = [_open(_WIDTH, 24 + 18 * len(items), title), f'<text x="0" y="14">{escape(title)}</text>']
    for index, (peer, series) in enumerate(items.items()):
        y = 34 + index * 18
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 4}" class="end">{escape(peer)}</text>')
        parts += (
            f'<circle cx="{_LABEL + max(0.0, value) / top * plot:.1f}" cy="{y}" r="3" '
            f'fill="{colour(peer)}" fill-opacity="0.6"/>'
            for value in series
        )
    return "".join(parts) + "</svg>"


def _open(width: int, height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">'
    )


def _duration(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:g} us"
    return f"{microseconds / 1000:g} ms" if microseconds < 1e6 else f"{microseconds / 1e6:g} s"
