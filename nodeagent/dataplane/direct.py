"""The acceleration `direct` of a node: which workloads have opted in, and its programs for as long as any has.

Pinned below the agent's pins in `direct/`, by the version of its own ABI, and like capture it outlives the agent: live
connections go on, and new ones between the same workloads are accelerated as before. The next agent takes it over.

A workload that is withdrawn is accelerated no more at once. Its sockets become plain ones as soon as they have read
what waits beside TCP's queue; tend() sees to that. Until the last one has the programs must stay, then nothing does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import MapUsage
from nodeagent.dataplane.bpffs import ensure_bpffs, lock_folder, remove_pins
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.direct_probes import Verdict, probe_direct
from nodeagent.dataplane.direct_programs import ABI, REDIRECTED, DirectPrograms, Sweep, unload
from nodeagent.dataplane.ebpf_node import ABI as CAPTURE_ABI
from nodeagent.dataplane.ebpf_node import LOCK_SECONDS, netns_cookie, root_of_cgroups
from nodeagent.dataplane.ebpf_node import unload as unload_capture
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import CapabilityError, DataplaneError

logger = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 1 << 20
GRACE: Final = 0.1
"""Seconds after a withdrawal within which messages that were under way arrive."""
_LINK_LOCAL: Final = b"\xfe\x80"


@dataclass(frozen=True, slots=True)
class DirectState:
    """What there is to show; empty where nobody has ever opted in."""

    verdicts: tuple[Verdict, ...] = ()
    """What the probes found, in this agent's time."""
    sweep: Sweep = field(default_factory=Sweep)
    counters: Mapping[str, int] = field(default_factory=dict)


class Direct:
    """The owner. Safe for several threads; each call blocks for milliseconds, the first admit() for a tenth of a
    second."""

    def __init__(self, pins: Path, group: Cgroup, limit: int = DEFAULT_LIMIT, refusal: str = "") -> None:
        """`group` is the agent's own. With a `refusal` nobody is admitted, for that reason. What an earlier agent has
        left is not touched before start()."""
        self._pins = pins
        self._folder = pins / "direct"
        self._group = group
        self._limit = limit
        self._refusal = refusal
        self._guard = threading.Lock()
        self._held = -1
        self._programs: DirectPrograms | None = None
        self._verdicts: list[Verdict] = []
        self._owners: dict[bytes, set[int]] = {}
        self._sweep = Sweep()
        self._state = DirectState()
        self._usage: Sequence[MapUsage] = ()
        self._quiet = 0.0
        """When no message is under way any more that was sent before the last withdrawal (monotonic clock)."""

    # -- workloads --

    def start(self) -> None:
        """Take over what an earlier agent has left, if there is anything; before this agent opens connections in
        workloads' namespaces, for its sockets are its own from now on. CapabilityError or DataplaneError if that is
        impossible; it stays as it is then."""
        with self._guard:
            if self._folder.exists():
                programs = self._open()
                for cookie in programs.workloads():
                    self._put(programs, cookie)

    def admit(self, namespace: NetworkNamespace, addresses: Iterable[bytes]) -> int:
        """Accelerate a workload, known by its namespace, which no other one may share, and its addresses (16 bytes
        each; link-local ones are passed over), with others that were admitted. Returns the namespace's cookie.

        CapabilityError, with why, if this machine must not; BpfMapFullError.
        """
        cookie = netns_cookie(namespace)
        self.admit_cookie(cookie, addresses)
        return cookie

    def admit_cookie(self, cookie: int, addresses: Iterable[bytes]) -> None:
        """As admit(), of a namespace whose cookie is known."""
        with self._guard:
            self._require_ability()
            programs = self._open()
            try:
                for address in (each for each in addresses if each[:2] != _LINK_LOCAL):
                    self._owners.setdefault(address, set()).add(cookie)
                    self._publish(programs, address)
                # Last, for then it begins.
                self._put(programs, cookie)
            except DataplaneError:
                self._withdraw(programs, cookie)
                raise

    def withdraw(self, cookie: int) -> None:
        """Accelerate a workload no more; its connections go on by TCP. Nothing happens if it is none."""
        with self._guard:
            if self._programs is not None:
                self._withdraw(self._programs, cookie)

    def settle(self, keep: Iterable[int]) -> None:
        """Withdraw all but these (cookies): those that went since an earlier agent admitted them."""
        with self._guard:
            if self._programs is not None:
                for cookie in self._programs.workloads() - set(keep):
                    self._withdraw(self._programs, cookie)

    def tend(self) -> bool:
        """Let go of what is withdrawn, as far as it can be; whether anything remains to be done. To be called every
        second or so after a withdrawal while it does."""
        with self._guard:
            if self._programs is not None and time.monotonic() >= self._quiet:
                self._tend(self._programs)
            return self._programs is not None and (
                time.monotonic() < self._quiet or self._sweep.withdrawn > 0
            )

    def _require_ability(self) -> None:
        if self._refusal:
            raise CapabilityError(self._refusal)
        if not self._verdicts:
            self._verdicts = probe_direct()
        if failed := [verdict for verdict in self._verdicts if not verdict.ok]:
            reason = "; ".join(f"{verdict.name}: {verdict.detail}" for verdict in failed)
            raise CapabilityError(f"acceleration `direct` is not safe on this kernel: {reason}")

    def _put(self, programs: DirectPrograms, cookie: int) -> None:
        programs.put_workload(cookie, self._group.directory.stat().st_ino, self._group.level)

    def _publish(self, programs: DirectPrograms, address: bytes) -> None:
        """Say whose an address is: its one owner's."""
        owners = self._owners.get(address, set())
        if len(owners) == 1:
            programs.put_address(address, next(iter(owners)))
            return
        programs.drop_address(address)
        if owners:
            logger.warning(
                "%d workloads have the address %s: connections from and to it are not accelerated",
                len(owners),
                address.hex(),
            )

    def _withdraw(self, programs: DirectPrograms, cookie: int) -> None:
        programs.drop_workload(cookie)
        self._quiet = time.monotonic() + GRACE
        for address, owner in programs.addresses().items():
            if owner == cookie:
                programs.drop_address(address)
        for address, owners in list(self._owners.items()):
            if cookie in owners:
                owners.discard(cookie)
                self._publish(programs, address)
                if not owners:
                    del self._owners[address]

    # -- the programs --

    def _open(self) -> DirectPrograms:
        if self._programs is None:
            ensure_bpffs(self._pins)
            self._held = lock_folder(self._folder, LOCK_SECONDS)
            try:
                self._remove_other_versions()
                redirected = self._pins / f"v{CAPTURE_ABI}" / "maps" / REDIRECTED
                self._programs = DirectPrograms(
                    root_of_cgroups(),
                    self._folder / f"v{ABI}",
                    redirected=redirected if redirected.exists() else None,
                )
                self._programs.configure(self._limit)
            except BaseException:
                self._let_go()
                raise
        return self._programs

    def _remove_other_versions(self) -> None:
        for entry in list(self._folder.iterdir()):
            if entry.name != f"v{ABI}":
                unload(entry)

    def _tend(self, programs: DirectPrograms) -> None:
        self._sweep = programs.sweep()
        if not self._sweep.sockets and not programs.workloads():
            self._let_go()
            remove_pins(self._folder)
            with contextlib.suppress(OSError):  # capture has pins there, too
                self._pins.rmdir()

    def _let_go(self) -> None:
        """Close what is open. Nothing pinned stays where there is neither a workload nor a socket."""
        programs, self._programs = self._programs, None
        if programs is not None:
            idle = not self._sweep.sockets and not programs.workloads()
            programs.close()
            if idle:
                unload(self._folder / f"v{ABI}")
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def state(self) -> DirectState:
        """What there is to show; what was shown before, while another call is under way."""
        if self._guard.acquire(blocking=False):
            try:
                self._state = self._read_state()
            except DataplaneError as error:
                logger.warning("what `direct` counts cannot be read: %s", error)
            finally:
                self._guard.release()
        return self._state

    def _read_state(self) -> DirectState:
        verdicts = tuple(self._verdicts)
        if self._programs is None:
            return DirectState(verdicts)
        if time.monotonic() >= self._quiet:
            self._sweep = self._programs.sweep()
        return DirectState(verdicts, self._sweep, self._programs.counters())

    def maps(self) -> Sequence[MapUsage]:
        """What its BPF maps take, as state()."""
        if self._guard.acquire(blocking=False):
            try:
                self._usage = self._programs.usage() if self._programs is not None else ()
            finally:
                self._guard.release()
        return self._usage

    def close(self) -> None:
        """Let go, at the agent's end. What is in force stays so while workloads are opted in, or data of theirs waits;
        else nothing stays."""
        with self._guard:
            if self._programs is not None:
                time.sleep(max(0.0, self._quiet - time.monotonic()))
                self._tend(self._programs)
            self._let_go()


def unload_all(pins: Path) -> None:
    """End acceleration and capture that are pinned below a folder, and leave nothing of them, for when there is neither
    an agent nor a workload any more."""
    for version in (pins / "direct").glob("v*"):
        unload(version)
    remove_pins(pins / "direct")
    unload_capture(pins)
