"""The agent's events reach bypass: who is here, what holds, and when live connections are judged again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodeagent.app.agent_bypass import BypassKeeper
from nodeagent.dataplane.builder import Rejection
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.errors import NetnsError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import EMPTY, Snapshot

V4, LOOPBACK = parse_address("10.0.0.1"), parse_address("127.0.0.1")


@dataclass
class FakeBypass:
    """Writes down what it is told."""

    judge_again: bool = False
    failing: bool = False
    here: list[LocalWorkload] = field(default_factory=list)
    unusable: Collection[str] = ()
    suspended: str = ""
    revoked: int = 0
    error: Exception | None = None
    parts: int = 0
    """That update() is to be called for yet."""

    there: int = 0
    """Connections of whoever asks."""
    ended: int = 0

    def count_of(self, cookie: int, addresses: Collection[bytes]) -> int:
        assert (cookie, addresses) == (7, {V4})
        return self.there

    def end_all_of(self, cookie: int, addresses: Collection[bytes], namespace: Any) -> int:
        assert (cookie, addresses) == (7, {V4})
        self.ended, self.there = self.there, 0
        return self.ended

    @property
    def pending(self) -> bool:
        return self.parts > 0

    def update(
        self, snapshot: Snapshot, workloads: Iterable[tuple[LocalWorkload, Any]], unusable: Collection[str]
    ) -> bool:
        if self.failing:
            raise KeyError("a defect")
        self.parts = max(0, self.parts - 1)
        self.here, self.unusable = [workload for workload, _ in workloads], unusable
        return self.judge_again

    def suspend(self, reason: str) -> None:
        self.suspended = reason

    def revoke(self) -> int:
        self.revoked += 1
        if self.error is not None:
            raise self.error
        return 1


class Timers:
    """Writes down what the loop is to call later, and has it called at once, or not at all in a test's time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at_once: bool) -> None:
        loop = asyncio.get_running_loop()
        self.delays: list[float] = []
        self.handles: list[asyncio.TimerHandle] = []
        self._later, self._delay = loop.call_later, 0 if at_once else 3600
        monkeypatch.setattr(loop, "call_later", self._call_later)

    def _call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self.delays.append(delay)
        self.handles.append(self._later(self._delay, callback))
        return self.handles[-1]

    async def until_made(self, count: int) -> None:
        await until(lambda: len(self.handles) >= count)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def enrolled(uid: str, *, state: str = "enrolled", cookie: int = 7, identity: str = "") -> Any:
    return SimpleNamespace(
        pod=SimpleNamespace(uid=uid),
        state=state,
        capture=SimpleNamespace(cookie=cookie) if cookie >= 0 else None,
        view=SimpleNamespace(name="v"),
        addresses=(V4, LOOPBACK),
        identity=identity,
        netns=None,
    )


class Scene:
    def __init__(self, *workloads: Any, certified: Collection[str] = ()) -> None:
        self.bypass = FakeBypass()
        self.configuration = SimpleNamespace(applied=EMPTY, rejections=())
        self.workloads = list(workloads)
        self.numbers = {"a": 1, "b": 2}
        self.certified = set(certified)
        self.keeper = BypassKeeper(
            cast(Any, self.bypass),
            cast(Any, SimpleNamespace(number=self.numbers.get)),
            cast(Any, self.configuration),
            cast(Any, self.workloads),
            cast(
                Any, SimpleNamespace(client_certificate=lambda name: name if name in self.certified else None)
            ),
        )

    def fail_to_revoke(self) -> None:
        self.bypass.judge_again, self.bypass.error = True, NetnsError("no memory")
        self.keeper.configured()

    async def until_revoked_again(self, times: int) -> None:
        count = self.bypass.revoked + times
        await until(lambda: self.bypass.revoked >= count)


@pytest.mark.parametrize(
    "workload",
    [
        enrolled("a", state="draining"),
        enrolled("a", cookie=0),
        enrolled("a", cookie=-1),
        enrolled("unknown to the engine"),
    ],
)
async def test_only_who_is_served_and_captured_takes_part(workload: Any) -> None:
    scene = Scene(workload, enrolled("b", cookie=8))
    scene.keeper.refresh()
    assert [each.uid for each in scene.bypass.here] == ["b"]
    assert scene.bypass.here[0] == LocalWorkload("b", 2, "v", (V4,), 8)


async def test_a_certificate_must_be_in_force() -> None:
    scene = Scene(enrolled("a", identity="spiffe://m/ns/n/sa/a"), certified=["spiffe://m/ns/n/sa/a"])
    scene.keeper.refresh()
    assert scene.bypass.here[0].in_force
    scene.certified.clear()
    scene.keeper.refresh()
    assert not scene.bypass.here[0].in_force


async def test_guards_that_cannot_be_made_are_told() -> None:
    scene = Scene(enrolled("a"))
    scene.configuration.rejections = (
        Rejection("a", "port 80", "bad regex", "workload"),
        Rejection("v/80", "host", "bad regex"),
    )
    scene.keeper.configured()
    assert scene.bypass.unusable == {"a"}


async def test_live_connections_are_judged_once_for_what_comes_meanwhile() -> None:
    scene = Scene(enrolled("a"))
    scene.keeper.refresh()
    scene.bypass.judge_again = True
    for _ in range(3):
        scene.keeper.configured()
    await scene.keeper.stop()
    assert scene.bypass.revoked == 1
    scene.bypass.error = NetnsError("gone")
    scene.keeper.configured()
    await scene.keeper.stop()
    assert scene.bypass.revoked == 2, "an error is no end"
    scene.bypass.judge_again = False
    scene.keeper.configured()
    await asyncio.sleep(0)
    assert scene.bypass.revoked == 2


async def test_a_large_mesh_is_taken_in_parts() -> None:
    scene = Scene(enrolled("a"))
    scene.bypass.parts = 5
    scene.keeper.refresh()
    scene.keeper.configured()
    assert scene.bypass.parts == 3
    await asyncio.sleep(0)
    assert scene.bypass.parts == 2, "others have their turn in between"
    await until(lambda: not scene.bypass.pending)
    scene.bypass.parts = 5
    scene.keeper.configured()
    await scene.keeper.stop()
    await asyncio.sleep(0)
    assert scene.bypass.parts == 4, "stopped"


async def test_who_leaves_has_its_connections_drained() -> None:
    scene, leaving = Scene(), enrolled("a", state="draining")
    scene.bypass.there = 3
    await scene.keeper.drain(leaving, 0)
    assert scene.bypass.ended == 3, "at the end of the time"
    scene.bypass.there, scene.bypass.ended = 3, 0
    draining = asyncio.create_task(scene.keeper.drain(leaving, 60))
    await asyncio.sleep(0.01)
    assert not draining.done()
    scene.bypass.there = 0
    await draining
    assert scene.bypass.ended == 0, "they ended by themselves"
    await scene.keeper.drain(enrolled("a", cookie=0), 60)  # not captured by eBPF


async def test_what_could_not_be_ended_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene, timers = Scene(enrolled("a")), Timers(monkeypatch, at_once=True)
    scene.fail_to_revoke()
    await timers.until_made(7)
    for delay, longest in zip(timers.delays, (1, 2, 4, 8, 16, 30, 30), strict=False):
        assert longest / 2 <= delay <= longest
    scene.bypass.error = NetnsError("not permitted")
    await scene.until_revoked_again(3)
    told = [each.message.rsplit(": ")[-1] for each in caplog.records if each.levelname == "ERROR"]
    assert told == ["no memory", "not permitted"], "once each"
    scene.bypass.error = None
    await scene.until_revoked_again(1)
    await scene.keeper.stop()
    made, revoked = len(timers.handles), scene.bypass.revoked
    await asyncio.sleep(0)
    assert (len(timers.handles), scene.bypass.revoked) == (made, revoked), "they are ended: that is all"


async def test_a_change_does_not_wait_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, timers = Scene(enrolled("a")), Timers(monkeypatch, at_once=False)
    for attempt in (1, 2, 3):
        scene.fail_to_revoke()
        await timers.until_made(attempt)
    assert scene.bypass.revoked == 3
    assert max(timers.delays) <= 1, "it begins anew"
    await scene.keeper.stop()
    assert all(each.cancelled() for each in timers.handles)


async def test_a_defect_suspends_bypass_and_nothing_else() -> None:
    scene = Scene(enrolled("a"))
    scene.bypass.failing = True
    scene.keeper.refresh()
    assert "defect" in scene.bypass.suspended
