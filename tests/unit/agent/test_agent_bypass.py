"""The agent's events reach bypass: who is here, what holds, and when live connections are judged again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
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

    def update(
        self, snapshot: Snapshot, workloads: Iterable[tuple[LocalWorkload, Any]], unusable: Collection[str]
    ) -> bool:
        if self.failing:
            raise KeyError("a defect")
        self.here, self.unusable = [workload for workload, _ in workloads], unusable
        return self.judge_again

    def suspend(self, reason: str) -> None:
        self.suspended = reason

    def revoke(self) -> int:
        self.revoked += 1
        if self.error is not None:
            raise self.error
        return 1


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


async def test_a_defect_suspends_bypass_and_nothing_else() -> None:
    scene = Scene(enrolled("a"))
    scene.bypass.failing = True
    scene.keeper.refresh()
    assert "defect" in scene.bypass.suspended
