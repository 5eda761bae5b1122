"""A machine whose services are workloads by their cgroups: a namespace, an agent in it, and processes in groups.

with machine(pins) as vm:
    vm.agent.share("web", vm.web.path, ports=[8080])
    client = vm.web.dial(vm.outside.v4, 8080)
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.capture_agent import CaptureAgent
from harness.cgroups import ScratchCgroup, scratch_cgroup
from harness.netns import Namespace, Network
from nodeagent.dataplane.cgroup import own_path
from nodeagent.dataplane.netns import enter_namespace

_numbers = itertools.count()
Options = tuple[tuple[int, int, int | bytes], ...]


class GroupProcess:
    """A process of a group in a namespace, which makes connections for the test."""

    def __init__(self, namespace: Namespace, group: ScratchCgroup) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        ours.settimeout(10)

        def prepare() -> None:
            group.join()
            enter_namespace(namespace.handle.fd)

        self._process = subprocess.Popen(
            [sys.executable, "-c", _BODY, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            preexec_fn=prepare,
        )
        theirs.close()

    def dial(self, address: str, port: int, *, options: Options = ()) -> socket.socket:
        """A socket that the process has connected; OSError if connect() failed. `options` are set before."""
        plain: list[object] = [
            (level, name, list(value) if isinstance(value, bytes) else value)
            for level, name, value in options
        ]
        return self._ask([address, port, plain])

    def raw(self) -> socket.socket:
        """A raw TCP socket over IPv4 that the process has opened."""
        return self._ask(["", 0, []])

    def _ask(self, request: list[object]) -> socket.socket:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer, descriptors, _, _ = socket.recv_fds(self._socket, 1000, 1)
        if descriptors:
            opened = socket.socket(fileno=descriptors[0])
            opened.settimeout(5)
            return opened
        code = int(answer or b"0")
        raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """May be called again."""
        self._socket.close()
        self._process.wait(10)


_BODY = """
import json, socket, sys
control = socket.socket(fileno=int(sys.argv[1]))
for line in control.makefile():
    address, port, options = json.loads(line)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = (socket.SOCK_RAW, socket.IPPROTO_TCP)
    client = socket.socket(family) if port else socket.socket(family, *raw)
    client.settimeout(5)
    try:
        for level, name, value in options:
            client.setsockopt(level, name, bytes(value) if isinstance(value, list) else value)
        if port:
            client.connect((address, port))
        socket.send_fds(control, [b"0"], [client.fileno()])
    except OSError as error:
        control.sendall(str(error.errno or 110).encode())
    client.close()
"""


@dataclass
class Group:
    """A service's group, with a process in it."""

    group: ScratchCgroup
    process: GroupProcess

    @property
    def path(self) -> str:
        """As a workload's `cgroup`."""
        return self.group.path

    def dial(self, address: str, port: int, *, options: Options = ()) -> socket.socket:
        return self.process.dial(address, port, options=options)


@dataclass
class Machine:
    """`here` is the machine, `outside` another one."""

    network: Network
    here: Namespace
    outside: Namespace
    agent: CaptureAgent
    web: Group
    api: Group
    stack: ExitStack
    pins: Path | None
    shared: list[str] = field(default_factory=list)
    """Who was taken on for the test that runs."""
    _before: int = 0

    def share(self, uid: str, group: str, *, ports: Sequence[int] = (), identity: str = "") -> None:
        """Capture a group until the test ends."""
        self.agent.share(uid, group, ports=ports, identity=identity)
        self.shared.append(uid)

    def connections(self) -> int:
        """How many the agent has got in the test that runs."""
        return int(self.agent.ask("counters")["downstream_cx_total"]) - self._before

    @contextmanager
    def test(self) -> Iterator[None]:
        """For one test of several: what it leaves is none of the next one's business."""
        self.agent.ask("stats")
        self._before += self.connections()
        with ExitStack() as stack:
            outer, self.stack = self.stack, stack
            try:
                yield
            finally:
                self.stack = outer
                for uid in self.shared:
                    self.agent.ask("remove", uid=uid)
                    self.agent.ask("drain", uid=uid, drain_ms=0)
                self.shared.clear()

    def start_agent(self) -> CaptureAgent:
        """Another agent, in the place of one that is gone."""
        self.agent = self.stack.enter_context(_agent(self.stack, self.here, self.pins))
        return self.agent

    @property
    def agent_group(self) -> str:
        """Where the agent is."""
        return own_path(Path(f"/proc/{self.agent.pid}/cgroup").read_text())

    def inner(self, group: Group, name: str) -> Group:
        """A group within another, with a process."""
        return _group(self.stack, self.here, name, within=group.group)

    def made_anew(self, group: Group) -> Group:
        """End all that is in a group, remove it, and make one of the same name."""
        group.process.close()
        group.group.group.directory.rmdir()
        group.group.group.directory.mkdir()
        group.process = GroupProcess(self.here, group.group)
        self.stack.callback(group.process.close)
        return group

    def bystander(self) -> GroupProcess:
        """A process of the machine in a group that is no workload's."""
        return _group(self.stack, self.here, "other").process


def _agent(stack: ExitStack, here: Namespace, pins: Path | None) -> CaptureAgent:
    group = stack.enter_context(scratch_cgroup("agent"))

    def join() -> None:
        group.join()
        enter_namespace(here.handle.fd)

    return CaptureAgent(join, pins)


def _group(stack: ExitStack, here: Namespace, name: str, within: ScratchCgroup | None = None) -> Group:
    group = stack.enter_context(scratch_cgroup(name, within))
    process = GroupProcess(here, group)
    stack.callback(process.close)
    return Group(group, process)


@contextmanager
def machine(pins: Path | None) -> Iterator[Machine]:
    """A machine with two services, `web` and `api`, that are not captured yet."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(f"vm{next(_numbers)}"))
        here, outside = network.add("vm", default_route=True), network.add("out", default_route=True)
        web, api = _group(stack, here, "web"), _group(stack, here, "api")
        agent = stack.enter_context(_agent(stack, here, pins))
        yield Machine(network, here, outside, agent, web, api, stack, pins)
