"""Goes through scenarios, cases and rounds; keeps what it has whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from nodeagent.bench.case import Case, Measurement, Opened, Scenario
from nodeagent.bench.peers.base import Peer
from nodeagent.bench.results import CaseResult, Results, Sample, rotated
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import NodeagentError

_EXTRA_ROUNDS: Final = 1.0
"""Rounds that may be added, as a share of those asked for, in place of dropped measurements."""


class Progress(Protocol):
    """Is told how far it is."""

    def step(self, scenario: str, case: str, peer: str, number: int, rounds: int) -> None:
        """A measurement begins: the round `number` of about `rounds`, counted from 1."""

    def failed(self, scenario: str, case: str, peer: str, why: str) -> None:
        """A peer takes no further part in the case."""

    def done(self, result: CaseResult) -> None:
        """A case is complete."""


class Runner:
    """Fills `results`; after an interruption they hold what there was until then."""

    def __init__(
        self,
        stage: Stage,
        peers: Sequence[Peer],
        config: BenchConfig,
        results: Results,
        progress: Progress,
    ) -> None:
        self._stage = stage
        self._peers = peers
        self._config = config
        self._results = results
        self._progress = progress

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Measure. KeyboardInterrupt is noted in the results and goes no further."""
        try:
            for scenario in scenarios:
                for case in scenario.cases(self._config):
                    if self._config.case in case.name:
                        self._run_case(scenario, case)
        except KeyboardInterrupt:
            self._results.interrupted = True

    def _run_case(self, scenario: Scenario, case: Case) -> None:
        result = CaseResult(scenario.name, case.name, case.metrics)
        self._results.cases.append(result)
        self._progress.step(scenario.name, case.name, "", 0, self._config.rounds)
        try:
            with case.open(self._stage, self._peers, self._config) as opened:
                for peer, why in opened.failures.items():
                    self._fail(result, peer, why)
                self._rounds(result, opened)
        except NodeagentError as error:
            self._fail(result, "", str(error))
        self._progress.done(result)

    def _fail(self, result: CaseResult, peer: str, why: str) -> None:
        result.failures[peer] = why
        self._progress.failed(result.scenario, result.name, peer, why)

    def _rounds(self, result: CaseResult, opened: Opened) -> None:
        """Interleaved, each round beginning with another peer. A round with a dropped measurement is made up
        for by one more, within bounds."""
        wanted = self._config.rounds
        complete, number = 0, 0
        while complete < wanted and number < wanted * (1 + _EXTRA_ROUNDS):
            if not opened.peers:
                return
            kept = True
            for peer in rotated(opened.peers, number):
                self._progress.step(result.scenario, result.name, peer, complete + 1, wanted)
                try:
                    sample = self._sample(peer, number, opened.measure(peer))
                except NodeagentError as error:
                    opened.peers.remove(peer)
                    self._fail(result, peer, str(error))
                    continue
                result.samples.append(sample)
                kept = kept and not sample.dropped
            complete += kept
            number += 1

    def _sample(self, peer: str, number: int, measured: Measurement) -> Sample:
        return Sample(
            peer,
            number,
            measured.values,
            measured.steal_percent,
            measured.steal_percent > self._config.steal_percent,
            measured.curve,
        )
