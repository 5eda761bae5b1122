"""Connections past the engine in the agent's reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from nodeagent.app.agent_ports import Flows
from nodeagent.errors import DataplaneError

if TYPE_CHECKING:
    from nodeagent.dataplane.report import Counter

logger = logging.getLogger(__name__)

PERIOD: Final = 5.0
"""Seconds between two looks at what live connections have carried."""
_RTT: Final = ("rtt_count", "rtt_us_sum")


class FlowKeeper:
    """Has them reported of: run() from complete() on, until stop()."""

    def __init__(self, flows: Flows, pull: Callable[[], None]) -> None:
        """`pull` drains what there is to report."""
        self._flows = flows
        self._pull = pull
        self._complete = asyncio.Event()
        self._begun = False

    def complete(self) -> None:
        """Workloads of an earlier agent are enrolled again, so that it is known whose connections there are."""
        self._complete.set()

    async def run(self) -> None:
        """Until cancelled. Without them in its reports the agent goes on all the same."""
        await self._complete.wait()
        try:
            self._flows.begin()
        except DataplaneError as error:
            logger.error("connections past the engine are missing in metrics and access log: %s", error)
            await asyncio.Event().wait()
        self._begun = True
        asyncio.get_running_loop().add_reader(self._flows.fileno(), self._pull)
        while True:
            await self._look()
            await asyncio.sleep(PERIOD)

    async def _look(self) -> None:
        try:
            self._flows.note(await asyncio.to_thread(self._flows.look))
        except Exception:
            logger.exception("cannot look at connections past the engine")

    async def stop(self) -> None:
        """Look a last time; the next agent counts from there."""
        if not self._begun:
            return
        asyncio.get_running_loop().remove_reader(self._flows.fileno())
        self._pull()
        await self._look()

    def counters(self) -> list[Counter]:
        """What was counted; nothing before they are followed."""
        return list(self._flows.counters()) if self._begun else []


class FlowCollector(Collector):
    """What is counted of connections past the engine beside Istio's metrics, for Prometheus."""

    def __init__(self, keeper: FlowKeeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        """All families."""
        values = {}
        for each in self._keeper.counters():
            values[each.name] = each.value
            name = f"nodeagent_bypass_{each.name}"
            if each.gauge:
                yield GaugeMetricFamily(name, each.help, value=each.value)
            elif each.name not in _RTT:
                yield CounterMetricFamily(name, each.help, value=each.value)
        if values:
            yield SummaryMetricFamily(
                "nodeagent_bypass_rtt_seconds",
                "Smoothed round trip times, at the end of connections.",
                count_value=values["rtt_count"],
                sum_value=values["rtt_us_sum"] / 1e6,
            )
