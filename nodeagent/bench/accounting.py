"""What the kernel accounts to a proxy: processor time by thread, memory; and what the hypervisor took away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STEAL: Final = 7  # column of /proc/stat's `cpu` line, proc(5)
_WORKER_THREAD: Final = "na-worker"


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Nanoseconds on a processor since the start: of all threads, and of those that move bytes."""

    total: int = 0
    workers: int = 0

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.total - other.total, self.workers - other.workers)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: of a proxy's processes together."""

    rss: int
    pss: int
    private: int
    """In no other process's memory: what the proxy costs by itself."""
    peak_rss: int


def cpu_time(pids: Iterable[int]) -> CpuTime:
    """Sum over all threads, from /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats).

    For nodeagent `workers` are the engine's threads alone; a peer without Python has no others, so that it is
    all of its threads.
    """
    total = workers = 0
    named = False
    for task in _tasks(pids):
        try:
            spent = int((task / "schedstat").read_text().split()[0])
            name = (task / "comm").read_text()
        except OSError:
            continue  # ended meanwhile
        total += spent
        if name.startswith(_WORKER_THREAD):
            named = True
            workers += spent
    return CpuTime(total, workers if named else total)


def _tasks(pids: Iterable[int]) -> Iterator[Path]:
    for pid in pids:
        try:
            yield from Path(f"/proc/{pid}/task").iterdir()
        except OSError:
            continue


def memory(pids: Iterable[int]) -> Memory:
    """Sum over processes, from smaps_rollup and status."""
    totals = dict.fromkeys(("Rss", "Pss", "Private_Dirty", "Private_Clean", "VmHWM"), 0)
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text() + Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in totals:
                totals[name] += int(value.split()[0]) * 1024
    private = totals["Private_Dirty"] + totals["Private_Clean"]
    return Memory(totals["Rss"], totals["Pss"], private, totals["VmHWM"])


@dataclass(frozen=True, slots=True)
class MachineTime:
    """Ticks of all processors since boot: spent in any way, and stolen by the hypervisor."""

    total: int
    stolen: int

    @classmethod
    def now(cls) -> MachineTime:
        """Read /proc/stat."""
        with Path("/proc/stat").open() as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
        return cls(sum(ticks), ticks[_STEAL])

    def steal_percent_since(self, before: MachineTime) -> float:
        """Share of the time since `before` that was taken away."""
        total = self.total - before.total
        return 100 * (self.stolen - before.stolen) / total if total > 0 else 0.0
