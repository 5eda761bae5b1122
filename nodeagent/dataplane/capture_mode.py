"""The two ways to capture, behind one interface, and the choice between them.

`nft` redirects in each namespace (capture.py); `ebpf` needs no NAT and no conntrack (ebpf_capture.py). Both keep
what they do when the agent ends, and either takes a namespace over from the other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nodeagent.dataplane.bpf import MapUsage
from nodeagent.dataplane.bypass_end import end_flows
from nodeagent.dataplane.bypass_maps import BypassLimits
from nodeagent.dataplane.capture import Capture as NftCapture
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.datagrams import Datagrams
from nodeagent.dataplane.ebpf_capture import EbpfCapture, EbpfListeners, end_all
from nodeagent.dataplane.ebpf_node import EbpfNode, netns_cookie
from nodeagent.dataplane.ebpf_shared import SharedCapture, SharedNamespaces
from nodeagent.dataplane.listeners import Opener, open_dns_sockets, open_listeners
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.node_bypass import NodeBypass, NoteLocal
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.dataplane.sock_diag import probe_destroy
from nodeagent.errors import CapabilityError, DataplaneError, NetnsError

logger = logging.getLogger(__name__)


class CapturedWorkload(Protocol):
    """Capture of one workload's traffic (capture.py tells of the states). Each call blocks."""

    @property
    def cookie(self) -> int:
        """By which programs know the workload's own network namespace; 0 where none needs to."""

    def apply(self) -> None:
        """Capture."""

    def release(self) -> None:
        """Capture no new connections."""

    def remove(self) -> None:
        """Leave nothing behind."""

    def in_force(self) -> bool:
        """Whether what apply() did is still there."""

    def set_open(self, open_: bool) -> None:
        """Whether connections pass while the agent has no listener, instead of being refused. From apply() on they do
        not; before, it is as an earlier agent has left it."""


class Mode(Protocol):
    """A way to capture. start() before anything else."""

    name: str
    opener: Opener
    """Opens the listeners of captured workloads."""
    dns_opener: Opener
    """Opens those that their DNS is led to."""

    @property
    def dns_flows(self) -> int:
        """Descriptor of the map that says which name servers clients asked; 0: conntrack knows."""

    def start(self) -> None:
        """Make ready; CapabilityError or DataplaneError if this machine cannot."""

    def capture(self, namespace: NetworkNamespace) -> CapturedWorkload:
        """The capture of a workload's traffic."""

    def settle(self, namespaces: Iterable[NetworkNamespace]) -> None:
        """All workloads are enrolled, which are those in `namespaces`: forget what was captured besides."""

    def counters(self) -> dict[str, int]:
        """What was counted, by name."""

    def maps(self) -> list[MapUsage]:
        """What its BPF maps take."""

    def close(self) -> None:
        """Let go; capture stays."""


class NftMode:
    """Capture by nftables. `pins` is where an agent in the other mode may have left its capture."""

    name = "nft"
    dns_flows = 0

    def __init__(self, rules: CaptureRules, pins: Path | None = None) -> None:
        self.opener: Opener = open_listeners
        self.dns_opener: Opener = open_dns_sockets
        self._rules = rules
        self._pins = pins

    def start(self) -> None:
        """Nothing is shared between namespaces."""

    def capture(self, namespace: NetworkNamespace) -> CapturedWorkload:
        """The capture of a workload's traffic; CapabilityError for one that shares its namespace."""
        if isinstance(namespace, NamespaceShare):
            raise CapabilityError(f"{namespace.share.uid}: a workload that is a cgroup needs capture by eBPF")
        return NftCapture(namespace, self._rules)

    def settle(self, namespaces: Iterable[NetworkNamespace]) -> None:
        """End what an agent in the other mode has left: not before, so that nothing gets past in between."""
        if self._pins is not None and self._pins.exists():
            end_all(self._pins, namespaces)

    def counters(self) -> dict[str, int]:
        """None: a ruleset counts nothing."""
        return {}

    def maps(self) -> list[MapUsage]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing is held."""


class EbpfMode:
    """Capture by eBPF, its pins in the folder `pins`."""

    name = "ebpf"

    def __init__(
        self, group: Cgroup, rules: CaptureRules, pins: Path, limits: BypassLimits | None = None
    ) -> None:
        self._node = EbpfNode(pins, group, dns=rules.dns, limits=limits)
        self._rules = replace(rules, steered=True)
        self._shared = SharedNamespaces(self._node, self._rules)
        listeners = EbpfListeners(self._node, self._shared, hbone=rules.hbone)
        self.opener: Opener = listeners
        self.dns_opener: Opener = listeners.open_dns
        self._bypass: NodeBypass | None = None

    def start(self) -> None:
        """Load and attach, or take over from an earlier agent."""
        self._node.start()

    @property
    def dns_flows(self) -> int:
        """Descriptor of the map that says which name servers clients asked."""
        return self._node.dns.flows.fileno() if self._node.dns is not None else 0

    def capture(self, namespace: NetworkNamespace) -> CapturedWorkload:
        """The capture of a workload's traffic."""
        if isinstance(namespace, NamespaceShare):
            return SharedCapture(self._shared, namespace)
        return EbpfCapture(self._node, namespace, self._rules)

    def bypass(self, note_local: NoteLocal, *, identities: bool) -> tuple[NodeBypass | None, str]:
        """What lets connections pass the engine, and tells it where to, or why nothing can: those that may not be any
        more must be ended, and raw sockets kept from doing the same."""
        if self._node.bypass_lacks:
            return None, self._node.bypass_lacks
        try:
            with NetworkNamespace.open("/proc/self/ns/net") as own:
                probe_destroy(own)
        except (CapabilityError, NetnsError) as error:
            return None, str(error)
        self._bypass = NodeBypass(self._node, note_local, identities=identities)
        return self._bypass, ""

    def datagrams(self) -> Datagrams:
        """What decides on UDP; it is the caller's. BpfError if this kernel cannot."""
        return self._node.datagrams()

    def end_datagrams(self) -> None:
        """Leave UDP alone, whatever an earlier agent did."""
        self._node.end_datagrams()

    def settle(self, namespaces: Iterable[NetworkNamespace]) -> None:
        """Forget the workloads that went while no agent ran. Without bypass what an earlier agent let past the engine
        ends."""
        namespaces = list(namespaces)
        if self._bypass is None:
            end_flows(self._node.bypass_maps().bypassed, namespaces)
        shares = [each for each in namespaces if isinstance(each, NamespaceShare)]
        gone = self._shared.settle(shares) + self._node.sweep(netns_cookie(each) for each in namespaces)
        if gone:
            logger.info("%d workloads went while no agent ran", gone)

    def counters(self) -> dict[str, int]:
        """Events of the programs (bpf/include/nodeagent_abi.h)."""
        return self._node.counters()

    def maps(self) -> list[MapUsage]:
        """Those that workloads have together, and the listeners of all of them."""
        return [*self._node.maps(), *self._shared.maps()]

    def close(self) -> None:
        """Let go of what the living agent holds."""
        self._shared.close()
        self._node.close()


def choose_mode(
    wanted: str,
    group: Cgroup,
    pins: Path,
    *,
    hbone: bool = False,
    dns: bool = False,
    limits: BypassLimits | None = None,
) -> tuple[Mode, str]:
    """The mode that is `wanted` (ebpf, nft, or auto: ebpf where it works), started, and why it is this one. `limits`
    are those of what passes the engine; None: the usual ones.

    CapabilityError or DataplaneError if ebpf is asked for and this machine cannot.
    """
    rules = CaptureRules.for_agent(group, hbone=hbone, dns=dns)
    if wanted == "nft":
        return NftMode(rules, pins), "asked for"
    ebpf = EbpfMode(group, rules, pins, limits)
    try:
        ebpf.start()
    except (CapabilityError, DataplaneError) as error:
        if wanted == "ebpf":
            raise
        logger.warning("capturing by nft, since eBPF is not possible here: %s", error)
        return NftMode(rules, pins), f"eBPF is not possible here: {str(error).splitlines()[0]}"
    return ebpf, "asked for" if wanted == "ebpf" else "all programs load and attach on this kernel"
