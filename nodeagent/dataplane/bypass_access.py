"""Who may connect to which port of this node's workloads without the engine: the entries of `access`."""

from __future__ import annotations

from typing import Final

from nodeagent.dataplane.bypass_layout import Access
from nodeagent.dataplane.bypass_services import LocalWorkload
from nodeagent.dataplane.bypass_verdict import ENGINE, Judge, Peer, Target, Verdict, stages_of
from nodeagent.snapshot.values import Inbound

_PEERS_REMEMBERED: Final = 4096
"""Verdicts kept of a port: one for each identity that asks, and set of addresses where policy looks at them."""


class PortVerdicts:
    """What the present guards of a workload's port say to each peer. Made anew when they change."""

    __slots__ = ("_by_peer", "_judge", "_target", "anyone")

    def __init__(self, inbound: Inbound | None, target: Target, *, identities: bool) -> None:
        """`inbound` None: what holds there is not known, or cannot be put in force. `identities`: there is a CA, so
        that each peer has an identity."""
        stages = None if inbound is None else stages_of(inbound, target.port)
        self._judge = None if stages is None else Judge(stages)
        self._target = target
        self._by_peer: dict[object, Verdict] = {}
        self.anyone = self._ask(Peer(None if identities else ""))
        """What it says to each peer of the node whoever that is; ENGINE if that depends."""

    def _ask(self, peer: Peer) -> Verdict:
        return ENGINE if self._judge is None else self._judge.verdict(peer, self._target)

    def of(self, peer: LocalWorkload) -> Verdict:
        """What it says to a peer."""
        if self._judge is None:
            return ENGINE
        key = (peer.identity, peer.addresses) if self._judge.asks_for_address else peer.identity
        found = self._by_peer.get(key)
        if found is None:
            found = self._ask(Peer(peer.identity, peer.addresses))
            if len(self._by_peer) >= _PEERS_REMEMBERED:
                self._by_peer.clear()
            self._by_peer[key] = found
        return found

    def entry(self, source: LocalWorkload) -> Verdict | None:
        """What the entry of a peer says; None: it needs none."""
        if self.anyone.access is not Access.ENGINE:
            return None
        verdict = self.of(source)
        return None if verdict.access is Access.ENGINE else verdict
