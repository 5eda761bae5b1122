"""Refuses TCP connections that leave workloads' namespaces past connect(), by raw sockets above all (bpf/raw.bpf.c), in
place of the ruleset's chain for that, which would refuse those that connect() lets past the engine, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import BpfObject, detach_pinned
from nodeagent.dataplane.netns import NetworkNamespace

RAW: Final = "raw"
"""The object's name."""
_PROGRAM: Final = "refuse_past"
_FAMILIES: Final = {"raw4": 2, "raw6": 10}  # NFPROTO_IPV4, NFPROTO_IPV6
_NF_INET_LOCAL_OUT: Final = 3
_PRIORITIES: Final = (-42, -41)
"""Before the ruleset's chains. Two programs cannot have the same, and a new one is attached before the old one goes."""


class RawGuard:
    """The program, for all namespaces. BpfError if the kernel is older than Linux 6.4."""

    def __init__(self, shared: Mapping[str, Path]) -> None:
        """`shared`: the map of counters."""
        self._object = BpfObject(RAW, shared)

    def attach(self, namespace: NetworkNamespace, folder: Path) -> None:
        """Refuse from now on in a namespace whose pins are in `folder`, also when an earlier agent's program does."""
        namespace.run(lambda: self._attach_here(folder))

    def _attach_here(self, folder: Path) -> None:
        for name, family in _FAMILIES.items():
            pin, fresh, old = _pins(folder, name)
            _settle(pin, fresh, old)
            link = self._object.attach_netfilter(_PROGRAM, family, _NF_INET_LOCAL_OUT, _PRIORITIES)
            try:
                link.pin(fresh)
            finally:
                link.close()
            if pin.exists():
                pin.rename(old)
            _settle(pin, fresh, old)

    def close(self) -> None:
        """Let go of the program; where it is attached it stays."""
        self._object.close()


def _pins(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Where the link in force is pinned, and while one takes the place of another the next one and the one before."""
    return folder / name, folder / f"{name}-new", folder / f"{name}-old"


def _settle(pin: Path, fresh: Path, old: Path) -> None:
    """Have one link, wherever it stopped that another one took its place."""
    if fresh.exists() and not pin.exists():
        fresh.rename(pin)
    detach_pinned(fresh)
    detach_pinned(old)


def detach_raw_guard(folder: Path) -> None:
    """Let raw sockets do as they please; nothing happens where nothing is attached."""
    for name in _FAMILIES:
        for pin in _pins(folder, name):
            detach_pinned(pin)


def is_raw_guarded(folder: Path) -> bool:
    """Whether the program is attached there."""
    return all((folder / name).exists() for name in _FAMILIES)
