"""Bypass in the agent: its events turned into what is to pass the engine, and live connections judged again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_enrolled import Enrolled
from nodeagent.app.agent_enrolment import Enrolment
from nodeagent.app.agent_identity import Identities
from nodeagent.app.agent_ports import Bypass, Engine
from nodeagent.errors import DataplaneError
from nodeagent.xds.backoff import Backoff

if TYPE_CHECKING:
    from nodeagent.dataplane.bypass_services import LocalWorkload
    from nodeagent.dataplane.netns import NetworkNamespace

logger = logging.getLogger(__name__)

LOOK: Final = 0.2
"""Seconds between two looks at whether the connections of a workload that goes have ended."""
RETRY: Final = (1.0, 30.0)
"""Seconds until connections that could not be ended are tried again: at first, and at most."""


class BypassKeeper:
    """Keeps bypass by what is in force. It is to be told when any of it changes: refresh() of workloads and identities,
    configured() of configuration alone, which is often."""

    def __init__(
        self,
        bypass: Bypass,
        engine: Engine,
        configuration: Configuration,
        enrolment: Enrolment,
        identities: Identities,
    ) -> None:
        self._bypass = bypass
        self._engine = engine
        self._configuration = configuration
        self._enrolment = enrolment
        self._identities = identities
        self._here: list[tuple[LocalWorkload, NetworkNamespace]] = []
        self._defect = ""
        self._judge_again = False
        self._judging: asyncio.Task[None] | None = None
        self._backoff = Backoff(*RETRY)
        self._retry: asyncio.TimerHandle | None = None
        self._more: asyncio.Handle | None = None
        self._failure = ""

    @property
    def settled(self) -> bool:
        """Whether all of what is in force is gone by, and live connections have been judged by it."""
        return self._judging is None and self._more is None

    def refresh(self) -> None:
        """Go by workloads and identities as they are now, and by the configuration in force."""
        self._here = list(local_workloads(self._engine, self._enrolment, self._identities))
        self.configured()

    def configured(self) -> None:
        """Go by the configuration in force. A defect here concerns bypass alone."""
        unusable = {each.table for each in self._configuration.rejections if each.kind == "workload"}
        try:
            self._judge_again |= self._bypass.update(self._configuration.applied, self._here, unusable)
        except Exception as error:
            if repr(error) != self._defect:
                logger.exception("what passes the engine is not up to date")
            self._defect = repr(error)
            self._bypass.suspend("a defect of the agent; its log tells")
            return
        self._defect = ""
        if self._bypass.pending and self._more is None:
            self._more = asyncio.get_running_loop().call_soon(self._go_on)
        if self._judge_again:
            self._backoff.reset()
            self._judge_soon()

    def _go_on(self) -> None:
        """With the next part, after others had their turn."""
        self._more = None
        self.configured()

    def _judge_soon(self) -> None:
        self._judge_again = True
        self._forget_retry()
        if self._judging is None:
            self._judging = asyncio.create_task(self._judge(), name="judge connections past the engine")

    async def _judge(self) -> None:
        """As often as something changed meanwhile. What could not be ended is tried again later."""
        failed = False
        try:
            while self._judge_again:
                self._judge_again = False
                failed = not await self._revoke()
        finally:
            self._judging = None
        if failed:
            self._retry = asyncio.get_running_loop().call_later(self._backoff.next(), self._judge_soon)

    async def _revoke(self) -> bool:
        """Whether nothing lives on that may not."""
        try:
            ended = await asyncio.to_thread(self._bypass.revoke)
        except DataplaneError as error:
            if str(error) != self._failure:
                logger.error("connections past the engine that are not allowed any more live on: %s", error)
            self._failure = str(error)
            return False
        if ended or self._failure:
            logger.info("ended %d connections past the engine that are not allowed any more", ended)
        self._failure = ""
        return True

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def drain(self, workload: Enrolled, seconds: float) -> None:
        """Let the connections of a workload that goes end, as those in the engine, and end what is left."""
        deadline = time.monotonic() + seconds
        uid = workload.pod.uid
        who = _cookie(workload), frozenset(filter(_can_be_met, workload.addresses))
        if not who[0]:
            return
        try:
            while await asyncio.to_thread(self._bypass.count_of, *who):
                if time.monotonic() >= deadline:
                    ended = await asyncio.to_thread(self._bypass.end_all_of, *who, workload.netns)
                    logger.info("ended %d connections past the engine of %s, which goes", ended, uid)
                    break
                await asyncio.sleep(LOOK)
        except DataplaneError as error:
            logger.error("connections past the engine of %s, which goes, live on: %s", uid, error)

    async def stop(self) -> None:
        """Wait for what is under way; nothing is tried again."""
        if self._more is not None:
            self._more.cancel()
        if self._judging is not None:
            await asyncio.wait((self._judging,))
        self._forget_retry()


def local_workloads(
    engine: Engine, enrolment: Enrolment, identities: Identities
) -> Iterator[tuple[LocalWorkload, NetworkNamespace]]:
    """The workloads of this node that are captured by eBPF, as programs know them, and their namespaces."""
    # Importing it loads the extension.
    from nodeagent.dataplane.bypass_services import LocalWorkload

    for each in enrolment:
        number = engine.number(each.pod.uid)
        cookie = _cookie(each)
        if not cookie or number is None or each.view is None or each.state != "enrolled":
            continue
        in_force = not each.identity or identities.client_certificate(each.identity) is not None
        addresses = tuple(filter(_can_be_met, each.addresses))
        yield (
            LocalWorkload(each.pod.uid, number, each.view.name, addresses, cookie, each.identity, in_force),
            each.netns,
        )


def _cookie(workload: Enrolled) -> int:
    return workload.capture.cookie if workload.capture is not None else 0


def _can_be_met(address: bytes) -> bool:
    """Not loopback, where every workload has the same."""
    return address[:13] != bytes(10) + b"\xff\xff\x7f" and address != bytes(15) + b"\x01"
