"""Namespaces, listeners, addresses and routing in real namespaces."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Namespace, Network, require

from nodeagent.dataplane.listeners import open_listeners
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.routing import apply_routing, read_addresses, remove_routing
from nodeagent.dataplane.rtnetlink import Link, LocalRoute, RouteSocket, Rule
from nodeagent.errors import NetnsError

pytestmark = pytest.mark.netns


@pytest.fixture
def pod() -> Iterator[Namespace]:
    require("root")
    with Network("unit") as network:
        yield network.add("pod")


def _current() -> int:
    """The namespace of the calling thread."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_runs_inside_and_stays_outside(pod: Namespace) -> None:
    here = _current()
    inside = pod.handle.run(_current)
    assert inside == pod.handle.inode != here
    assert _current() == here


def test_passes_on_what_is_raised(pod: Namespace) -> None:
    with pytest.raises(ZeroDivisionError):
        pod.handle.run(lambda: 1 / 0)


def test_what_is_no_namespace_is_named(tmp_path: Path) -> None:
    require("root")
    file = tmp_path / "file"
    file.write_text("")
    with NetworkNamespace.open(file) as namespace, pytest.raises(NetnsError, match="not a network namespace"):
        namespace.run(lambda: None)
    with pytest.raises(NetnsError, match=r"nowhere: No such file"):
        NetworkNamespace.open(tmp_path / "nowhere")
    namespace.close()
    with pytest.raises(NetnsError, match="was closed"):
        namespace.run(lambda: None)


def test_duplicate_leaves_the_original_alone(pod: Namespace) -> None:
    with NetworkNamespace.duplicate(pod.handle.fd) as copy:
        assert copy.inode == pod.handle.inode
    assert pod.handle.inode > 0


def test_listeners_share_one_socket_of_both_families(pod: Namespace) -> None:
    descriptors = open_listeners(pod.handle, 15001, 3)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    try:
        assert len(set(descriptors)) == 3
        assert not any(
            os.get_blocking(descriptor) or os.get_inheritable(descriptor) for descriptor in descriptors
        )
        for address, family in ((pod.v4, socket.AF_INET), (pod.v6, socket.AF_INET6)):
            with pod.run(lambda family=family: socket.socket(family)) as client:
                client.connect((address, 15001))
                accepted, _ = sockets[2].accept()
                accepted.close()
    finally:
        for each in sockets:
            each.close()


def test_a_taken_port_is_named_and_nothing_leaks(pod: Namespace) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with (
        pod.run(lambda: socket.create_server(("", 15001))),
        pytest.raises(NetnsError, match=r"port 15001 .*in use; a program in the pod listens there"),
    ):
        open_listeners(pod.handle, 15001, 2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_addresses(pod: Namespace) -> None:
    pod.ip("addr", "add", "10.99.0.77/32", "dev", "eth0")
    found = read_addresses(pod.handle)
    expected = {
        socket.inet_pton(socket.AF_INET, pod.v4),
        socket.inet_pton(socket.AF_INET, "10.99.0.77"),
        socket.inet_pton(socket.AF_INET6, pod.v6),
    }
    assert expected <= set(found)
    assert all(raw[:2] == b"\xfe\x80" for raw in set(found) - expected), "the rest is link-local"


def test_routing_is_idempotent_and_follows_interfaces(pod: Namespace) -> None:
    before = pod.state()
    apply_routing(pod.handle)
    once = pod.state()
    assert once != before
    apply_routing(pod.handle)
    assert pod.state() == once
    pod.ip("link", "add", "eth1", "type", "bridge")
    pod.ip("addr", "add", "10.98.0.1/24", "dev", "eth1")
    pod.ip("link", "set", "eth1", "up")
    apply_routing(pod.handle)
    assert "local 127.0.0.1 dev eth1 table 28258 proto 110" in pod.state()["routes v4"]
    pod.ip("link", "delete", "eth1")
    remove_routing(pod.handle)
    remove_routing(pod.handle)
    assert pod.state() == before


def test_routing_leaves_rules_and_routes_of_others(pod: Namespace) -> None:
    pod.ip("rule", "add", "pref", "90", "fwmark", "0x1", "lookup", "77")
    pod.ip("route", "add", "local", "default", "dev", "lo", "table", "28257")
    before = pod.state()
    apply_routing(pod.handle)
    remove_routing(pod.handle)
    assert pod.state() == before


def test_reads_back_what_it_wrote(pod: Namespace) -> None:
    rule = Rule(socket.AF_INET6, 50, 70000, mark=0xABCD)
    route = LocalRoute(socket.AF_INET, 70000, 1, 9, socket.inet_aton("192.0.2.1"))

    def work() -> tuple[set[Rule], set[LocalRoute], list[Link]]:
        with RouteSocket(77) as routes:
            routes.add_rule(rule)
            routes.add_rule(rule)
            routes.add_route(route)
            routes.add_route(route)
            found = routes.own_rules(socket.AF_INET6), routes.own_routes(socket.AF_INET), routes.links()
            routes.delete_rule(rule)
            routes.delete_rule(rule)
            routes.delete_route(route)
            routes.delete_route(route)
            assert not routes.own_rules(socket.AF_INET6)
            assert not routes.own_routes(socket.AF_INET)
            return found

    rules, local_routes, links = pod.run(work)
    assert rules == {rule}
    assert local_routes == {route}
    assert {link.name for link in links} >= {"lo", "eth0"}
    assert all(link.up for link in links if link.name in ("lo", "eth0"))


def test_what_the_kernel_refuses_is_named(pod: Namespace) -> None:
    def work() -> None:
        with RouteSocket(77) as routes:
            routes.add_route(LocalRoute(socket.AF_INET, 70000, 4242, 1))

    with pytest.raises(NetnsError, match=r"cannot add LocalRoute.*No such device"):
        pod.run(work)
