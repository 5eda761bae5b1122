"""The BPF programs that lead DNS of captured workloads to the agent (bpf/dns.bpf.c), beside those of a node's capture.

What is attached at the root of the cgroup hierarchy is pinned and outlives the agent, as all capture does; without an
agent it leaves DNS alone. What tells the agent which name servers its clients asked ends with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import BpfLink, BpfMap, BpfObject, detach_pinned

_OBJECT: Final = "dns"
_SHARED_MAPS: Final = ("workloads", "counters", "dns_servers", "dns_flows")
_HOOKS: Final = (
    "dns_recvmsg4",
    "dns_recvmsg6",
    "dns_getpeername4",
    "dns_getpeername6",
    "dns_sendmsg4",
    "dns_sendmsg6",
    "dns_connect4",
    "dns_connect6",
)
"""Programs at the root, in the order in which they are attached: those that redirect come last."""
_AGENT_HOOKS: Final = ("agent_dns_recvmsg4", "agent_dns_recvmsg6")
_FLOW_SIZE: Final = 32
_DESTINATION_SIZE: Final = 24


class EbpfDns:
    """The programs of one agent; `folder` is where its version of the ABI has its pins. start() comes first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hooks: list[BpfLink] = []
        self._flows: BpfMap | None = None

    def start(self, top: int, group: int) -> None:
        """Load, attach and pin, or take over what an earlier agent has pinned; `top` and `group` are descriptors of
        the root of the cgroup hierarchy and of the agent's own group. BpfError if this kernel cannot."""
        pins = {name: self._folder / "maps" / name for name in _SHARED_MAPS}
        with BpfObject(_OBJECT, pins) as programs:
            self._flows = programs.map("dns_flows", _FLOW_SIZE, _DESTINATION_SIZE)
            # First: the agent must not get what it cannot pass on.
            self._hooks = [programs.attach(hook, group) for hook in _AGENT_HOOKS]
            for hook in _HOOKS:
                programs.attach_pinned(hook, top, self._folder / "links" / hook)

    @property
    def flows(self) -> BpfMap:
        """Which name servers clients asked, by where they asked from."""
        assert self._flows is not None, "start() comes first"
        return self._flows

    def close(self) -> None:
        """Let go of what the living agent holds; may be called again."""
        for held in (*self._hooks, *((self._flows,) if self._flows is not None else ())):
            held.close()
        self._hooks, self._flows = [], None


def detach_dns(folder: Path) -> None:
    """End what is pinned below the folder of a version; nothing happens if there is nothing."""
    for hook in reversed(_HOOKS):
        detach_pinned(folder / "links" / hook)
