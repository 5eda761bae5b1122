"""What `nodeagent bench` prints: who takes part, how far it is, the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from rich.text import Text

from nodeagent.bench.results import DIRECT, SUBJECT, CaseResult, Compare, Metric, Results
from nodeagent.bench.scenarios import all_scenarios
from nodeagent.bench.wording import Verdict, interval, number, verdict

_PLAIN_WIDTH: Final = 200
_STYLES: Final = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.OPEN: "yellow"}


def _console(*, stderr: bool = False) -> Console:
    """A console that does not wrap what a pipe reads."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _PLAIN_WIDTH)


def print_scenarios() -> None:
    """List the scenarios."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("SCENARIO", "MEASURES", "--captured"):
        table.add_column(column)
    for scenario in all_scenarios().values():
        table.add_row(scenario.name, scenario.summary, "yes" if scenario.captured else "-")
    _console().print(table)


def print_participants(results: Results) -> None:
    """Say who takes part, and how to get those that do not."""
    console = _console(stderr=True)
    console.print("  ".join(f"[bold]{name}[/] {escape(version)}" for name, version in results.found.items()))
    for name, hint in results.missing.items():
        console.print(f"[yellow]without {name}[/]; to have it: {escape(hint)}")


class Shown:
    """Progress for people: a moving line on a terminal, a line a case and peer elsewhere."""

    def __init__(self, console: Console, status: Status | None) -> None:
        self._console = console
        self._status = status
        self._last = ""

    def step(self, scenario: str, case: str, peer: str, number: int, rounds: int) -> None:
        """A measurement begins."""
        where = f"{scenario}: {case}" + (f": {peer}" if peer else "")
        if self._status is not None:
            self._status.update(
                escape(f"{where}, round {number} of {rounds}" if peer else f"{where}: starting")
            )
        elif f"{scenario}: {case}" != self._last:
            self._last = f"{scenario}: {case}"
            self._console.print(escape(self._last))

    def failed(self, scenario: str, case: str, peer: str, why: str) -> None:
        """A peer takes no further part in a case."""
        self._console.print(f"[red]{scenario}: {escape(case)}: {peer or 'all'}[/]: {escape(why)}")

    def done(self, result: CaseResult) -> None:
        """A case is complete."""


@contextmanager
def progress() -> Iterator[Shown]:
    """Show how far it is, on standard error."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield Shown(console, None)
        return
    with console.status("") as status:
        yield Shown(console, status)


def print_results(results: Results) -> None:
    """Print a table for each scenario, and what to know of the measurements."""
    console = _console()
    for name in dict.fromkeys(case.scenario for case in results.cases):
        cases = [case for case in results.cases if case.scenario == name and case.samples]
        if cases:
            console.print()
            console.print(_scenario_table(name, cases))
    _print_notes(console, results)


def _scenario_table(name: str, cases: list[CaseResult]) -> Table:
    peers = list(dict.fromkeys(peer for case in cases for peer in case.peers()))
    table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("CASE", style="bold")
    table.add_column("")
    for peer in peers:
        table.add_column(peer.upper(), justify="right")
    for case in cases:
        for index, metric in enumerate(case.metrics):
            cells = [_cell(case, metric, peer) for peer in peers]
            if any(cells):
                table.add_row(case.name if index == 0 else "", metric.label, *cells)
    return table


def _cell(case: CaseResult, metric: Metric, peer: str) -> Text:
    """A peer's median, and below it nodeagent / peer with its interval."""
    level = case.level(metric, peer)
    if level is None:
        return Text("")
    added = metric.compare is Compare.ADDED and peer != DIRECT
    text = Text(("+" if added and level.median >= 0 else "") + number(level.median))
    ratio = case.ratio(metric, peer)
    if ratio is not None:
        text.append(f"\n{interval(ratio)}", style=_STYLES[verdict(ratio, metric)])
    return text


def _print_notes(console: Console, results: Results) -> None:
    console.print()
    console.print(f"Ratios are {SUBJECT} / peer: medians over rounds, with the interval of the median.")
    if results.settings["access_log"]:
        console.print(
            f"{SUBJECT} made access records and wrote a log, the others did not; --no-access-log: neither."
        )
    confidences = [
        ratio.confidence
        for case in results.cases
        for metric in case.metrics
        for peer in case.peers()
        if (ratio := case.ratio(metric, peer)) is not None
    ]
    if confidences and min(confidences) < 0.95:
        console.print(
            f"[yellow]Too few rounds for 95 %: the interval holds the median with {min(confidences):.0%}.[/]"
        )
    dropped = sum(case.dropped() for case in results.cases)
    total = sum(len(case.samples) for case in results.cases)
    limit = results.settings["steal_percent"]
    console.print(f"{dropped} of {total} measurements dropped for stolen time above {limit:g} %.")
    for case in results.cases:
        for peer, why in case.failures.items():
            console.print(f"[red]{case.scenario}: {escape(case.name)}: {peer or 'all'}[/]: {escape(why)}")
    if results.interrupted:
        console.print("[yellow]Interrupted: not everything was measured.[/]")
