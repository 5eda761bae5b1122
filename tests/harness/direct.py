"""Pods that have opted in to the acceleration `direct`, and one that has not, on a network without an agent."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.cgroups import scratch_cgroup
from harness.netns import Namespace, Network
from nodeagent.dataplane.bpffs import remove_pins
from nodeagent.dataplane.direct import Direct
from nodeagent.dataplane.routing import read_addresses
from nodeagent.snapshot.address import widen_address

_numbers = itertools.count()


@dataclass
class DirectPods:
    """`one` and `two` have opted in, `other` has not."""

    network: Network
    one: Namespace
    two: Namespace
    other: Namespace
    direct: Direct
    pins: Path

    def admit(self, *namespaces: Namespace) -> None:
        for each in namespaces:
            addresses = [widen_address(raw) for raw in read_addresses(each.handle)]
            self.direct.admit(each.handle, addresses)

    def counted(self, name: str) -> int:
        return self.direct.state().counters.get(name, 0)


def connect(
    client: Namespace, server: Namespace, address: str = "", *, source: tuple[str, int] | None = None
) -> tuple[socket.socket, socket.socket]:
    """A connection to the server's address (by default its IPv4 one): both ends, blocking."""
    with server.run(listen) as listener:
        return dial(client, listener, address or server.v4, source)


def listen() -> socket.socket:
    """A listener of both families, on a port of the kernel's choice, in the calling thread's namespace."""
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen(256)
    return listener


def dial(
    client: Namespace, listener: socket.socket, address: str, source: tuple[str, int] | None = None
) -> tuple[socket.socket, socket.socket]:
    """A connection to a listener: both ends."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if source is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(source)
        made.connect((address, listener.getsockname()[1]))
        return made

    near = client.run(make)
    return near, listener.accept()[0]


@contextlib.contextmanager
def direct_pods(name: str, limit: int = 1 << 20) -> Iterator[DirectPods]:
    """The pods, with an owner whose pins are gone afterwards."""
    pins = Path(f"/sys/fs/bpf/nodeagent-direct-{os.getpid()}-{next(_numbers)}")
    with contextlib.ExitStack() as closing:
        network = closing.enter_context(Network(name))
        group = closing.enter_context(scratch_cgroup(name))
        closing.callback(remove_pins, pins)
        direct = Direct(pins, group.group, limit)
        closing.callback(direct.close)
        one, two, other = (network.add(each) for each in ("one", "two", "other"))
        pods = DirectPods(network, one, two, other, direct, pins)
        pods.admit(one, two)
        yield pods
