"""A program of the lab, kept running: started in its namespaces and cgroup, restarted when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from nodeagent.errors import LabError
from nodeagent.lab import cgroups, sandbox

State = Literal["stopped", "running", "backoff", "exited"]

# A kubelet's CrashLoopBackOff, made for a lab's time scale.
BACKOFF_FIRST: Final = 0.5
BACKOFF_LAST: Final = 10.0
CRASH_SECONDS: Final = 1.0
_STABLE_SECONDS: Final = 10.0  # having run for so long, the next restart is quick again
_START_SECONDS: Final = 10.0
# Logs are cut back at this size, keeping the newer half in `<log>.1`.
LOG_LIMIT: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a program. `cgroup` is its own: stopping kills everything in it."""

    argv: tuple[str, ...]
    cgroup: str
    netns: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    join: int | None = None  # pid whose mount and UTS namespaces to enter
    hostname: str | None = None  # given: mount and UTS namespaces of its own
    binds: tuple[tuple[str, str], ...] = ()

    def spec(self) -> dict[str, Any]:
        """Return what `sandbox.become` takes."""
        return {
            "argv": list(self.argv),
            "env": dict(self.env),
            "cgroup": str(cgroups.mount_point() / self.cgroup),
            "netns": str(self.netns) if self.netns else None,
            "join": self.join,
            "new": self.hostname is not None,
            "hostname": self.hostname,
            "binds": list(self.binds),
        }


async def start(launch: Launch, log: Path) -> asyncio.subprocess.Process:
    """Start a program; returns once it has replaced the launcher. LabError says why it did not."""
    cgroups.create(launch.cgroup)
    reading, writing = os.pipe()
    try:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", sandbox.__file__, json.dumps(launch.spec()), str(writing),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        writing = -1
        problem = await asyncio.wait_for(_read_all(reading), _START_SECONDS)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if problem:
        await process.wait()
        raise LabError(problem)
    return process


async def _read_all(descriptor: int) -> str:
    """Read a pipe to its end without blocking the loop."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    data = b""
    while True:
        readable = loop.create_future()
        loop.add_reader(descriptor, readable.set_result, None)
        try:
            await readable
        finally:
            loop.remove_reader(descriptor)
        chunk = os.read(descriptor, 4096)
        if not chunk:
            return data.decode(errors="replace")
        data += chunk


class Keeper:
    """Keeps one program running until told to stop; `changed` is called on every change of state."""

    def __init__(
        self,
        launch: Callable[[], Launch],
        log: Path,
        changed: Callable[[], None],
        *,
        restart: bool = True,
    ) -> None:
        self._launch = launch
        self._log = log
        self._changed = changed
        self._restart = restart
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        # Held while a program is being started: until then it is in no cgroup by which stop() could find it.
        self._starting = asyncio.Lock()
        self.state: State = "stopped"
        self.restarts = 0
        self.last_exit = ""
        self._began = 0.0

    @property
    def pid(self) -> int | None:
        """The running program's process id."""
        return self._process.pid if self._process is not None and self.state == "running" else None

    @property
    def is_crashing(self) -> bool:
        """Whether it runs again for less time than it takes to say that it will stay."""
        return bool(self.last_exit) and time.monotonic() - self._began < CRASH_SECONDS

    def start(self) -> None:
        """Start the program, if it is not kept running already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep())

    async def stop(self, grace: float) -> None:
        """End the program: SIGTERM, then after `grace` seconds SIGKILL to all that is left of it."""
        if self._task is not None:
            async with self._starting:
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            await _end(process, grace)
        await asyncio.to_thread(cgroups.kill, self._launch().cgroup)
        self._become("stopped")

    def _become(self, state: State) -> None:
        self.state = state
        self._changed()

    async def _keep(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            began = time.monotonic()
            await self._run_once()
            if not self._restart:
                self._become("exited")
                return
            if time.monotonic() - began > _STABLE_SECONDS:
                delay = BACKOFF_FIRST
            self._become("backoff")
            await asyncio.sleep(delay)
            delay = min(delay * 2, BACKOFF_LAST)
            self.restarts += 1

    async def _run_once(self) -> None:
        try:
            launch = self._launch()
            async with self._starting:
                self._process = await start(launch, self._log)
        except (LabError, OSError, TimeoutError) as error:
            self.last_exit = str(error) or "did not start in time"
            self._note(self.last_exit)
            return
        self._began = time.monotonic()
        self._become("running")
        code = await self._process.wait()
        self.last_exit = describe_exit(code)
        self._note(self.last_exit)
        # What the program left behind goes with it, as a container's processes go with its first.
        await asyncio.to_thread(cgroups.kill, launch.cgroup)

    def _note(self, text: str) -> None:
        with self._log.open("a") as log:
            log.write(f"[lab] {text}\n")


async def _end(process: asyncio.subprocess.Process, grace: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def describe_exit(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def trim_log(log: Path) -> None:
    """Cut a log that has grown over the limit; its writers append, so they go on at the new end."""
    try:
        if log.stat().st_size <= LOG_LIMIT:
            return
        with log.open("r+b") as file:
            file.seek(-LOG_LIMIT // 2, os.SEEK_END)
            log.with_suffix(".log.1").write_bytes(file.read())
            file.truncate(0)
    except OSError:
        return
