"""Where the benchmark takes place: a network namespace, a cgroup and a folder of its own, removed at the end."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from nodeagent.bench.accounting import CpuTime, Memory, cpu_time, memory
from nodeagent.config.bench import Cores
from nodeagent.errors import BenchError, CapabilityError
from nodeagent.lab import cgroups, netns, sandbox
from nodeagent.lab.names import BPFFS, netns_path

PREFIX: Final = "nabench."
"""Of all names that a stage gives to namespaces, cgroups and folders; the process id follows."""
PROGRAMS: Final = Path(__file__).with_name("bin")
"""The programs that native/bench builds."""
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.01
_DESCRIPTORS: Final = 65_536
_SYSCTLS: Final = {
    # A new connection per request takes ports faster than TIME_WAIT gives them back.
    "net/ipv4/ip_local_port_range": "12000 65000",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/core/somaxconn": "8192",
}


def program(name: str) -> str:
    """Path of one of our C programs; CapabilityError if it was not built."""
    path = PROGRAMS / f"nodeagent-{name}"
    if not os.access(path, os.X_OK):
        raise CapabilityError(f"{path} is missing; `make build` makes it")
    return str(path)


class Process:
    """A running program, in a cgroup of its own below the stage's."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], group: str, log: Path) -> None:
        self.name = name
        self._popen = popen
        self._group = group
        self._log = log

    @property
    def stdout(self) -> IO[bytes]:
        """What it prints, if it was spawned with `talk`."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def stdin(self) -> IO[bytes]:
        """What it reads, if it was spawned with `talk`."""
        assert self._popen.stdin is not None
        return self._popen.stdin

    def pids(self) -> list[int]:
        """It and its children."""
        return cgroups.processes(self._group)

    def cpu_time(self) -> CpuTime:
        """Processor time of all its threads."""
        return cpu_time(self.pids())

    def memory(self) -> Memory:
        """Memory of all its processes."""
        return memory(self.pids())

    def check(self) -> None:
        """BenchError if it has ended."""
        if self._popen.poll() is not None:
            raise BenchError(f"{self.name} has ended{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-5:]
        return ": " + " | ".join(lines) if lines else f" with status {self._popen.returncode}"

    def wait_until_listening(self, ports: Sequence[int], seconds: float = _START_SECONDS) -> None:
        """Return when something in its namespace listens on all ports; BenchError if that takes too long."""
        deadline = time.monotonic() + seconds
        while not set(ports) <= _listening(self._popen.pid):
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not listen after {seconds:g} s{self._last_words()}")
            time.sleep(_LOOK_SECONDS)

    def wait(self, seconds: float) -> int:
        """Return its exit status when it has ended."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} goes on after {seconds:g} s") from None

    def stop(self) -> None:
        """End it and all that it has started; may be called again."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_SECONDS)
        cgroups.remove(self._group)
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _listening(pid: int) -> set[int]:
    """Ports with a TCP listener in the network namespace of a process, from /proc/PID/net/tcp."""
    ports: set[int] = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


class Stage:
    """Makes the place and starts programs in it. A context manager: nothing is left behind."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self.name = f"{PREFIX}{os.getpid()}"
        self.folder = Path()
        self._processes: list[Process] = []
        self._count = 0

    @property
    def namespace(self) -> Path:
        """Path of the network namespace."""
        return netns_path(self.name)

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise CapabilityError("the benchmark makes a network namespace and cgroups: run it as root")
        _raise_descriptor_limit()
        _remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}."))
        self.folder.chmod(0o755)  # workers of nginx, which drop privileges, write there
        try:
            netns.create(self.name, _SYSCTLS)
            self.run_now(["ip", "link", "set", "lo", "up"])
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clear()

    def _clear(self) -> None:
        for process in reversed(self._processes):
            process.stop()
        cgroups.remove(self.name)
        netns.remove(self.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def namespace_for(self, what: str) -> Iterator[str]:
        """A further network namespace for the time of the block; its name."""
        name = f"{self.name}.{what}"
        netns.create(name, _SYSCTLS)
        try:
            yield name
        finally:
            netns.remove(name)

    @contextmanager
    def bpf_pins(self) -> Iterator[Path]:
        """A folder for what an agent pins, which outlives it; afterwards nothing of it is left."""
        pins = BPFFS / _pins_name(os.getpid())
        try:
            yield pins
        finally:
            _unload(pins)

    def run_now(self, argv: Sequence[str], namespace: Path | None = None) -> str:
        """Run a short command in a namespace; returns its output, BenchError if it fails."""
        name = Path(argv[0]).name
        with self.spawn(name, argv, self.cores.load, talk=True, namespace=namespace) as process:
            output = process.stdout.read().decode(errors="replace")
            if process.wait(_START_SECONDS) != 0:
                raise BenchError(f"{' '.join(argv)} failed{process._last_words()}")
        return output

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        cores: Sequence[int],
        *,
        env: Mapping[str, str] | None = None,
        talk: bool = False,
        namespace: Path | None = None,
    ) -> Process:
        """Start a program on some cores; its output goes to a log, with `talk` to us. The caller stops it."""
        self._count += 1
        group = f"{self.name}/{self._count}.{name}"
        cgroups.create(group)
        log = self.folder / f"{self._count}.{name}.log"
        spec: dict[str, object] = {
            "argv": ["taskset", "-c", ",".join(map(str, cores)), *argv],
            "env": {**os.environ, **(env or {})},
            "cgroup": str(cgroups.mount_point() / group),
            "netns": str(namespace or self.namespace),
            "cwd": str(self.folder),
        }
        process = Process(name, _launch(spec, log, talk=talk), group, log)
        self._processes = [other for other in self._processes if other._popen.poll() is None]
        self._processes.append(process)
        return process


def _launch(spec: dict[str, object], log: Path, *, talk: bool) -> subprocess.Popen[bytes]:
    """Start the launcher and return when it has become the program."""
    reading, writing = os.pipe()
    with log.open("ab") as output, os.fdopen(reading, "rb") as problems:
        try:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", sandbox.__file__, json.dumps(spec), str(writing)],
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talk else output,
                stderr=output,
                pass_fds=(writing,),
                start_new_session=True,  # Ctrl-C is for us: the others are stopped in order
            )
        finally:
            os.close(writing)
        problem = problems.read().decode(errors="replace")
    if problem:
        popen.wait()
        raise BenchError(problem)
    return popen


def _pins_name(pid: int) -> str:
    """A bpf filesystem takes no dots."""
    return f"{PREFIX}{pid}".replace(".", "-")


def _unload(pins: Path) -> None:
    if pins.exists():
        from nodeagent.dataplane.direct import unload_all  # loads the extension, which few scenarios need

        unload_all(pins)


def _remove_leftovers() -> None:
    """Remove what a benchmark that was killed has left; one that runs is told by its process."""
    groups = cgroups.mount_point().glob(f"{PREFIX}*")
    folders = Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    for name in {*netns.names(), *(path.name for path in (*groups, *folders))}:
        owner = name.removeprefix(PREFIX).partition(".")[0]
        if not name.startswith(PREFIX) or not owner.isdecimal() or Path(f"/proc/{owner}").exists():
            continue
        cgroups.remove(name)
        netns.remove(name)
        shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)
    for pins in BPFFS.glob(_pins_name(0).removesuffix("0") + "*"):
        if not Path(f"/proc/{pins.name.rpartition('-')[2]}").exists():
            _unload(pins)


def _raise_descriptor_limit() -> None:
    """Every proxy gets as many descriptors as there may be; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, max(_DESCRIPTORS, hard)))
    except (ValueError, OSError):  # no CAP_SYS_RESOURCE
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
