"""Gathers views, inbound ports and hints into snapshots, and puts them in force."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from nodeagent.app.agent_ports import Engine
from nodeagent.errors import CompileError, EngineError
from nodeagent.snapshot.diff import check_consistent
from nodeagent.snapshot.values import EMPTY, Hints, Inbound, Snapshot, View

if TYPE_CHECKING:
    from nodeagent.dataplane.builder import Rejection

logger = logging.getLogger(__name__)

GATHER: Final = 0.01
"""Seconds between two changes of the engine: what comes in a burst is put in force together."""


@dataclass(slots=True)
class ApplyState:
    """How the last change went, for people."""

    applied_at: float = 0.0
    """Seconds since the epoch."""
    last_error: str = ""
    seconds: float = 0.0
    """How long the last change took."""
    failures: int = 0


class Configuration:
    """The snapshot that is wanted, and the one in force. Changes are published soon, at once if it is
    quiet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wanted = EMPTY
        self._applied = EMPTY
        self._handle: asyncio.Handle | None = None
        self._last = 0.0
        self.state = ApplyState()
        self.rejections: tuple[Rejection, ...] = ()
        self.after: Callable[[], None] = lambda: None
        """Called after each change that took effect."""

    @property
    def applied(self) -> Snapshot:
        """The snapshot in force."""
        return self._applied

    @property
    def settled(self) -> bool:
        """Whether nothing that is wanted waits to be put in force."""
        return self._handle is None

    def put_view(self, view: View) -> None:
        """A view has changed."""
        self._want(views={**self._wanted.views, view.name: view})

    def drop_view(self, name: str) -> None:
        """A view has ended."""
        self._want(views={key: view for key, view in self._wanted.views.items() if key != name})

    def put_inbound(self, uid: str, inbound: Inbound) -> None:
        """What a workload's ports speak."""
        if self._wanted.inbound.get(uid) != inbound:
            self._want(inbound={**self._wanted.inbound, uid: inbound})

    def drop_inbound(self, uid: str) -> None:
        """A workload is gone."""
        self._want(inbound={key: value for key, value in self._wanted.inbound.items() if key != uid})

    def put_hints(self, hints: Hints) -> None:
        """Where the services of the mesh are."""
        hints = replace(hints, answered=self._wanted.hints.answered)
        if hints != self._wanted.hints:
            self._want(hints=hints)

    def put_names(self, names: Mapping[str, tuple[bytes, ...]]) -> None:
        """Which host names are answered."""
        if names is not self._wanted.names:
            self._want(names=names)

    def expect_answers(self, answered: bool) -> None:
        """Whether connections may wait for what is asked of the control plane."""
        if answered != self._wanted.hints.answered:
            logger.info("connections %s configuration", "wait for" if answered else "do without missing")
            self._want(hints=replace(self._wanted.hints, answered=answered))

    def _want(self, **parts: Any) -> None:
        self._wanted = replace(self._wanted, **parts)
        if self._handle is None:
            delay = max(0.0, self._last + GATHER - time.monotonic())
            self._handle = asyncio.get_running_loop().call_later(delay, self.publish)

    def publish(self) -> None:
        """Put what is wanted in force now. If that cannot be, what is in force stays, and the error is
        kept."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        started = time.monotonic()
        snapshot = replace(self._wanted, version=self._applied.version + 1)
        try:
            check_consistent(snapshot, since=self._applied)
            self.rejections = tuple(self._engine.apply(snapshot))
        except (CompileError, EngineError) as error:
            self._note_failure(str(error))
        except Exception as error:
            # A defect of ours: what is in force must survive it, and people must see it.
            logger.exception("putting the configuration in force failed")
            self._note_failure(f"internal error: {error!r}")
        else:
            self._applied = snapshot
            self.state.last_error = ""
            self.state.applied_at = time.time()
            self.after()
        self._last = time.monotonic()
        self.state.seconds = self._last - started

    def _note_failure(self, error: str) -> None:
        self.state.failures += 1
        self.state.last_error = error
        logger.error("the configuration is not in force, the last one stays: %s", error)
