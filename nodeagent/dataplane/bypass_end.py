"""The end of what has passed the engine, where nothing is to pass it any more: nobody would judge such connections when
policy changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodeagent.dataplane.bpf import BpfMap
from nodeagent.dataplane.bypass_flows import FlowTable
from nodeagent.dataplane.bypass_layout import NO_BYPASS
from nodeagent.dataplane.ebpf_node import netns_cookie
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import CapabilityError, NetnsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Client:
    namespace: NetworkNamespace
    number: int = 0


class _Clients:
    """Who may have such connections (bypass_flows.LocalWorkloads)."""

    def __init__(self, namespaces: Iterable[NetworkNamespace]) -> None:
        self._clients: Mapping[int, _Client] = {netns_cookie(each): _Client(each) for each in namespaces}

    def by_cookie(self, cookie: int) -> _Client | None:
        """By the namespace."""
        return self._clients.get(cookie)

    def by_address(self, address: bytes) -> None:
        """Nobody is looked for at the server's end."""


def end_flows(flows: BpfMap, namespaces: Iterable[NetworkNamespace]) -> None:
    """End the connections (`bypassed`) of clients in these namespaces. Blocks; what cannot be ended is logged."""
    if not any(True for _ in flows):
        return
    try:
        ended = FlowTable(flows, _Clients(namespaces), NO_BYPASS).revoke(lambda live: False)
    except (CapabilityError, NetnsError) as error:
        logger.error("connections that an earlier agent let past the engine live on: %s", error)
    else:
        if ended:
            logger.info("ended %d connections that an earlier agent let past the engine", ended)
