"""Who may connect to which port of this node's workloads without the engine: the entries of `access`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nodeagent.dataplane.bypass_layout import ANY_SOURCE, Access, AccessKey
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.dataplane.bypass_verdict import (
    ENGINE,
    Peer,
    Target,
    Verdict,
    asks_for_address,
    judge,
    stages_of,
)
from nodeagent.snapshot.policies import ConnectionStage
from nodeagent.snapshot.values import Inbound

TCP: Final = 6  # IPPROTO_TCP
_PEERS_REMEMBERED: Final = 4096
"""Verdicts kept of a port: one for each identity that asks, and set of addresses where policy looks at them."""


class PortVerdicts:
    """What the present guards of a workload's port say to each peer. Made anew when they change."""

    __slots__ = ("_asks_for_address", "_by_peer", "_stages", "_target", "anyone")

    def __init__(self, inbound: Inbound | None, target: Target, *, identities: bool) -> None:
        """`inbound` None: what holds there is not known, or cannot be put in force. `identities`: there is a CA, so
        that each peer has an identity."""
        self._stages: tuple[ConnectionStage, ...] | None = (
            None if inbound is None else stages_of(inbound, target.port)
        )
        self._target = target
        self._asks_for_address = self._stages is not None and asks_for_address(self._stages)
        self._by_peer: dict[Peer, Verdict] = {}
        self.anyone = self._judge(Peer(None if identities else ""))
        """What it says to each peer of the node whoever that is; ENGINE if that depends."""

    def _judge(self, peer: Peer) -> Verdict:
        return ENGINE if self._stages is None else judge(self._stages, peer, self._target)

    def of(self, peer: LocalWorkload) -> Verdict:
        """What it says to a peer."""
        key = Peer(peer.identity, peer.addresses if self._asks_for_address else ())
        found = self._by_peer.get(key)
        if found is None:
            found = self._judge(Peer(peer.identity, peer.addresses))
            if len(self._by_peer) >= _PEERS_REMEMBERED:
                self._by_peer.clear()
            self._by_peer[key] = found
        return found

    def entries(self, number: int, sources: Iterable[LocalWorkload]) -> dict[AccessKey, Verdict]:
        """The entries that say so for `number`, the workload that has the port. Without an entry the engine decides."""
        port = self._target.port
        if self.anyone.access is not Access.ENGINE:
            return {AccessKey(ANY_SOURCE, number, port, TCP): self.anyone}
        if self._stages is None:
            return {}
        found: dict[AccessKey, Verdict] = {}
        for source in sources:
            verdict = self.of(source)
            if verdict.access is not Access.ENGINE and source.number != number:
                found[AccessKey(source.number, number, port, TCP)] = verdict
        return found
