"""What is planned gets into the maps in an order in which nothing is let through that should not be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import pytest

from nodeagent.dataplane.bypass import Bypass
from nodeagent.dataplane.bypass_layout import (
    NO_BYPASS,
    Access,
    AccessKey,
    Backend,
    BackendKey,
    ServiceKey,
    Source,
)
from nodeagent.dataplane.bypass_maps import BypassMaps
from nodeagent.dataplane.bypass_plan import PlanChanges
from nodeagent.dataplane.bypass_services import Slots
from nodeagent.dataplane.bypass_verdict import Verdict
from nodeagent.errors import BpfError

ALLOW, DENY = Verdict(Access.ALLOW), Verdict(Access.DENY, "p")
KEY, OTHER = ServiceKey(bytes(16), 1, 80, 6), ServiceKey(bytes(16), 1, 81, 6)
PORT = AccessKey(1, 2, 9000, 6)


def backend(number: int) -> Backend:
    return Backend(bytes(15) + bytes([number]), number, 9000)


class Recorded:
    """A map that writes down what is done to it, and refuses when it is told to."""

    def __init__(self, name: str, log: list[tuple[str, str, int]], limit: int) -> None:
        self.name = name
        self.found: dict[bytes, bytes] = {}
        self.refuses = False
        self._log = log
        self._limit = limit

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        if self.refuses:
            raise BpfError(f"BPF map {self.name} took none")
        self._log.append((self.name, "put", len(entries)))
        self.found.update(entries)
        assert len(self.found) <= self._limit, "the map would have refused that"

    def discard(self, key: bytes) -> None:
        self._log.append((self.name, "take", 1))
        self.found.pop(key, None)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.found)

    def memory_and_limit(self) -> tuple[int, int]:
        return 0, self._limit


class RecordedMaps:
    def __init__(self, limit: int) -> None:
        self.log: list[tuple[str, str, int]] = []
        for name in ("sources", "services", "backends", "access"):
            setattr(self, name, Recorded(name, self.log, limit))
        self.sources: Recorded
        self.services: Recorded
        self.backends: Recorded
        self.access: Recorded
        self.life = NO_BYPASS

    def begin_life(self, number: int) -> None:
        self.log.append(("life", "put", number))
        self.life = number

    def steps(self) -> list[str]:
        """What was done since the last call."""
        found = [f"{what} {name}" for name, what, _ in self.log]
        self.log.clear()
        return found


class Scene:
    def __init__(self, limit: int = 100) -> None:
        self.maps = RecordedMaps(limit)
        self.full: dict[str, int] = {}
        self.bypass = Bypass(cast(BypassMaps, self.maps), self._note_full)
        self._all = PlanChanges()

    def _note_full(self, name: str, count: int) -> None:
        self.full[name] = self.full.get(name, 0) + count

    def apply(
        self,
        services: dict[ServiceKey, Slots | None] | None = None,
        access: dict[AccessKey, Verdict | None] | None = None,
        sources: dict[int, Source | None] | None = None,
    ) -> list[str]:
        changes = PlanChanges(sources or {}, services or {}, access or {})
        for held, change in (
            (self._all.services, changes.services),
            (self._all.access, changes.access),
            (self._all.sources, changes.sources),
        ):
            held.update(change)  # type: ignore[attr-defined]
        self.maps.steps()
        self.bypass.apply(changes, lambda: self._all)
        return self.maps.steps()

    def backends(self) -> dict[bytes, bytes]:
        return self.maps.backends.found


def test_what_is_referred_to_is_there_first() -> None:
    scene = Scene()
    assert scene.apply({KEY: (backend(2), None)}, {PORT: ALLOW}, {7: Source(1, 1)}) == [
        "put access",
        "put backends",
        "put services",
        "put sources",
        "put life",
    ]
    assert scene.maps.life == scene.bypass.life != NO_BYPASS
    assert scene.apply({KEY: None}, {PORT: None}, {7: None}) == [
        "take sources",
        "take access",
        "take services",
        "take backends",
    ]
    assert not scene.backends()


def test_a_changed_set_has_another_number() -> None:
    scene = Scene()
    scene.apply({KEY: (backend(2), backend(3))})
    first = BackendKey(1, 0).pack()
    assert first in scene.backends()
    steps = scene.apply({KEY: (backend(3), backend(4), None)})
    # The one that has gone first, then the new set, then what is left of the old one.
    assert steps == ["take backends", "put backends", "put services", "take backends"]
    assert scene.backends() == {
        BackendKey(2, 0).pack(): backend(3).pack(),
        BackendKey(2, 1).pack(): backend(4).pack(),
    }
    assert scene.bypass.service(1) == scene.bypass.service(2) == KEY, "connections of the old one are told of"


def test_what_is_denied_now_is_not_let_through_meanwhile() -> None:
    scene = Scene()
    scene.apply({}, {PORT: ALLOW})
    assert scene.apply({}, {PORT: DENY}) == ["take access", "put access"]
    (entry,) = scene.maps.access.found.values()
    assert entry == Access.DENY.to_bytes(4, "little") + (1).to_bytes(4, "little")
    assert (scene.bypass.policy(1), scene.bypass.policy(0)) == ("p", "")


def test_a_client_that_is_another_one_is_none_in_between() -> None:
    scene = Scene()
    scene.apply(sources={7: Source(1, 1)})
    assert scene.apply(sources={7: Source(2, 1)}) == ["take sources", "put sources"]


def test_what_finds_no_room_is_left_out_whole_and_put_in_later() -> None:
    scene = Scene(limit=3)
    scene.apply({KEY: (backend(1), backend(2)), OTHER: (backend(3), backend(4))})
    assert scene.maps.services.found.keys() == {KEY.pack()}
    assert len(scene.backends()) == 2
    assert scene.full == {"backends": 1}
    counts = scene.bypass.counts()
    assert (counts.services, counts.endpoints, counts.refused) == (1, 2, {"services": 1})
    scene.apply({}, {PORT: ALLOW})
    assert scene.full == {"backends": 1}, "it is counted once"
    scene.apply({KEY: None})
    assert scene.maps.services.found.keys() == {OTHER.pack()}
    assert len(scene.backends()) == 2
    assert scene.bypass.counts().refused == {}


def test_a_service_that_outgrows_the_room_is_left_to_the_engine() -> None:
    """By its old endpoints it would never lead to the new one."""
    scene = Scene(limit=2)
    scene.apply({KEY: (backend(1),)})
    scene.apply({KEY: (backend(1), backend(2), backend(3))})
    assert not scene.maps.services.found
    assert not scene.backends()
    assert scene.bypass.counts().refused == {"services": 1}
    scene.apply({KEY: (backend(1), backend(2))})
    assert len(scene.backends()) == 2


def test_verdicts_and_clients_without_room_wait() -> None:
    scene = Scene(limit=2)
    keys = [AccessKey(source, 2, 9000, 6) for source in range(1, 5)]
    scene.apply({}, dict.fromkeys(keys, ALLOW), {number: Source(number, 1) for number in range(3)})
    assert scene.full == {"access": 2, "sources": 1}
    assert scene.bypass.counts().refused == {"access": 2, "sources": 1}
    scene.apply({}, {keys[0]: None, keys[3]: None}, {0: None})
    assert scene.maps.access.found.keys() == {keys[1].pack(), keys[2].pack()}
    assert len(scene.maps.sources.found) == 2
    assert scene.bypass.counts().refused == {}


@pytest.mark.parametrize("which", ["access", "backends", "services", "sources"])
def test_when_the_kernel_refuses_nothing_passes_and_all_begins_anew(which: str) -> None:
    scene = Scene()
    scene.apply({KEY: (backend(2),)}, {PORT: ALLOW}, {7: Source(1, 1)})
    table: Recorded = getattr(scene.maps, which)
    table.refuses = True
    scene.apply({OTHER: (backend(3),)}, {AccessKey(0, 3, 9000, 6): ALLOW}, {8: Source(3, 1)})
    assert scene.maps.life == NO_BYPASS
    assert f"BPF map {which} took none" in scene.bypass.error
    table.refuses = False
    scene.apply({KEY: None})
    assert (scene.bypass.error, scene.maps.life) == ("", scene.bypass.life)
    assert scene.maps.services.found.keys() == {OTHER.pack()}
    assert len(scene.backends()) == 1
    assert len(scene.maps.access.found) == len(scene.maps.sources.found) == 2
