"""Connected UDP sockets looked at again when UDP changes, in a thread, as often as its share of time allows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from nodeagent.app.agent_ports import Datagrams
from nodeagent.errors import DataplaneError

if TYPE_CHECKING:
    from nodeagent.dataplane.bypass_services import LocalWorkload
    from nodeagent.dataplane.datagram_end import Revision, SocketPeer
    from nodeagent.dataplane.datagram_plan import DatagramPlan
    from nodeagent.dataplane.netns import NetworkNamespace

logger = logging.getLogger(__name__)

SHARE: Final = 0.05
"""Of the time that this may take."""
AGAIN: Final = 1.0
"""Seconds to a second look: a connect() that was decided before the change is through by then."""


class DatagramSockets:
    """Has those ended that may not send any more."""

    def __init__(self, datagrams: Datagrams) -> None:
        self._datagrams = datagrams
        self._plan: DatagramPlan | None = None
        self._here: list[tuple[LocalWorkload, NetworkNamespace]] = []
        self._lost: set[SocketPeer] = set()
        self._looks = 0
        self.settled = True
        """What is in force was gone by once."""
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error = ""

    def changed(
        self, revision: Revision, plan: DatagramPlan, here: list[tuple[LocalWorkload, NetworkNamespace]]
    ) -> None:
        """Go by a plan that is in force now."""
        self._plan, self._here = plan, here
        if not revision.tightened and not revision.lost:
            return
        self._lost |= revision.lost
        self._looks = 2
        self.settled = False
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="look at connected UDP sockets")

    async def _run(self) -> None:
        try:
            while self._looks:
                self._looks -= 1
                self._woken.clear()
                started = time.monotonic()
                lost = frozenset(self._lost)
                await self._look(lost)
                self.settled = self._looks < 2  # else it has changed meanwhile
                if not self._looks:
                    self._lost -= lost
                    return
                await asyncio.sleep((time.monotonic() - started) / SHARE)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), AGAIN)
        finally:
            self._task = None
            self.settled = True

    async def _look(self, lost: frozenset[SocketPeer]) -> None:
        assert self._plan is not None
        try:
            ended = await asyncio.to_thread(self._datagrams.end_sockets, self._plan, self._here, lost)
        except DataplaneError as error:
            if str(error) != self._error:
                logger.error("connected UDP sockets that may not send any more may live on: %s", error)
            self._error = str(error)
            return
        self._error = ""
        if ended:
            logger.info("ended %d connected UDP sockets that may not send any more", ended)

    async def stop(self) -> None:
        """Wait for what is under way."""
        self._looks = 0
        self._woken.set()
        if self._task is not None:
            await asyncio.wait((self._task,))
