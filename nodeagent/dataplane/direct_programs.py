"""The BPF object of the acceleration `direct` in the kernel, with its maps (bpf/direct.bpf.c says what it does).

The mechanism only: who opts in is direct.py's business. Pinned below a folder it outlives the agent; without one, as
probes have it, it ends with the object.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import (
    OBJECTS,
    BpfLink,
    BpfMap,
    BpfObject,
    MapUsage,
    detach_pinned,
    pinned_map,
    possible_cpus,
)
from nodeagent.dataplane.bpffs import make_folder, remove_pins
from nodeagent.errors import BpfMapFullError

# bpf/include/direct_abi.h
ABI: Final = 2
MESSAGE_COST: Final = 1024
COUNTERS: Final = (
    "joined",
    "not_joined",
    "redirected",
    "bytes",
    "pass_unpaired",
    "pass_unread",
    "pass_full",
    "pass_closing",
    "pass_lowat",
    "pass_protocol",
    "pass_pressure",
    "pass_withdrawn",
    "refused",
)
COOKIE: Final = struct.Struct("=Q")
_WORKLOAD: Final = struct.Struct("=QII")
_SETTINGS: Final = struct.Struct("=IIII")
_WITHIN: Final = 1
_ROW: Final = struct.Struct("=QII")
REDIRECTED: Final = "redirected"
"""What connections carried past TCP; capture's, where it is there, since it tells of connections."""
_FIRST: Final = struct.pack("=I", 0)
_ADDRESS_SIZE: Final = 16
_SIZES: Final = {
    "direct_workloads": (COOKIE.size, _WORKLOAD.size),
    "direct_addresses": (_ADDRESS_SIZE, COOKIE.size),
    "direct_flows": (48, 32),
    "direct_sockets": (COOKIE.size, 8),
    "direct_slots": (4, 8),
    "direct_ends": (4, 152),
    "direct_settings": (4, _SETTINGS.size),
    "direct_counters": (4, 0),
    REDIRECTED: (4, 24),
}
_ATTACHED: Final = ("direct_sockops", "direct_send")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is in the SOCKHASH after a sweep."""

    sockets: int = 0
    queued: int = 0
    """Bytes that wait at them, TCP's own queue included."""
    withdrawn: int = 0
    """Those that are to leave once what waits at them has been read."""


class DirectPrograms:
    """Loaded and attached from the start; close() ends what is not pinned. One thread at a time."""

    def __init__(
        self,
        root: Path,
        folder: Path | None = None,
        objects: Path = OBJECTS,
        redirected: Path | None = None,
    ) -> None:
        """Attach to the cgroup `root`. What is pinned in `folder` already is taken over, its programs replaced.
        `redirected` is the pin of that map, if another owner has it.

        BpfError if the kernel refuses; nothing new is attached then.
        """
        self._folder = folder
        self._links: list[BpfLink] = []
        self._maps: dict[str, BpfMap] = {}
        self._full: Counter[str] = Counter()
        if folder is not None:
            for name in ("maps", "links"):
                make_folder(folder / name)
        shared = {name: folder / "maps" / name for name in _SIZES} if folder is not None else {}
        self._has_own = redirected is None
        if redirected is not None:
            shared[REDIRECTED] = redirected
        self._object = BpfObject("direct", shared, objects)
        try:
            for name, (key_size, value_size) in _SIZES.items():
                self._maps[name] = self._object.map(name, key_size, value_size or 8 * possible_cpus())
            self._attach(root)
        except BaseException:
            self.close()
            raise

    def _attach(self, root: Path) -> None:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The sockets' program first: a socket gets what its map has when it is taken in.
            for program, target in (
                ("direct_send", self._maps["direct_sockets"].fd),
                ("direct_sockops", top),
            ):
                if self._folder is None:
                    self._links.append(self._object.attach(program, target))
                else:
                    self._object.attach_pinned(program, target, self._folder / "links" / program)
        finally:
            os.close(top)

    # -- what the programs know --

    def configure(self, limit: int, *, within: bool = False) -> None:
        """Set how many bytes may wait at a receiver beside TCP's queue, and whether connections `within` a namespace
        count, too."""
        self._maps["direct_settings"][_FIRST] = _SETTINGS.pack(
            limit, self._settings()[1], within * _WITHIN, 0
        )

    def _settings(self) -> tuple[int, int, int]:
        packed = self._maps["direct_settings"].get(_FIRST) or bytes(_SETTINGS.size)
        limit, generation, flags, _ = _SETTINGS.unpack(packed)
        return limit, generation, flags

    def put_workload(self, cookie: int, agent_cgroup: int, agent_level: int) -> None:
        """Opt a workload in; the agent's own sockets, by their cgroup, stay out."""
        self._put("direct_workloads", COOKIE.pack(cookie), _WORKLOAD.pack(agent_cgroup, agent_level, 0))

    def drop_workload(self, cookie: int) -> None:
        """Opt a workload out. From now on what it sends, and what is sent to it, goes by TCP."""
        self._maps["direct_workloads"].discard(COOKIE.pack(cookie))
        limit, generation, flags = self._settings()
        self._maps["direct_settings"][_FIRST] = _SETTINGS.pack(limit, (generation + 1) % 2**32, flags, 0)

    def workloads(self) -> set[int]:
        """The cookies of those that have opted in, also with an earlier agent."""
        return {COOKIE.unpack(key)[0] for key in self._maps["direct_workloads"]}

    def put_address(self, address: bytes, cookie: int) -> None:
        """Say whose an address (16 bytes) is."""
        self._put("direct_addresses", address, COOKIE.pack(cookie))

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        try:
            self._maps[name][key] = value
        except BpfMapFullError:
            self._full[name] += 1
            raise

    def drop_address(self, address: bytes) -> None:
        """Say that nobody has an address."""
        self._maps["direct_addresses"].discard(address)

    def addresses(self) -> dict[bytes, int]:
        """Whose each address is."""
        every, found = self._maps["direct_addresses"], {}
        for address in set(every):
            if (value := every.get(address)) is not None:
                found[address] = int(COOKIE.unpack(value)[0])
        return found

    # -- what they tell --

    def sweep(self) -> Sweep:
        """Make plain sockets of those that are opted in no more and have read what waited at them."""
        iterator = self._object.iterate("direct_sweep", self._maps["direct_sockets"])
        rows = list(_ROW.iter_unpack(iterator))
        return Sweep(len(rows), sum(queued for _, queued, _ in rows), sum(gone for _, _, gone in rows))

    def counters(self) -> dict[str, int]:
        """What was counted since the programs were first loaded (enum na_direct_counter)."""
        found = {}
        for index, name in enumerate(COUNTERS):
            value = self._maps["direct_counters"].get(struct.pack("=I", index)) or b""
            found[name] = sum(struct.unpack(f"={len(value) // 8}Q", value))
        return found

    def usage(self) -> Sequence[MapUsage]:
        """What the maps take, but for those of other owners."""
        found = []
        for name, each in self._maps.items():
            if name == REDIRECTED and not self._has_own:
                continue
            memory, limit = each.memory_and_limit()
            if name in ("direct_workloads", "direct_addresses", "direct_flows"):
                found.append(MapUsage(name, memory, each.count(), limit, self._full[name]))
            else:
                found.append(MapUsage(name, memory))
        return found

    def close(self) -> None:
        """Let go; what is pinned stays in force. May be called again."""
        for link in self._links:
            link.close()
        for each in self._maps.values():
            each.close()
        self._links, self._maps = [], {}
        self._object.close()


def unload(folder: Path) -> None:
    """End what is pinned in a folder of DirectPrograms, of any version. Sockets that are left send by TCP from now on;
    with them the kernel keeps a program and its maps until they are closed, so that what waits there is still read."""
    _withdraw_all(folder / "maps")
    for name in _ATTACHED:
        detach_pinned(folder / "links" / name)
    remove_pins(folder)


def _withdraw_all(maps: Path) -> None:
    """Opt all workloads out; both maps have been the same in all versions."""
    workloads = pinned_map(maps / "direct_workloads", COOKIE.size, _WORKLOAD.size)
    settings = pinned_map(maps / "direct_settings", len(_FIRST), _SETTINGS.size)
    if workloads is not None and settings is not None:
        for cookie in set(workloads):
            workloads.discard(cookie)
        limit, generation, flags, _ = _SETTINGS.unpack(settings.get(_FIRST) or bytes(_SETTINGS.size))
        settings[_FIRST] = _SETTINGS.pack(limit, (generation + 1) % 2**32, flags, 0)
    for each in (workloads, settings):
        if each is not None:
            each.close()
