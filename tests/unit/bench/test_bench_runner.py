"""Rounds, failures and interruptions, with cases that only count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from nodeagent.bench.case import Case, Measurement, Opened, Scenario
from nodeagent.bench.results import CaseResult, Metric, Results
from nodeagent.bench.runner import Runner
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError

CPU = Metric("cpu", "CPU", "us")


class FakeCase(Case):
    metrics = (CPU,)

    def __init__(self, name: str, measure: Callable[[str], Measurement], peers: Sequence[str]) -> None:
        self.name = name
        self._measure = measure
        self._peers = peers
        self.closed = False

    @contextmanager
    def open(self, stage: Any, peers: Any, config: BenchConfig) -> Iterator[Opened]:
        try:
            yield Opened(self._measure, list(self._peers))
        finally:
            self.closed = True


class Quiet:
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.failures: list[tuple[str, str]] = []

    def step(self, scenario: str, case: str, peer: str, number: int, rounds: int) -> None:
        if peer:
            self.steps.append(f"{number}{peer}")

    def failed(self, scenario: str, case: str, peer: str, why: str) -> None:
        self.failures.append((peer, why))

    def done(self, result: CaseResult) -> None:
        pass


def run(config: BenchConfig, *cases: Case) -> tuple[Results, Quiet]:
    results, progress = Results({}, {}, "", ""), Quiet()
    scenario = Scenario("fake", "", lambda _: cases)
    Runner(cast(Stage, None), [], config, results, progress).run([scenario])
    return results, progress


def steady(_: str) -> Measurement:
    return Measurement({"cpu": 1.0})


def test_rounds_are_interleaved_and_rotate() -> None:
    _, progress = run(BenchConfig(rounds=3), FakeCase("c", steady, ("a", "b", "c")))
    assert progress.steps == ["1a", "1b", "1c", "2b", "2c", "2a", "3c", "3a", "3b"]


def test_rounds_with_stolen_time_are_made_up_for_within_bounds() -> None:
    calls = 0

    def noisy(_: str) -> Measurement:
        nonlocal calls
        calls += 1
        return Measurement({"cpu": 1.0}, steal_percent=5.0 if calls <= 2 else 0.0)

    results, _ = run(BenchConfig(rounds=4), FakeCase("c", noisy, ("a",)))
    assert [sample.dropped for sample in results.cases[0].samples] == [True, True, *[False] * 4]
    results, _ = run(
        BenchConfig(rounds=4), FakeCase("c", lambda _: Measurement({"cpu": 1.0}, steal_percent=5.0), ("a",))
    )
    assert len(results.cases[0].samples) == 8
    assert results.cases[0].dropped() == 8


def test_a_peer_that_fails_takes_no_further_part() -> None:
    def broken(peer: str) -> Measurement:
        if peer == "b":
            raise BenchError("b fell over")
        return steady(peer)

    results, progress = run(BenchConfig(rounds=2), FakeCase("c", broken, ("a", "b", "c")))
    assert progress.failures == [("b", "b fell over")]
    assert results.cases[0].failures == {"b": "b fell over"}
    assert [sample.peer for sample in results.cases[0].samples] == ["a", "c", "c", "a"]


def test_a_case_that_cannot_begin_does_not_end_the_run() -> None:
    class Broken(FakeCase):
        @contextmanager
        def open(self, stage: Any, peers: Any, config: BenchConfig) -> Iterator[Opened]:
            raise BenchError("no back end")
            yield

    results, _ = run(BenchConfig(rounds=1), Broken("x", steady, ()), FakeCase("c", steady, ("a",)))
    assert results.cases[0].failures == {"": "no back end"}
    assert len(results.cases[1].samples) == 1


def test_an_interruption_keeps_what_there_is_and_closes_the_case() -> None:
    calls = 0

    def interrupted(_: str) -> Measurement:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return Measurement({"cpu": 1.0})

    case = FakeCase("c", interrupted, ("a", "b"))
    results, _ = run(BenchConfig(rounds=5), case, FakeCase("never", steady, ("a",)))
    assert results.interrupted
    assert case.closed
    assert [len(result.samples) for result in results.cases] == [3]


def test_only_the_cases_that_were_asked_for_are_measured() -> None:
    cases = [FakeCase(name, steady, ("a",)) for name in ("in: keep-alive", "in: bulk", "out: bulk")]
    results, _ = run(BenchConfig(rounds=1, case="in: "), *cases)
    assert [case.name for case in results.cases] == ["in: keep-alive", "in: bulk"]
