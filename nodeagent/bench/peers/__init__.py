"""The proxies that take part, and the ways without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nodeagent.bench.peers.base import Peer
from nodeagent.bench.peers.direct import Direct
from nodeagent.bench.peers.envoy import Envoy
from nodeagent.bench.peers.floor import Floor
from nodeagent.bench.peers.haproxy import Haproxy
from nodeagent.bench.peers.nginx import Nginx
from nodeagent.bench.peers.subject import Subject
from nodeagent.bench.results import SUBJECT
from nodeagent.config.yaml_fields import suggestion
from nodeagent.errors import CapabilityError, ConfigError

PEERS: Final[dict[str, type[Peer]]] = {
    peer.name: peer for peer in (Subject, Direct, Envoy, Haproxy, Nginx, Floor)
}


def choose_peers(names: Sequence[str]) -> list[Peer]:
    """The peers of these names (none: all), the subject always among them; ConfigError for an unknown one."""
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"--peers: there is no {name!r}{suggestion(name, set(PEERS))}")
    chosen = set(names) | {SUBJECT} if names else set(PEERS)
    return [peer() for name, peer in PEERS.items() if name in chosen]


def find_peers(peers: Sequence[Peer]) -> tuple[dict[str, str], dict[str, str]]:
    """(versions of those that are here, how to get those that are not), by name."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for peer in peers:
        try:
            found[peer.name] = peer.find()
        except CapabilityError as error:
            missing[peer.name] = str(error)
    return found, missing
