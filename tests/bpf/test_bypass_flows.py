"""The connections that have passed the engine, in a map that is filled by hand: who they are between, and their end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from harness import Namespace, Network, require
from harness.bpf_source import compile_bpf

from nodeagent.dataplane.bpf import BpfMap, BpfObject
from nodeagent.dataplane.bypass_flows import FlowTable, LiveFlow
from nodeagent.dataplane.bypass_layout import ENDS_SIZE, FLOW_SIZE, Ends, Flow
from nodeagent.dataplane.ebpf_node import netns_cookie
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import NetnsError
from nodeagent.snapshot.address import parse_address

pytestmark = pytest.mark.netns

LIFE = 7
EARLIER = 6
SO_COOKIE = 57  # asm-generic/socket.h
FLOWS = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "nodeagent_abi.h"
char LICENSE[] SEC("license") = "GPL";
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_bypass_key);
  __type(value, struct na_bypass);
} bypassed SEC(".maps");
"""


@dataclass(frozen=True)
class Enrolled:
    """A workload as FlowTable wants it."""

    number: int
    namespace: NetworkNamespace
    addresses: tuple[bytes, ...]


class Node:
    """Who is enrolled."""

    def __init__(self) -> None:
        self.workloads: list[Enrolled] = []

    def enrol(self, number: int, pod: Namespace) -> Enrolled:
        self.workloads.append(Enrolled(number, pod.handle, (parse_address(pod.v4), parse_address(pod.v6))))
        return self.workloads[-1]

    def by_cookie(self, cookie: int) -> Enrolled | None:
        return next((each for each in self.workloads if netns_cookie(each.namespace) == cookie), None)

    def by_address(self, address: bytes) -> Enrolled | None:
        return next((each for each in self.workloads if address in each.addresses), None)


@dataclass
class Connection:
    """A connection between the pods, and what the map is to say of it."""

    client: socket.socket
    server: socket.socket
    ends: Ends
    flow: Flow

    def lives(self) -> bool:
        self.client.send(b"?")
        return self.server.recv(1) == b"?"

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture(scope="module")
def pods() -> Iterator[tuple[Namespace, Namespace]]:
    require("root", "clang", "engine")
    with Network("flows") as network:
        yield network.add("client"), network.add("server")


@pytest.fixture
def flows(tmp_path: Path) -> Iterator[BpfMap]:
    compile_bpf(tmp_path, "flows", FLOWS)
    with BpfObject("flows", folder=tmp_path) as loaded:
        opened = loaded.map("bypassed", ENDS_SIZE, FLOW_SIZE)
    yield opened
    opened.close()


@pytest.fixture
def node(pods: tuple[Namespace, Namespace]) -> Node:
    made = Node()
    for number, pod in enumerate(pods, 1):
        made.enrol(number, pod)
    return made


def _connect(pods: tuple[Namespace, Namespace], address: str, *, life: int = LIFE) -> Connection:
    client_pod, server_pod = pods
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind((address, 0))
        listener.listen(8)
        return listener

    with server_pod.run(listen) as listener:
        client = client_pod.run(lambda: socket.create_connection(listener.getsockname()[:2], 5))
        server, _ = listener.accept()
    server.settimeout(5)
    here, there = client.getsockname(), server.getsockname()
    ends = Ends(parse_address(here[0]), parse_address(there[0]), here[1], there[1])
    cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
    flow = Flow(ends.destination, 80, netns_cookie(client_pod.handle), cookie, 1, life, 1, 2, 3)
    return Connection(client, server, ends, flow)


def _put(flows: BpfMap, *connections: Connection) -> None:
    flows.update({each.ends.pack(): each.flow.pack() for each in connections})


def _is_reset(side: socket.socket) -> bool:
    try:
        return not side.recv(1)
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.ECONNABORTED)


def test_those_that_are_not_allowed_end_on_both_sides(
    pods: tuple[Namespace, Namespace], node: Node, flows: BpfMap
) -> None:
    kept, doomed, doomed6 = (_connect(pods, address) for address in (pods[1].v4, pods[1].v4, pods[1].v6))
    _put(flows, kept, doomed, doomed6)
    table = FlowTable(flows, node, LIFE)
    asked: list[LiveFlow] = []

    def is_allowed(each: LiveFlow) -> bool:
        asked.append(each)
        return each.port == kept.ends.destination_port

    assert table.revoke(is_allowed) == 2
    assert {(each.source, each.destination) for each in asked} == {(1, 2)}
    assert {each.ends for each in asked} == {each.ends for each in (kept, doomed, doomed6)}
    for each in (doomed, doomed6):
        assert _is_reset(each.client)
        assert _is_reset(each.server)
    assert kept.lives()
    assert table.revoked == 2
    for each in (kept, doomed, doomed6):
        each.close()


def test_numbers_of_an_earlier_agent_mean_nothing(
    pods: tuple[Namespace, Namespace], node: Node, flows: BpfMap
) -> None:
    connection = _connect(pods, pods[1].v4, life=EARLIER)
    connection.flow = replace(connection.flow, source=2, destination=1)
    _put(flows, connection)
    [found] = FlowTable(flows, node, LIFE).live()
    assert (found.source, found.destination) == (1, 2), "by namespace and address"
    node.workloads.pop()
    [found] = FlowTable(flows, node, LIFE).live()
    assert (found.source, found.destination) == (1, 0)
    connection.close()


def test_without_the_clients_namespace_it_ends_at_the_server(
    pods: tuple[Namespace, Namespace], node: Node, flows: BpfMap
) -> None:
    kept, doomed = (_connect(pods, pods[1].v4) for _ in range(2))
    _put(flows, doomed)
    del node.workloads[0]
    table = FlowTable(flows, node, LIFE)
    assert table.revoke(lambda _: False) == 1
    assert _is_reset(doomed.server)
    assert _is_reset(doomed.client)
    assert kept.lives()
    assert table.revoke(lambda _: False) == 0, "what is gone cannot be ended again"
    del node.workloads[0]
    assert table.revoke(lambda _: False) == 0
    kept.close()
    doomed.close()


@pytest.mark.parametrize("end", [0, 1], ids=["client", "server"])
def test_who_leaves_takes_its_connections_along(
    pods: tuple[Namespace, Namespace], node: Node, flows: BpfMap, end: int
) -> None:
    """At either end, by its own namespace: nobody is enrolled any more."""
    kept, doomed = (_connect(pods, pods[1].v4) for _ in range(2))
    _put(flows, doomed)
    leaving, table = node.workloads[end], FlowTable(flows, node, LIFE)
    who = netns_cookie(leaving.namespace), leaving.addresses
    node.workloads.clear()
    assert table.count_of(*who) == 1
    assert table.count_of(1 << 60, (parse_address("10.9.9.9"),)) == 0
    assert table.end_all_of(*who, leaving.namespace) == 1
    assert _is_reset(doomed.client)
    assert _is_reset(doomed.server)
    assert kept.lives(), "it is none of those past the engine"
    kept.close()
    doomed.close()


def test_one_namespace_that_fails_spares_no_other(
    pods: tuple[Namespace, Namespace], node: Node, flows: BpfMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = _connect(pods, pods[1].v4)
    other = replace(connection.flow, netns_cookie=1 << 60)
    elsewhere = replace(connection.ends, source_port=1)
    flows.update({connection.ends.pack(): connection.flow.pack(), elsewhere.pack(): other.pack()})
    closed = NetworkNamespace(os.open("/proc/self/ns/net", os.O_RDONLY))
    closed.close()
    by_cookie = node.by_cookie
    monkeypatch.setattr(
        node,
        "by_cookie",
        lambda cookie: Enrolled(9, closed, ()) if cookie == 1 << 60 else by_cookie(cookie),
    )
    table = FlowTable(flows, node, LIFE)
    with pytest.raises(NetnsError, match="was closed"):
        table.revoke(lambda _: False)
    assert table.revoked == 1
    assert _is_reset(connection.client)
    connection.close()


def test_many_are_read_at_once(node: Node, flows: BpfMap) -> None:
    flow = Flow(bytes(16), 80, 1, 1, 1, LIFE, 1, 2, 3)
    many = {Ends(bytes(16), bytes(16), port, 80).pack(): flow.pack() for port in range(1, 5001)}
    flows.update(many)
    assert dict(flows.items()) == many
    assert flows.count() == 5000
    assert {each.ends.source_port for each in FlowTable(flows, node, LIFE).live()} == set(range(1, 5001))
