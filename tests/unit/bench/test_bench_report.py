"""The HTML report, the table and the choosing of names."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nodeagent.bench import svg
from nodeagent.bench.html import render
from nodeagent.bench.peers import choose_peers
from nodeagent.bench.results import CaseResult, Compare, Metric, Results, Sample
from nodeagent.bench.scenarios import all_scenarios, choose_scenarios
from nodeagent.bench.session import Session
from nodeagent.bench.statistics import Estimate
from nodeagent.bench.wording import Verdict, verdict
from nodeagent.cli import bench_tables
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import ConfigError

CPU = Metric("cpu", "CPU per request", "us")
P99 = Metric("p99", "added p99", "us", Compare.ADDED)
CURVE = ((0.0, 40.0), (0.5, 60.0), (0.99, 200.0), (1.0, 900.0))


def results() -> Results:
    found = Results(
        {"cores": "2"},
        {"rounds": 6, "steal_percent": 1.0, "access_log": True},
        "nodeagent bench <x>",
        "2026-01-01",
    )
    found.found = {"nodeagent": "0.1.0", "envoy": "1.40.0"}
    found.missing = {"haproxy": "apt-get install haproxy"}
    case = CaseResult("http1", "40 B & <more>", (CPU, P99))
    for number in range(6):
        for peer, value in (("direct", 1.0), ("nodeagent", 11.0), ("envoy", 33.0)):
            values = {"p99": 50 + value} if peer == "direct" else {"cpu": value, "p99": 50 + value}
            case.samples.append(Sample(peer, number, values, curve=CURVE))
    case.failures = {"nginx": "it <broke>"}
    found.cases.append(case)
    return found


def test_the_page_is_well_formed_and_escaped() -> None:
    page = render(results())
    body = page.replace("<!doctype html>", "").replace('<meta charset="utf-8">', "")
    body = body.replace('<meta name="viewport" content="width=device-width">', "").replace("<br>", "<br/>")
    root = ElementTree.fromstring(body)
    text = "".join(root.itertext())
    assert "it <broke>" in text
    assert "40 B & <more>" in text
    assert "0.33x (0.33-0.33), 97%" in text
    assert "apt-get install haproxy" in text
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", ""), "it must need nothing else"


def test_plots_survive_odd_values() -> None:
    for text in (
        svg.bars("t", []),
        svg.bars("t", [svg.Bar("a", 0.0, 0.0, 0.0, ""), svg.Bar("b", -5.0, -6.0, -4.0, "")]),
        svg.curves("t", {"a": ((0.0, 5.0), (1.0, 5.0))}),
        svg.dots("t", {"a": [0.0], "b": []}),
    ):
        ElementTree.fromstring(text)
    assert svg.curves("t", {}) == ""
    assert svg.dots("t", {}) == ""


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "expected"),
    [
        (0.5, 0.9, True, Verdict.BETTER),
        (0.5, 0.9, False, Verdict.WORSE),
        (1.1, 2.0, True, Verdict.WORSE),
        (1.1, 2.0, False, Verdict.BETTER),
        (0.9, 1.1, True, Verdict.OPEN),
        (1.0, 1.0, True, Verdict.OPEN),
    ],
)
def test_a_verdict_needs_the_whole_interval(
    low: float, high: float, lower_is_better: bool, expected: Verdict
) -> None:
    metric = Metric("m", "m", "", lower_is_better=lower_is_better)
    assert verdict(Estimate((low + high) / 2, low, high, 0.95, 7), metric) is expected


def test_the_table_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = results()
    interrupted.interrupted = True
    bench_tables.print_results(interrupted)
    out = capsys.readouterr().out
    assert "0.33x (0.33-0.33)" in out
    assert "+10" in out
    assert "it <broke>" in out
    assert "Interrupted" in out


def test_scenarios_are_found_by_their_files() -> None:
    names = set(all_scenarios())
    assert {"http1", "http1-close", "tcp", "latency", "idle", "config"} <= names
    for scenario in all_scenarios().values():
        cases = scenario.cases(BenchConfig())
        assert cases, scenario.name
        assert len({case.name for case in cases}) == len(cases)


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="http1"):
        choose_scenarios(["htp1"], captured=False)
    with pytest.raises(ConfigError, match="envoy"):
        choose_peers(["envoi"])
    with pytest.raises(ConfigError, match="cannot be measured with --captured"):
        choose_scenarios(["idle"], captured=True)


def test_the_subject_always_takes_part() -> None:
    assert [peer.name for peer in choose_peers(["floor"])] == ["nodeagent", "floor"]
    assert len({peer.index for peer in choose_peers([])}) == len(choose_peers([])), "ports would collide"


@pytest.mark.parametrize("change", [{"rounds": 0}, {"seconds": 0.0}, {"workers": 0}, {"steal_percent": -1.0}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be between"):
        BenchConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"layout": "pod"}, {"capture_mode": "bpf"}])
def test_unknown_choices_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        BenchConfig(**change)  # type: ignore[arg-type]


def test_a_case_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="--case 1 MiB: no case of http1 has this in its name"):
        Session(["http1"], ["direct"], BenchConfig(case="1 MiB"))
