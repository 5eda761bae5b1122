"""The maps by which connections within the node pass the engine (bpf/include/bypass.h says how).

What connect() decides by is made anew for each agent: with empty maps everything goes to the engine, so nothing of an
earlier agent's is ever acted on. Live connections, and what is told of them, outlive agents.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.dataplane import bypass_layout as layout
from nodeagent.dataplane.bpf import BpfMap, BpfObject, pinned_map
from nodeagent.dataplane.bpffs import remove_pins
from nodeagent.errors import BpfError

PER_LIFE: Final = ("life", "access", "sources", "services", "backends")
LASTING: Final = ("bypassed", "events", "redirected")
INBOUND: Final = ("life", "access", "sources", "bypassed")
"""Those that listener lookup reads, too."""
HERE: Final = "here"
"""The map of a namespace that says which workload it is."""
_ONLY: Final = bytes(4)
_KEY_SIZE: Final = 4
_COOKIE_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class BypassLimits:
    """How many entries the maps are made for. What has no room goes to the engine."""

    services: int = 65_536
    """Addresses of services and workloads, in each view that knows them."""
    endpoints: int = 131_072
    """Slots of services that endpoints of this node are in."""
    verdicts: int = 65_536
    """Of clients on ports of workloads."""
    connections: int = 65_536
    """That live. While there are some, that many as under the agent before."""
    event_bytes: int = 1 << 20
    """Of what is told of them and not read yet; a power of two, and whole pages."""

    def entries(self) -> dict[str, int]:
        """By the maps' names."""
        return {
            "services": self.services,
            "backends": self.endpoints,
            "access": self.verdicts,
            "bypassed": self.connections,
            "events": self.event_bytes,
        }


NO_ROOM: Final = BypassLimits(1, 1, 1, 1, mmap.PAGESIZE)
"""Where nothing is to pass the engine: a map of 65,536 entries takes a megabyte when it is empty, too."""


@dataclass(frozen=True, slots=True)
class BypassMaps:
    """The shared maps; keys and values are bypass_layout's, those of `sources` packed cookies of namespaces."""

    life: BpfMap
    sources: BpfMap
    services: BpfMap
    backends: BpfMap
    access: BpfMap
    bypassed: BpfMap
    """Live connections: Ends to Flow. Programs write it."""
    redirected: BpfMap
    """An array of what connections carried past TCP (Redirected). `direct` writes it."""
    events: BpfMap
    """A ring buffer, read by its descriptor. Its reader is woken only when a quarter is full, and looks by itself
    before that."""

    @classmethod
    def of(cls, outbound: BpfObject) -> BypassMaps:
        """Those of a loaded object."""
        return cls(
            life=outbound.map("life", _KEY_SIZE, layout.LIFE_SIZE),
            sources=outbound.map("sources", _COOKIE_SIZE, layout.SOURCE_SIZE),
            services=outbound.map("services", layout.SERVICE_KEY_SIZE, layout.SERVICE_SIZE),
            backends=outbound.map("backends", layout.BACKEND_KEY_SIZE, layout.BACKEND_SIZE),
            access=outbound.map("access", layout.ACCESS_KEY_SIZE, layout.ACCESS_SIZE),
            bypassed=outbound.map("bypassed", layout.ENDS_SIZE, layout.FLOW_SIZE),
            redirected=outbound.map("redirected", _KEY_SIZE, layout.REDIRECTED_SIZE),
            events=outbound.map("events", 0, 0),
        )

    def begin_life(self, number: int) -> None:
        """Let what is in the maps take effect (NO_BYPASS: let nothing)."""
        self.life[_ONLY] = layout.Life(number).pack()

    def counted(self) -> tuple[BpfMap, ...]:
        """Those that fill up."""
        return (self.sources, self.services, self.backends, self.access, self.bypassed)

    def all(self) -> tuple[BpfMap, ...]:
        """All of them."""
        return (*self.counted(), self.life, self.redirected, self.events)

    def close(self) -> None:
        """Let go of the descriptors; may be called again."""
        for each in self.all():
            each.close()


def end_life(maps: Path, limits: BypassLimits) -> None:
    """Let nothing more of an earlier agent's take effect, and unpin what only it had, or was made for other limits.
    Programs that are still attached have these maps until they are replaced."""
    life = pinned_map(maps / "life", _KEY_SIZE, layout.LIFE_SIZE)
    if life is not None:
        life[_ONLY] = layout.Life(layout.NO_BYPASS).pack()
        life.close()
    for name in PER_LIFE:
        remove_pins(maps / name)
    for name in ("bypassed", "events"):
        lasting = pinned_map(maps / name, layout.ENDS_SIZE, layout.FLOW_SIZE)
        if lasting is not None:
            is_other = lasting.memory_and_limit()[1] != limits.entries()[name]
            if is_other and not (name == "bypassed" and lasting.count()):
                remove_pins(maps / name)
            lasting.close()


def name_namespace(folder: Path, here: layout.Here) -> None:
    """Say which workload a namespace is whose pins are in `folder`. BpfError if it is not captured."""
    slot = pinned_map(folder / HERE, _KEY_SIZE, layout.HERE_SIZE)
    if slot is None:
        raise BpfError(f"cannot say which workload a namespace is: nothing is pinned at {folder / HERE}")
    try:
        slot[_ONLY] = here.pack()
    finally:
        slot.close()
