"""Reports of connections past the engine on a node: what programs tell of them, what their sockets carry, and what has
to be put right when nothing tells."""

from __future__ import annotations

import logging
from typing import Final

from nodeagent.dataplane.bypass_flows import FlowTable, LiveFlow, Sample
from nodeagent.dataplane.bypass_layout import Flow
from nodeagent.dataplane.engine import EngineOwner
from nodeagent.dataplane.flow_names import FlowDirectory
from nodeagent.dataplane.report import Counter
from nodeagent.errors import BpfError, EngineError

logger = logging.getLogger(__name__)

_SWEEP_ROUNDS: Final = 12
"""Rounds of samples between two sweeps of the map. As long connections of an earlier agent are looked for: their
workloads may be enrolled later than others."""


class NodeFlows:
    """Has an engine report of connections past it, which drain_stats() and the like then tell of. begin() when the
    workloads of an earlier agent are enrolled again; look() and note() now and then. Ends with the engine."""

    def __init__(self, engine: EngineOwner, table: FlowTable, ring: int, directory: FlowDirectory) -> None:
        """`ring` is the descriptor of the map `events`, which stays the caller's."""
        self._engine = engine
        self._table = table
        self._ring = ring
        self._directory = directory
        self._rounds = 0
        self._applied = engine.applied
        """By which names were told."""

    def begin(self) -> None:
        """Follow from now on, also what has been going on. EngineError or BpfError if that is not possible."""
        self._reader = self._engine.follow_flows(self._ring, self._directory, self._table.limit)
        self._table.on_doomed = self._note_doomed
        self._adopt()

    def fileno(self) -> int:
        """Readable when so many events wait that they should be drained at once."""
        return self._reader.fileno()

    def _note_doomed(self, live: LiveFlow) -> None:
        try:
            self._reader.note_revoked(live)
        except EngineError as error:
            logger.warning("the access log will not say why a connection was ended: %s", error)

    def look(self) -> Sample:
        """What live connections have carried until now, for note(). Blocks; to be called in another thread."""
        found = self._table.sample(self._reader.namespaces())
        self._rounds += 1
        if self._rounds % _SWEEP_ROUNDS == 0:
            self._sweep()
        return found

    def _sweep(self) -> None:
        try:
            if swept := self._table.sweep():
                logger.info("%d connections past the engine had ended without a word", swept)
        except BpfError as error:
            logger.warning("the map of connections past the engine cannot be swept: %s", error)

    def note(self, sample: Sample) -> None:
        """Count it."""
        self._reader.note(sample.sockets, sample.looked_at)
        applied = self._engine.applied
        if applied is not self._applied or self._rounds % _SWEEP_ROUNDS == 0:
            self._reader.forget_names()
        self._applied = applied
        if self._rounds <= _SWEEP_ROUNDS:
            self._adopt()

    def _adopt(self) -> None:
        """What has ended already is told of by events that wait: they come first. Said again, configuration that had to
        be asked for may be there."""
        self._reader.read()
        self._reader.adopt(
            (key, value)
            for key, value in self._table.earlier()
            if self._directory.workload_of(Flow.unpack(value).netns_cookie) is not None
        )

    def counters(self) -> list[Counter]:
        """What was counted of connections past the engine; names are without prefix."""
        return [
            *self._reader.counters(),
            Counter(
                "cx_revoked_total",
                "Connections ended because policy does not allow them any more, or their endpoint is gone",
                False,
                self._table.revoked,
            ),
            Counter(
                "entries_swept_total",
                "Entries of connections that had ended without a word",
                False,
                self._table.swept,
            ),
        ]
