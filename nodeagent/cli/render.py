"""How commands print: tables for people, JSON and YAML for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer


class Output(StrEnum):
    """Output formats."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="How to print; wide: a table with more columns.")
]

_GOOD: Final = frozenset(
    {"ready", "SYNCED", "HEALTHY", "enrolled", "yes", "Available", "in force", "in its listener"}
)
_BAD: Final = frozenset(
    {"not ready", "STALE", "UNHEALTHY", "failed", "no", "error", "Unavailable", "Expired", "closed"}
)
_DOUBTFUL: Final = frozenset({"NOT SENT", "pending", "DRAINING", "draining", "warning", "Initializing"})


def document(value: Any, output: Output) -> None:
    """Print a value as JSON or YAML."""
    if output is Output.YAML:
        import yaml

        yaml.safe_dump(value, sys.stdout, sort_keys=False, allow_unicode=True, width=1000)
    else:
        json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        print()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: coloured on a terminal, else in plain columns three spaces apart."""
    cells = [[cell or "-" for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        print("   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    Console().print(drawn)


def _style(cell: str) -> str:
    if cell in _GOOD:
        return "green"
    if cell in _BAD:
        return "red"
    return "yellow" if cell in _DOUBTFUL else ""


def word(text: str) -> str:
    """Return a word in the colour of its meaning, on a terminal."""
    code = {"green": 32, "red": 31, "yellow": 33}.get(_style(text))
    return f"\x1b[{code}m{text}\x1b[0m" if code and sys.stdout.isatty() else text


def some(items: Sequence[str], *, wide: bool, most: int = 2) -> str:
    """Join items by commas; but for `wide`, only the first ones and how many more there are."""
    if wide or len(items) <= most + 1:
        return ",".join(items)
    return f"{','.join(items[:most])} + {len(items) - most} more"


def duration(seconds: float) -> str:
    """Return seconds as `850ms`, `12s`, `3m20s`, `5h3m` or `2d4h`."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    whole = int(seconds)
    for name, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size}{name}" + (f"{rest}{smaller}" if rest else "")
    return f"{whole}s"


def size(count: int) -> str:
    """Return a number of bytes as `999B`, `1.5kB`, `20MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f}{unit}" if unit == "B" or value >= 10 else f"{value:.1f}{unit}"
