"""Workloads from a file (config/workloads.py): the services of a machine, by their cgroups.

The file is watched, and so is where the cgroups are or will be: systemd makes a service's cgroup anew at each start,
with another id. A workload is enrolled as long as the file names it, whether its cgroup is there or not, so that
its ports are never open to what policy has not seen. A file that cannot be read leaves the last good one in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from nodeagent.config.workloads import MachineWorkload, read_workloads
from nodeagent.dataplane.share import NamespaceShare, Share
from nodeagent.enroll.enroller import EnrolledPod, Enroller
from nodeagent.errors import ConfigError, NodeagentError
from nodeagent.snapshot.address import widen_address

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""A look without being told: inotify may overflow, and a workload that was refused is tried again."""
RETRY_SECONDS: Final = 1.0
_QUIET_MS: Final = 10

_Signature = tuple[int, int, int]


class GroupEnroller(Enroller, Protocol):
    """What takes on workloads that are cgroups."""

    async def retire(self, uid: str) -> None:
        """As remove(), of a workload that is taken on again at once, changed: in between, and if that fails until
        remove(), its connections are refused, not left alone."""

    async def regrouped(self, uid: str) -> None:
        """The cgroup of a workload came, went, or is another one of the same name. A NodeagentError says why its
        connections cannot be captured; this is tried again."""


@dataclass(slots=True)
class _Known:
    """A workload that is enrolled, with the id of its cgroup when it was last captured; 0: it was not there."""

    workload: MachineWorkload
    cgroup: int = 0


@dataclass(slots=True)
class FileCounters:
    """What has happened since the start."""

    loads: int = 0
    load_failures: int = 0
    add_failures: int = 0


class WorkloadFile:
    """Keeps what is enrolled equal to a file. run() until cancelled."""

    def __init__(self, path: Path, enroller: GroupEnroller) -> None:
        self.path = path
        self._enroller = enroller
        self._wanted: tuple[MachineWorkload, ...] | None = None
        self._signature: _Signature | None = None
        self._known: dict[str, _Known] = {}
        self._failures: dict[str, str] = {}
        """By uid: why a workload is not taken on."""
        self.counters = FileCounters()
        self.last_error = ""
        """Why the file as it is now is not in force."""
        self.synced = False
        """Whether all that the file names was tried once."""

    async def run(self) -> None:
        """Look, and look again whenever something may have changed; returns only by cancellation. Enrolled workloads
        stay enrolled."""
        while True:
            await self._look()
            try:
                await self._watch(self._folders())
            except OSError as error:
                # A folder has gone again, or this user watches too many.
                log.warning("cannot be told of changes of %s: %s", self.path, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self, folders: set[Path]) -> None:
        """Look when something changes in these, until others are to be watched."""
        # The library is for those who have such a file.
        from watchfiles import awatch

        changes = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            step=_QUIET_MS,
            debounce=_QUIET_MS,
            rust_timeout=int(LOOK_SECONDS * 1000),
            yield_on_timeout=True,
        )
        async with aclosing(changes):
            async for _ in changes:
                await self._look()
                if self._folders() != folders:
                    return

    def _folders(self) -> set[Path]:
        """What is to be watched: where the file is, and for each cgroup the nearest folder that is there."""
        return {self.path.absolute().parent, *(_nearest(workload) for workload in self._wanted or ())}

    async def _look(self) -> None:
        await asyncio.to_thread(self._load)
        if self._wanted is None:
            return
        wanted = {workload.uid: workload for workload in self._wanted}
        changed = [uid for uid, known in self._known.items() if wanted.get(uid) != known.workload]
        await asyncio.gather(*(self._remove(uid, again=uid in wanted) for uid in changed))
        for uid in set(self._failures).difference(wanted):
            del self._failures[uid]
            await self._remove(uid)
        for workload in self._wanted:
            await self._converge(workload)
        if not self.synced:
            self.synced = True
            self._enroller.synced()

    def _load(self) -> None:
        """Read the file if it has changed."""
        try:
            status = self.path.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            signature = (0, 0, 0)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._wanted = read_workloads(self.path)
        except ConfigError as error:
            self.counters.load_failures += 1
            self.last_error = str(error)
            log.error("workloads are as before: %s", error)
            return
        self.counters.loads += 1
        self.last_error = ""
        log.info("%s names %d workloads", self.path, len(self._wanted))

    async def _converge(self, workload: MachineWorkload) -> None:
        """Take a workload on, or follow its cgroup. One that fails does not hold up the others."""
        known = self._known.get(workload.uid)
        cgroup = _cgroup_id(workload)
        if known is not None and known.cgroup == cgroup:
            return
        try:
            if known is None:
                await self._add(workload)
                known = self._known[workload.uid] = _Known(workload)
            else:
                await self._enroller.regrouped(workload.uid)
            known.cgroup = cgroup
        except NodeagentError as error:
            self._note_failure(workload, str(error))
        except Exception as error:
            log.exception("enrolling %s failed", workload.uid)
            self._note_failure(workload, f"{type(error).__name__}: {error}")
        else:
            self._failures.pop(workload.uid, None)

    async def _add(self, workload: MachineWorkload) -> None:
        addresses = tuple(widen_address(raw) for raw in workload.addresses)
        netns = NamespaceShare.of_own(Share(workload.uid, workload.cgroup, workload.ports, addresses))
        pod = EnrolledPod(
            workload.uid, workload.name, workload.namespace, workload.service_account, workload.fail_open
        )
        try:
            await self._enroller.add(pod, netns)
        except BaseException:
            netns.close()
            raise

    def _note_failure(self, workload: MachineWorkload, error: str) -> None:
        """Log once per kind of failure, not once per attempt."""
        self.counters.add_failures += 1
        if self._failures.get(workload.uid) != error:
            log.error("workload %s/%s is not captured: %s", workload.namespace, workload.name, error)
        self._failures[workload.uid] = error

    async def _remove(self, uid: str, *, again: bool = False) -> None:
        self._known.pop(uid, None)
        try:
            await (self._enroller.retire(uid) if again else self._enroller.remove(uid))
        except Exception:
            log.exception("letting go of workload %s failed", uid)

    def warnings(self) -> Iterator[str]:
        """Workloads of which nothing goes out that could be captured."""
        for known in self._known.values():
            if not known.cgroup:
                workload = known.workload
                yield f"workload {workload.namespace}/{workload.name}: there is no cgroup {workload.cgroup} now"


def _group(workload: MachineWorkload) -> Path:
    return Share(workload.uid, workload.cgroup).group().directory


def _cgroup_id(workload: MachineWorkload) -> int:
    try:
        return _group(workload).stat().st_ino
    except OSError:
        return 0


def _nearest(workload: MachineWorkload) -> Path:
    """The folder in which the cgroup's next part comes or goes."""
    return _first_folder(_group(workload).parents)


def _first_folder(paths: Iterable[Path]) -> Path:
    return next(path for path in paths if path.is_dir())
