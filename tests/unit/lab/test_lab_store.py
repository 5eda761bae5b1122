"""The configuration folder, and what sockets a namespace listens on."""

import os
import socket
from ipaddress import ip_address
from pathlib import Path

from nodeagent.lab.manifests import Manifest, parse_manifests
from nodeagent.lab.sockets import listening
from nodeagent.lab.store import ConfigStore


def manifest(text: str = "apiVersion: v1\nkind: Thing\nmetadata: {name: a}\nspec: 1  # one\n") -> Manifest:
    (found,) = parse_manifests(text, Path("user.yaml"))
    return found


def test_objects_are_files_written_as_given(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path)
    assert store.put(manifest()) == "created"
    assert "# one" not in (tmp_path / "thing_default_a.yaml").read_text().splitlines()[0]
    assert store.put(manifest()) == "unchanged"
    assert store.put(manifest("apiVersion: v1\nkind: Thing\nmetadata: {name: a}\nspec: 2\n")) == "configured"
    assert "spec: 2" in (tmp_path / "thing_default_a.yaml").read_text()
    assert list(store.digests()) == [str(tmp_path / "thing_default_a.yaml")]
    assert store.remove(manifest().key)
    assert not store.remove(manifest().key)
    assert store.digests() == {}
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_changed_is_not_written(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path)
    key = manifest().key
    assert store.write(key, {"a": 1})
    before = (tmp_path / key.file_name).stat().st_ino
    assert not store.write(key, {"a": 1})
    assert (tmp_path / key.file_name).stat().st_ino == before
    assert store.write(key, {"a": 2})
    assert (tmp_path / key.file_name).stat().st_ino != before, "a reader of the old file sees it whole"


def test_listening_sockets_are_seen_by_address() -> None:
    loopback = (ip_address("127.0.0.1"), ip_address("::1"))
    elsewhere = (ip_address("192.0.2.1"),)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp4,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        wanted = {("TCP", tcp4.getsockname()[1]), ("UDP", udp.getsockname()[1])}
        assert wanted <= listening(os.getpid(), loopback)
        assert not wanted & listening(os.getpid(), elsewhere)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as any6:
        assert ("TCP", any6.getsockname()[1]) in listening(os.getpid(), elsewhere)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as tcp6:
        assert ("TCP", tcp6.getsockname()[1]) in listening(os.getpid(), loopback)


def test_a_socket_that_does_not_listen_is_not_listed() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert ("TCP", bound.getsockname()[1]) not in listening(os.getpid(), (ip_address("127.0.0.1"),))


def test_a_process_that_is_gone_listens_on_nothing() -> None:
    assert listening(2**22 + 1, (ip_address("127.0.0.1"),)) == set()
