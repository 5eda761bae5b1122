"""Maps with a bound: what finds no room is left out as a whole, counted, and put in as soon as there is some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from nodeagent.dataplane.bpf import BpfMap
from nodeagent.dataplane.bypass_layout import Backend, BackendKey, Service, ServiceKey
from nodeagent.dataplane.bypass_services import Slots
from nodeagent.dataplane.tags import TagTable

logger = logging.getLogger(__name__)

NoteFull = Callable[[str, int], None]
"""Told the name of a map, and of how many entries it had no room for."""


K = TypeVar("K")
V = TypeVar("V")


class BoundedTable(Generic[K, V]):
    """A map and what is in it."""

    def __init__(
        self,
        table: BpfMap,
        pack_key: Callable[[K], bytes],
        pack_value: Callable[[V], bytes],
        note_full: NoteFull,
    ) -> None:
        """`table` is empty, and stays the caller's."""
        self.held: dict[K, V] = {}
        self.waiting: dict[K, V] = {}
        """For want of room."""
        self._table = table
        self._pack_key = pack_key
        self._pack_value = pack_value
        self._limit = table.memory_and_limit()[1]
        self._note_full = note_full

    def remove(self, keys: Iterable[K]) -> None:
        """Take entries out; those that are not there are no matter."""
        for key in keys:
            self.waiting.pop(key, None)
            if key in self.held:
                self._table.discard(self._pack_key(key))
                del self.held[key]

    def put(self, entries: Mapping[K, V]) -> None:
        """Write entries, and those that waited, as far as there is room."""
        wanted = {**self.waiting, **entries} if self.waiting else entries
        room = self._limit - len(self.held)
        fresh = [key for key in wanted if key not in self.held]
        left = set(fresh[room:])
        self._note_left(left)
        self.waiting = {key: wanted[key] for key in left}
        fitting = {key: value for key, value in wanted.items() if key not in left} if left else wanted
        if fitting:
            self._table.update(
                {self._pack_key(key): self._pack_value(value) for key, value in fitting.items()}
            )
            self.held.update(fitting)

    def _note_left(self, left: set[K]) -> None:
        if refused := len(left - self.waiting.keys()):
            note_refused(self._table.name, refused, self._limit, self._note_full)

    def forget(self) -> None:
        """Empty the map, whatever is in it."""
        for key in list(self._table):
            self._table.discard(key)
        self.held, self.waiting = {}, {}


def note_refused(name: str, refused: int, limit: int, note_full: NoteFull) -> None:
    """Count and tell of entries without room."""
    note_full(name, refused)
    logger.error(
        "BPF map %s is full (%d entries): %d more have no room; what they are for goes through the engine",
        name,
        limit,
        refused,
    )


@dataclass(slots=True)
class _InForce:
    id: int
    slots: Slots

    def backends(self) -> dict[BackendKey, Backend]:
        """The entries of its endpoints."""
        return {
            BackendKey(self.id, slot): backend
            for slot, backend in enumerate(self.slots)
            if backend is not None
        }


class ServiceTables:
    """The maps of services and of their endpoints. A set of endpoints keeps its number while it is the same."""

    def __init__(self, services: BpfMap, backends: BpfMap, note_full: NoteFull) -> None:
        """The maps are empty, and stay the caller's."""
        self.held: dict[ServiceKey, _InForce] = {}
        self.waiting: dict[ServiceKey, Slots] = {}
        self.used = 0
        """Entries of endpoints."""
        self.ids: TagTable[ServiceKey] = TagTable()
        self._services = services
        self._backends = backends
        self._limits = services.memory_and_limit()[1], backends.memory_and_limit()[1]
        self._note_full = note_full

    def remove(self, keys: Iterable[ServiceKey]) -> None:
        """Take services out, with their endpoints."""
        for key in keys:
            self.waiting.pop(key, None)
            if key in self.held:
                self._take_out(key)

    def _take_out(self, key: ServiceKey) -> None:
        self._services.discard(key.pack())
        self._drop(self.held.pop(key))
        self.ids.release(key)

    def _drop(self, service: _InForce) -> None:
        """Of a service that is out of the map, or has another set now."""
        for key in service.backends():
            self._backends.discard(key.pack())
            self.used -= 1

    def withdraw(self, services: Mapping[ServiceKey, Slots]) -> None:
        """Let none of the services lead any more to what is not among its slots any more."""
        for key, slots in services.items():
            if (service := self.held.get(key)) is None:
                continue
            staying = set(slots)
            for slot, backend in service.backends().items():
                if backend not in staying:
                    self._backends.discard(slot.pack())
                    self.used -= 1
            service.slots = tuple(backend if backend in staying else None for backend in service.slots)

    def put(self, services: Mapping[ServiceKey, Slots]) -> None:
        """Write services, and those that waited, as far as there is room."""
        wanted = {**self.waiting, **services} if self.waiting else services
        before = self.waiting.keys()
        self.waiting = {}
        made: dict[ServiceKey, _InForce] = {}
        self._admit(wanted, made)
        for key in self.waiting.keys() & self.held.keys():  # its old set would never draw what is new
            self._take_out(key)
        self._write(made)
        if refused := self.waiting.keys() - before:
            full = self._services if len(self.held) >= self._limits[0] else self._backends
            note_refused(full.name, len(refused), full.memory_and_limit()[1], self._note_full)

    def _admit(self, wanted: Mapping[ServiceKey, Slots], made: dict[ServiceKey, _InForce]) -> None:
        """Give numbers to what has room beside all that is there, and to its own old endpoints."""
        fresh = taken = 0
        for key, slots in wanted.items():
            size = sum(backend is not None for backend in slots)
            is_new = key not in self.held
            fits = (
                len(self.held) + fresh + is_new <= self._limits[0]
                and self.used + taken + size <= self._limits[1]
            )
            if not fits:
                self.waiting[key] = slots
                continue
            fresh += is_new
            taken += size
            self.ids.release(key)
            made[key] = _InForce(self.ids.assign(key, key)[0], slots)

    def _write(self, made: dict[ServiceKey, _InForce]) -> None:
        backends = {
            slot.pack(): backend.pack() for each in made.values() for slot, backend in each.backends().items()
        }
        if not made:
            return
        self._backends.update(backends)
        self.used += len(backends)
        self._services.update(
            {key.pack(): Service(each.id, len(each.slots)).pack() for key, each in made.items()}
        )
        for key, each in made.items():
            if (old := self.held.get(key)) is not None:
                self._drop(old)
            self.held[key] = each

    def forget(self) -> None:
        """Empty the maps, whatever is in them."""
        for table in (self._services, self._backends):
            for raw in list(table):
                table.discard(raw)
        for key in self.held:
            self.ids.release(key)
        self.held, self.waiting, self.used = {}, {}, 0
