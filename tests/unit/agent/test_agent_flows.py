"""Connections past the engine in the agent's reports: when it looks at them, and what it counts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nodeagent.app import agent_flows
from nodeagent.app.agent_flows import FlowCollector, FlowKeeper
from nodeagent.dataplane.bypass_flows import Sample
from nodeagent.dataplane.report import Counter
from nodeagent.errors import BpfError


class Flows:
    """A double of NodeFlows: a pipe stands for the ring buffer."""

    def __init__(self) -> None:
        self.begun = 0
        self.noted: list[Sample] = []
        self.failures: list[Exception] = []
        self.reading, self.writing = os.pipe()

    def begin(self) -> None:
        self._fail()
        self.begun += 1

    def fileno(self) -> int:
        return self.reading

    def look(self) -> Sample:
        self._fail()
        return Sample([], [len(self.noted)])

    def note(self, sample: Sample) -> None:
        self.noted.append(sample)

    def counters(self) -> list[Counter]:
        return [
            Counter("cx_total", "Opened", False, 7),
            Counter("cx_active", "Live", True, 2),
            Counter("rtt_count", "", False, 4),
            Counter("rtt_us_sum", "", False, 600),
        ]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flows]:
    monkeypatch.setattr(agent_flows, "PERIOD", 0.005)
    made = Flows()
    yield made
    os.close(made.reading)
    os.close(made.writing)


def _keeper(flows: Flows, pull: Callable[[], None] = lambda: None) -> FlowKeeper:
    keeper = FlowKeeper(flows, pull)
    keeper.complete()
    return keeper


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_waits_until_workloads_are_known(flows: Flows) -> None:
    keeper = FlowKeeper(flows, lambda: None)
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.02)
    assert not flows.begun
    keeper.complete()
    await _until(lambda: flows.noted)
    await _end(task)


async def test_it_looks_now_and_then_and_at_the_end(flows: Flows) -> None:
    keeper = _keeper(flows)
    task = asyncio.create_task(keeper.run())
    await _until(lambda: len(flows.noted) >= 2)
    await _end(task)
    seen = len(flows.noted)
    await keeper.stop()
    assert flows.begun == 1
    assert len(flows.noted) == seen + 1


async def test_one_look_that_fails_is_not_the_last(flows: Flows, caplog: pytest.LogCaptureFixture) -> None:
    keeper = _keeper(flows)
    task = asyncio.create_task(keeper.run())
    await _until(lambda: flows.begun == 1)
    flows.failures.append(BpfError("the map is gone"))
    await _until(lambda: not flows.failures)
    seen = len(flows.noted)
    await _until(lambda: len(flows.noted) > seen)
    assert "cannot look at connections past the engine" in caplog.text
    await _end(task)


async def test_many_events_are_drained_at_once(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_flows, "PERIOD", 60.0)
    pulled: list[bytes] = []
    keeper = _keeper(flows, lambda: pulled.append(os.read(flows.reading, 1)))
    task = asyncio.create_task(keeper.run())
    await _until(lambda: flows.begun == 1)
    os.write(flows.writing, b"!")
    await _until(lambda: pulled == [b"!"])
    await _end(task)


async def test_the_agent_goes_on_without_them(flows: Flows, caplog: pytest.LogCaptureFixture) -> None:
    flows.failures.append(BpfError("no such map"))
    keeper = _keeper(flows)
    task = asyncio.create_task(keeper.run())
    await _until(lambda: not flows.failures)
    await asyncio.sleep(0.01)
    assert not task.done()
    assert "missing in metrics and access log: no such map" in caplog.text
    assert keeper.counters() == []
    assert list(FlowCollector(keeper).collect()) == []
    await _end(task)
    await keeper.stop()
    assert not flows.noted


async def test_what_is_counted_is_exported(flows: Flows) -> None:
    keeper = _keeper(flows)
    task = asyncio.create_task(keeper.run())
    await _until(lambda: flows.begun == 1)
    registry = CollectorRegistry()
    registry.register(FlowCollector(keeper))
    text = generate_latest(registry).decode()
    for line in (
        "nodeagent_bypass_cx_total 7.0",
        "nodeagent_bypass_cx_active 2.0",
        "nodeagent_bypass_rtt_seconds_count 4.0",
        "nodeagent_bypass_rtt_seconds_sum 0.0006",
    ):
        assert line in text
    await _end(task)
