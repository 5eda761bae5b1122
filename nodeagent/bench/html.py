"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from nodeagent.bench import svg
from nodeagent.bench.results import SUBJECT, CaseResult, Compare, Metric, Results
from nodeagent.bench.statistics import Estimate, median
from nodeagent.bench.wording import interval, number, verdict

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; color: #222; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.25em; margin-top: 2em } h3 { font-size: 1em; margin-bottom: .3em }
table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .15em .8em .15em 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.better { color: #1a7f37 } .worse { color: #b42318 } .note { color: #666 } .problem { color: #b42318 }
svg { display: block; margin: .6em 0; max-width: 100%; height: auto; font: 12px system-ui, sans-serif }
svg .title { font-weight: 600 } svg .end { text-anchor: end } svg .middle { text-anchor: middle }
svg .interval { stroke: #222; stroke-width: 2 } svg .grid { stroke: #ddd }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #ddd } svg text { fill: #ddd } svg .interval { stroke: #fff }
  svg .grid { stroke: #444 } .note { color: #999 }
}
"""


def render(results: Results) -> str:
    """The whole page."""
    return "\n".join(("<!doctype html>", '<html lang="en">', *_page(results), "</html>")) + "\n"


def _page(results: Results) -> Iterator[str]:
    yield '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    yield f"<title>nodeagent bench</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>nodeagent bench, {escape(results.started)}</h1>"
    if results.interrupted:
        yield '<p class="problem">Interrupted: not everything was measured.</p>'
    yield f"<p><code>{escape(results.command)}</code></p>"
    yield from _pairs("Machine", results.machine)
    yield from _pairs("Who takes part", results.found)
    yield from _pairs("Not found", results.missing)
    yield from _pairs("Settings", {name: str(value) for name, value in results.settings.items()})
    yield _method(results)
    for name in dict.fromkeys(case.scenario for case in results.cases):
        yield f"<h2>{escape(name)}</h2>"
        for case in results.cases:
            if case.scenario == name:
                yield from _case(case)
    yield "</body>"


def _method(results: Results) -> str:
    dropped = sum(case.dropped() for case in results.cases)
    total = sum(len(case.samples) for case in results.cases)
    return (
        '<p class="note">Rounds are interleaved, and each begins with another peer. A ratio is '
        f"{SUBJECT} divided by the peer in the same round; shown is the median over the rounds with the exact "
        "interval between order statistics that holds the true median with the confidence given. CPU time is the "
        "kernel's account of all threads of the proxy. Latencies of open loops count from when a request was to "
        f"be sent. {dropped} of {total} measurements were dropped because the hypervisor had taken more than "
        f"{results.settings['steal_percent']:g} % of the time.</p>"
    )


def _pairs(title: str, pairs: object) -> Iterator[str]:
    if not isinstance(pairs, dict) or not pairs:
        return
    rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(str(v))}</td></tr>" for n, v in pairs.items())
    yield f"<h3>{escape(title)}</h3><table>{rows}</table>"


def _case(case: CaseResult) -> Iterator[str]:
    yield f"<h3>{escape(case.name)}</h3>"
    for peer, why in case.failures.items():
        yield f'<p class="problem">{escape(peer or "all")}: {escape(why)}</p>'
    if not case.samples:
        return
    yield _table(case)
    for metric in case.metrics:
        if metric.compare is not Compare.NONE:
            yield svg.bars(metric.label, list(_bars(case, metric)))
    curves = {peer: curve for peer in case.peers() if (curve := _middle_curve(case, peer))}
    if curves:
        yield svg.curves("Latency by percentile", curves)
    first = case.metrics[0]
    yield (
        f"<details><summary>Every round</summary>"
        f"{svg.dots(first.label, {p: case.values(first, p) for p in case.peers()})}</details>"
    )


def _bars(case: CaseResult, metric: Metric) -> Iterator[svg.Bar]:
    for peer in case.peers():
        level = case.level(metric, peer)
        if level is not None:
            text = number(level.median)
            ratio = case.ratio(metric, peer)
            if ratio is not None:
                text += f"  ({SUBJECT}: {ratio.median:.2f}x)"
            yield svg.Bar(peer, level.median, level.low, level.high, text)


def _middle_curve(case: CaseResult, peer: str) -> tuple[tuple[float, float], ...]:
    """The curve of the round whose 99th percentile is the median one: no round is nicer than another."""
    curves = [sample.curve for sample in case.kept(peer) if sample.curve]
    if not curves:
        return ()
    tails = [next(value for share, value in curve if share >= 0.99) for curve in curves]
    middle = median(tails)
    return min(zip(tails, curves, strict=True), key=lambda pair: abs(pair[0] - middle))[1]


def _table(case: CaseResult) -> str:
    peers = case.peers()
    head = "".join(f"<th>{escape(peer)}</th>" for peer in peers)
    rows = "".join(
        f"<tr><th>{escape(metric.label)}</th>"
        + "".join(_cell(case, metric, peer) for peer in peers)
        + "</tr>"
        for metric in case.metrics
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _cell(case: CaseResult, metric: Metric, peer: str) -> str:
    level = case.level(metric, peer)
    if level is None:
        return '<td class="number">-</td>'
    ratio = case.ratio(metric, peer)
    return f'<td class="number">{number(level.median)}{_ratio(ratio, metric)}</td>'


def _ratio(ratio: Estimate | None, metric: Metric) -> str:
    if ratio is None:
        return ""
    style = verdict(ratio, metric)
    return f'<br><span class="{style}">{interval(ratio)}, {ratio.confidence:.0%}</span>'
