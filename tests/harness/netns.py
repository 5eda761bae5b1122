"""Namespaces and networks of a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from harness.processes import Process
from nodeagent.dataplane.netns import NetworkNamespace

T = TypeVar("T")

RUN_NETNS = Path("/run/netns")
INTERFACE_NAME_LIMIT = 15


def ip(*arguments: str) -> None:
    """Run ip(8); AssertionError with what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


class Namespace:
    """A network namespace under /run/netns with its loopback up, and the processes that the test started in
    it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.v4 = ""
        self.v6 = ""
        self._processes: list[Process] = []
        ip("netns", "add", name)
        self.ip("link", "set", "lo", "up")
        self.handle = NetworkNamespace.open(self.path)

    @property
    def path(self) -> Path:
        return RUN_NETNS / self.name

    def ip(self, *arguments: str) -> None:
        """Run ip(8) on this namespace."""
        ip("-n", self.name, *arguments)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function inside, in a thread of its own."""
        return self.handle.run(function)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command as it has to be started to run inside. Not by `ip netns exec`, which mounts a /sys
        without cgroups."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def exec(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is in the result."""
        return subprocess.run(
            self.command(argv), input=stdin or "", capture_output=True, text=True, timeout=timeout
        )

    def check(self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 20.0) -> str:
        """Run a command that has to succeed; returns its standard output."""
        done = self.exec(argv, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, (
            f"{self.name}: {argv}: exit {done.returncode}: {done.stdout}{done.stderr}"
        )
        return done.stdout

    def start(
        self,
        argv: Sequence[str],
        *,
        prepare: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a command in the background; it ends with the namespace at the latest. `prepare` runs in the
        child before the command."""
        process = Process(self.command(argv), listens=self.listens, prepare=prepare, env=env)
        self._processes.append(process)
        return process

    def listens(self, port: int) -> bool:
        """Whether a TCP socket of the namespace listens on the port."""
        needle = f":{port:04X} "

        def look() -> bool:
            # thread-self: the namespace belongs to the thread, not to the process.
            tables = (Path("/proc/thread-self/net") / name for name in ("tcp", "tcp6"))
            text = "".join(table.read_text() for table in tables if table.exists())
            lines = [line.split() for line in text.splitlines()]
            return any(len(line) > 3 and line[3] == "0A" and f"{line[1]} ".endswith(needle) for line in lines)

        return self.run(look)

    def state(self) -> dict[str, str]:
        """Rules, routes, ruleset and sysctls as text: to compare before and after."""
        return {
            "rules v4": self.check(["ip", "-4", "rule"]),
            "rules v6": self.check(["ip", "-6", "rule"]),
            "routes v4": self.check(["ip", "-4", "route", "show", "table", "all"]),
            "routes v6": self.check(["ip", "-6", "route", "show", "table", "all"]),
            "nft": self.check(["nft", "list", "ruleset"]),
            "marks": self.check(["sh", "-c", "sysctl -a 2>/dev/null | grep fwmark"]),
            "sysctl v4": self.check(["sh", "-c", "sysctl -a 2>/dev/null | grep ^net.ipv4.conf"]),
            "sysctl v6": self.check(["sh", "-c", "sysctl -a 2>/dev/null | grep ^net.ipv6.conf || true"]),
        }

    def close(self) -> None:
        """Stop its processes and delete it."""
        for process in reversed(self._processes):
            process.close()
        self.handle.close()
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)


class Network:
    """A bridge in a namespace of its own, and namespaces on it."""

    def __init__(self, name: str) -> None:
        self._prefix = f"nt-{os.getpid()}-{name}"
        self._count = 0
        self._namespaces: list[Namespace] = []
        self.fabric = self._create(self._prefix)
        self.fabric.ip("link", "add", "br0", "type", "bridge")
        self.fabric.ip("link", "set", "br0", "up")
        self.fabric.ip("addr", "add", "10.99.0.254/24", "dev", "br0")
        self.fabric.ip("addr", "add", "fd99::fe/64", "dev", "br0", "nodad")

    def _create(self, name: str) -> Namespace:
        namespace = Namespace(name)
        self._namespaces.append(namespace)
        return namespace

    def add(self, name: str, *, default_route: bool = False, ipv6: bool = True) -> Namespace:
        """A namespace with `eth0` on the bridge; the default route leads to the bridge's namespace."""
        self._count += 1
        namespace = self._create(f"{self._prefix}-{name}")
        port = f"p{self._count}-{name}"[:INTERFACE_NAME_LIMIT]
        namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.fabric.name)
        self.fabric.ip("link", "set", port, "master", "br0", "up")
        # The link-local address at once, not when duplicate detection is through.
        namespace.check(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0"])
        namespace.ip("link", "set", "eth0", "up")
        namespace.v4, namespace.v6 = f"10.99.0.{self._count}", f"fd99::{self._count:x}"
        namespace.ip("addr", "add", f"{namespace.v4}/24", "dev", "eth0")
        if ipv6:
            namespace.ip("addr", "add", f"{namespace.v6}/64", "dev", "eth0", "nodad")
        if default_route:
            namespace.ip("route", "add", "default", "via", "10.99.0.254")
            namespace.ip("-6", "route", "add", "default", "via", "fd99::fe")
        return namespace

    def close(self) -> None:
        for namespace in reversed(self._namespaces):
            namespace.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
