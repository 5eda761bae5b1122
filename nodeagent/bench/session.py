"""One run of the benchmark: what takes part is chosen first, then it is run."""

from __future__ import annotations

import datetime
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from nodeagent.bench.case import Scenario
from nodeagent.bench.machine import describe_machine
from nodeagent.bench.peers import choose_peers, find_peers
from nodeagent.bench.peers.captured import captured_peers
from nodeagent.bench.results import SUBJECT, Results
from nodeagent.bench.runner import Progress, Runner
from nodeagent.bench.scenarios import choose_scenarios
from nodeagent.bench.stage import Stage, program
from nodeagent.config.bench import BenchConfig, choose_cores
from nodeagent.errors import CapabilityError, ConfigError


class Session:
    """Chooses scenarios and peers on construction; `results.found` and `.missing` tell which peers are here.

    ConfigError for names that there are not, CapabilityError if the machine lacks what is needed in any case.
    """

    def __init__(self, scenarios: Sequence[str], peers: Sequence[str], config: BenchConfig) -> None:
        self._config = config
        self._cores = choose_cores(config.workers)
        self._scenarios = choose_scenarios(scenarios, captured=config.captured)
        _check_case(self._scenarios, config)
        chosen = captured_peers(peers) if config.captured else choose_peers(peers)
        program("load")  # nothing can be measured without
        found, missing = find_peers(chosen)
        if SUBJECT in missing:
            raise CapabilityError(missing[SUBJECT])
        self._peers = [peer for peer in chosen if peer.name in found]
        self.results = Results(
            machine=describe_machine(self._cores),
            settings=asdict(config),
            command=shlex.join(["nodeagent", *sys.argv[1:]]),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            found=found,
            missing=missing,
        )

    def run(self, progress: Progress) -> None:
        """Measure everything; `results` fill up. After Ctrl-C or SIGTERM they hold what there was until
        then."""
        with _interruptible(), Stage(self._cores) as stage:
            Runner(stage, self._peers, self._config, self.results, progress).run(self._scenarios)


def _check_case(scenarios: Sequence[Scenario], config: BenchConfig) -> None:
    """ConfigError if nothing would be measured."""
    if any(config.case in case.name for scenario in scenarios for case in scenario.cases(config)):
        return
    names = ", ".join(scenario.name for scenario in scenarios)
    raise ConfigError(f"--case {config.case}: no case of {names} has this in its name")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM into what Ctrl-C does, so that the stage is cleared after both."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
