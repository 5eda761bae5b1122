"""When connected UDP sockets are looked at, and when UDP is put in force at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from typing import Any, cast

import pytest

from nodeagent.app import agent_datagram_sockets, agent_datagrams
from nodeagent.app.agent_datagram_sockets import DatagramSockets
from nodeagent.app.agent_datagrams import DatagramKeeper
from nodeagent.app.agent_ports import Datagrams
from nodeagent.compiler.workloads import IndexChange, WorkloadIndex
from nodeagent.dataplane.datagram_end import Revision
from nodeagent.dataplane.datagram_plan import DatagramPlan
from nodeagent.errors import NetnsError

LOST = (1, bytes(16), 53)


class FakeDatagrams:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.looks: list[Set[Any]] = []
        self.applied: list[DatagramPlan] = []
        self.error: Exception | None = None

    def end_sockets(self, plan: DatagramPlan, here: object, lost: Set[Any]) -> int:
        self.looks.append(lost)
        if self.error is not None:
            raise self.error
        return 0

    def apply(self, services: object, plan: DatagramPlan) -> Revision:
        self.applied.append(plan)
        return Revision()

    def guard(self, namespaces: object) -> None:
        pass


@pytest.fixture
def datagrams(monkeypatch: pytest.MonkeyPatch) -> FakeDatagrams:
    monkeypatch.setattr(agent_datagram_sockets, "AGAIN", 0.01)
    monkeypatch.setattr(agent_datagrams, "DELAY", 0)
    return FakeDatagrams()


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(cast("Any", body()), 5))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_sockets_are_looked_at_twice_after_a_change_that_forbids(datagrams: FakeDatagrams) -> None:
    async def body() -> None:
        sockets = DatagramSockets(cast(Datagrams, datagrams))
        sockets.changed(Revision(), DatagramPlan(), [])
        sockets.changed(Revision(lost=frozenset([LOST])), DatagramPlan(), [])
        await until(lambda: len(datagrams.looks) == 2)
        await asyncio.sleep(0.03)
        assert datagrams.looks == [{LOST}, {LOST}], "a connect() may have been under way at the first"
        sockets.changed(Revision(tightened=True), DatagramPlan(), [])
        await until(lambda: len(datagrams.looks) == 4)
        assert datagrams.looks[-1] == set(), "what is gone is forgotten"
        await sockets.stop()

    run(body)


def test_an_error_is_told_once(datagrams: FakeDatagrams, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        datagrams.error = NetnsError("no")
        sockets = DatagramSockets(cast(Datagrams, datagrams))
        sockets.changed(Revision(tightened=True), DatagramPlan(), [])
        await until(lambda: len(datagrams.looks) == 2)
        await sockets.stop()

    run(body)
    assert len([each for each in caplog.records if "may live on" in each.message]) == 1


def test_nothing_is_put_in_force_before_the_mesh_is_known(
    datagrams: FakeDatagrams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier agent has said holds until then."""
    monkeypatch.setattr(agent_datagrams, "local_workloads", lambda *parts: iter(()))
    known = []

    async def body() -> None:
        nothing = cast("Any", None)
        parts = (nothing, WorkloadIndex("node"), nothing, nothing, nothing)
        keeper = DatagramKeeper(
            cast(Datagrams, datagrams), *parts, has_identities=True, is_synced=lambda: bool(known)
        )
        keeper.index_changed(IndexChange())
        await asyncio.sleep(0.01)
        assert datagrams.applied == []
        known.append(True)
        keeper.changed()
        await until(lambda: len(datagrams.applied) == 1)
        await keeper.stop()

    run(body)
