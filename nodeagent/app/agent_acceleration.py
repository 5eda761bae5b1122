"""Which workloads of this node are accelerated (dataplane/direct.py), kept to what is wanted.

A workload wants it by its label `nodeagent.io/acceleration: direct`, where the control plane tells labels, or by the
agent's `--direct-workloads`; the label's value `none` wins over that. Whatever fails leaves plain TCP, and is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nodeagent.admin.state import AcceleratedWorkload, AccelerationStatus, ProbeVerdict
from nodeagent.app.agent_enrolled import Enrolled
from nodeagent.app.agent_ports import Accelerator
from nodeagent.compiler.workloads import WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.errors import CapabilityError, DataplaneError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LABEL: Final = "nodeagent.io/acceleration"
DIRECT, NONE = "direct", "none"
REFUSALS: Final = (CapabilityError, DataplaneError, OSError)
"""What leaves plain TCP. OSError: no descriptors, or a bpf filesystem that may not be written to."""
PERIOD: Final = 1.0
"""Seconds between two attempts to let go of what is withdrawn."""


_Key: TypeAlias = tuple[str, int]
"""A workload's uid and its namespace's inode, for one may come again in another."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """A workload that wants to be accelerated."""

    name: str
    namespace: str
    netns: NetworkNamespace
    addresses: tuple[bytes, ...]


class Acceleration:
    """Reconciles what is in force with what is wanted, whenever changed() was called. run() until cancelled."""

    def __init__(
        self,
        config: AgentConfig,
        index: WorkloadIndex,
        accelerator: Accelerator,
        workloads: Iterable[Enrolled],
    ) -> None:
        """`workloads` are those of this node whenever it is iterated."""
        self._config = config
        self._index = index
        self._accelerator = accelerator
        self._workloads = workloads
        self._wake = asyncio.Event()
        self._complete = False
        self._cookies: dict[_Key, int] = {}
        """Those in force."""
        self._rows: dict[_Key, AcceleratedWorkload] = {}

    def changed(self) -> None:
        """Workloads came, went, or have other labels."""
        self._wake.set()

    def complete(self) -> None:
        """The CNI side has named all workloads: what an earlier agent has accelerated besides is let go."""
        self._complete = True
        self._wake.set()

    async def run(self) -> None:
        """Keep it so."""
        while True:
            self._wake.clear()
            wishes = dict(self._wishes())
            with contextlib.ExitStack() as closing:
                for wish in wishes.values():
                    closing.enter_context(wish.netns)
                remaining = await asyncio.to_thread(self._reconcile, wishes)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PERIOD if remaining else None)

    # -- what is wanted --

    def _wishes(self) -> Iterator[tuple[_Key, _Wish]]:
        for workload in self._workloads:
            if workload.state == "enrolled" and self._is_wanted(workload):
                pod = workload.pod
                try:
                    netns = NetworkNamespace.duplicate(workload.netns.fd)
                except REFUSALS as error:
                    logger.warning("%s/%s is not accelerated: %s", pod.namespace, pod.name, error)
                    continue
                yield (pod.uid, netns.inode), _Wish(pod.name, pod.namespace, netns, workload.addresses)

    def _is_wanted(self, workload: Enrolled) -> bool:
        pod = workload.pod
        # All processes of a shared namespace have one cookie.
        if self._config.direct == "off" or isinstance(workload.netns, NamespaceShare):
            return False
        asked = self._label(workload)
        if asked in (DIRECT, NONE):
            return asked == DIRECT
        return f"{pod.namespace}/{pod.service_account}" in self._config.direct_workloads

    def _label(self, workload: Enrolled) -> str:
        entry = self._index.workload_named(workload.pod.namespace, workload.pod.name)
        return dict(entry.labels or ()).get(LABEL, "") if entry is not None else ""

    # -- what is in force --

    def _reconcile(self, wishes: dict[_Key, _Wish]) -> bool:
        """Whether something remains to be done. Blocks."""
        for key in self._cookies.keys() - wishes.keys():
            withdraw = partial(self._accelerator.withdraw, self._cookies.pop(key))
            self._guarded("end an acceleration", withdraw)
        self._rows = {key: self._row(key, wish) for key, wish in wishes.items()}
        if self._complete:
            self._complete = False
            self._guarded("let go of accelerations", lambda: self._accelerator.settle(self._cookies.values()))
        return bool(self._guarded("let go of accelerated sockets", self._accelerator.tend))

    def _row(self, key: _Key, wish: _Wish) -> AcceleratedWorkload:
        """A workload after it was admitted, or refused."""
        before = self._rows.get(key)
        if key in self._cookies and before is not None:
            return before
        try:
            self._cookies[key] = self._accelerator.admit(wish.netns, wish.addresses)
        except REFUSALS as error:
            reason = " ".join(str(error).split())
            if before is None or before.reason != reason:
                logger.warning("%s/%s is not accelerated: %s", wish.namespace, wish.name, reason)
            return AcceleratedWorkload(wish.name, wish.namespace, "refused", reason)
        logger.info("%s/%s is accelerated", wish.namespace, wish.name)
        return AcceleratedWorkload(wish.name, wish.namespace, "accelerated")

    def _guarded(self, what: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except REFUSALS as error:
            logger.warning("cannot %s: %s", what, error)
            return None

    # -- what there is to tell --

    def status(self) -> AccelerationStatus:
        """For `nodeagent status`."""
        state = self._accelerator.state()
        return AccelerationStatus(
            tuple(self._rows.values()),
            tuple(ProbeVerdict(each.name, each.verdict, each.detail) for each in state.verdicts),
            state.sweep.sockets,
            state.sweep.queued,
            state.counters,
        )

    def warnings(self) -> Iterator[str]:
        """Labels that say nothing, wishes that were refused, and what makes them useless."""
        for workload in self._workloads:
            label = self._label(workload)
            if label not in ("", DIRECT, NONE):
                yield (
                    f"{workload.pod.namespace}/{workload.pod.name}: label {LABEL}: {label!r} is not known; "
                    f"use {DIRECT} or {NONE}"
                )
        rows = tuple(self._rows.values())
        for row in rows:
            if row.state == "refused":
                yield f"{row.namespace}/{row.name} is not accelerated: {row.reason}"
        if self._config.bypass == "off" and any(row.state == "accelerated" for row in rows):
            yield "acceleration has no effect with --bypass off: the engine is between workloads"


class AccelerationCollector(Collector):
    """What `direct` counts, for Prometheus."""

    def __init__(self, acceleration: Acceleration) -> None:
        self._acceleration = acceleration

    def collect(self) -> Iterator[Metric]:
        """All families."""
        status = self._acceleration.status()
        events = CounterMetricFamily(
            "nodeagent_direct_events",
            "Sockets that were taken in, messages and bytes that went past TCP, messages that did not by reason.",
            labels=["event"],
        )
        for name, value in status.counters.items():
            events.add_metric([name], value)
        workloads = GaugeMetricFamily(
            "nodeagent_direct_workloads", "Workloads that opted in.", labels=["state"]
        )
        for state in ("accelerated", "refused"):
            workloads.add_metric([state], sum(row.state == state for row in status.workloads))
        yield events
        yield workloads
        yield GaugeMetricFamily(
            "nodeagent_direct_sockets", "Sockets that are accelerated.", value=status.sockets
        )
        yield GaugeMetricFamily(
            "nodeagent_direct_queued_bytes", "Bytes that wait at accelerated sockets.", value=status.queued
        )
