"""Makes the owners of the data plane for the agent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from nodeagent.app.agent_ports import Bypass, Capture, Datagrams, Engine, Flows
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.bpf import MapUsage
from nodeagent.dataplane.bypass_maps import NO_ROOM, BypassLimits
from nodeagent.dataplane.capture_mode import EbpfMode, choose_mode
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.datagrams import Datagrams as KernelDatagrams
from nodeagent.dataplane.direct import Direct
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.node_bypass import NodeBypass
from nodeagent.dataplane.node_flows import NodeFlows
from nodeagent.dataplane.routing import read_addresses
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.dataplane.virtual_host import make_virtual_host
from nodeagent.errors import CapabilityError, DataplaneError, EngineError
from nodeagent.snapshot.address import widen_address
from nodeagent.snapshot.values import VirtualHost

logger = logging.getLogger(__name__)


def _limits(config: AgentConfig) -> BypassLimits:
    if config.bypass == "off":
        return NO_ROOM
    return BypassLimits(
        config.bypass_services, config.bypass_endpoints, config.bypass_verdicts, config.bypass_connections
    )


class KernelDataplane:
    """The real thing: the C engine, and capture in the workloads' namespaces by the mode that is asked for."""

    def __init__(self, config: AgentConfig, group: Cgroup) -> None:
        """CapabilityError or DataplaneError if this machine cannot capture so."""
        self._config = config
        # Nobody is captured with explicit listeners: nothing shall be attached, nor an earlier run's be taken away.
        wanted = config.capture if config.static is None else "nft"
        self._mode, reason = choose_mode(
            wanted,
            group,
            config.bpf_pins,
            hbone=bool(config.ca),
            dns=config.captures_dns,
            limits=_limits(config),
        )
        # Captured by nft, no connection goes past the engine.
        refusal = "" if self._mode.name == "ebpf" else "acceleration needs capture by eBPF (--capture ebpf)"
        self._engine: EngineOwner | None = None
        self._bypass: NodeBypass | None = None
        self._datagrams: KernelDatagrams | None = None
        self.accelerator = Direct(config.bpf_pins, group, config.direct_limit, refusal)
        if config.static is None:
            self._take_over_acceleration()
        self.mode = self._mode.name if config.static is None else "none"
        dns = "; DNS, too" if config.captures_dns else ""
        self.reason = (
            f"{reason}; the agent is known by its cgroup {group.nft_path}{dns}" if self.mode != "none" else ""
        )

    def _take_over_acceleration(self) -> None:
        try:
            self.accelerator.start()
        except (CapabilityError, DataplaneError) as error:
            logger.warning("what an earlier agent accelerated stays as it is: %s", error)

    def engine(self) -> Engine:
        """The engine, stopped."""
        settings = EngineSettings(
            workers=self._config.workers,
            access_log=self._config.access_log != "off",
            jwt_cache_tokens=self._config.token_cache,
            jwt_cache_bytes=self._config.token_cache_bytes,
            callout_max_calls=self._config.callout_calls,
            callout_max_channels=self._config.callout_connections,
            dns_flows=self._mode.dns_flows,
        )
        self._engine = EngineOwner(settings, self._mode.opener, self._mode.dns_opener)
        return self._engine

    def capture(self, namespace: NetworkNamespace) -> Capture:
        """The capture of a workload's traffic."""
        return self._mode.capture(namespace)

    def bypass(self) -> tuple[Bypass | None, str]:
        """What lets connections within the node pass the engine; None: nothing does, and why. After engine()."""
        if self._config.bypass == "off":
            return None, "asked for"
        if not isinstance(self._mode, EbpfMode) or self._config.static is not None:
            return None, "needs capture by eBPF"
        assert self._engine is not None
        self._bypass, reason = self._mode.bypass(self._engine.note_local, identities=bool(self._config.ca))
        return self._bypass, reason

    def datagrams(self) -> tuple[Datagrams | None, str]:
        """What decides on UDP; None: nothing does, and why."""
        if not isinstance(self._mode, EbpfMode) or self._config.static is not None:
            return None, "needs capture by eBPF"
        if self._config.udp == "off":
            self._mode.end_datagrams()
            return None, "asked for"
        try:
            self._datagrams = self._mode.datagrams()
        except DataplaneError as error:
            return None, str(error).splitlines()[0]
        return self._datagrams, ""

    def flows(self) -> Flows | None:
        """What has the engine report of connections past it; None: there are none. After engine() and bypass()."""
        if self._engine is None or self._bypass is None:
            return None
        return NodeFlows(self._engine, self._bypass.flows, self._bypass.events, self._bypass)

    def settle(self, namespaces: Sequence[NetworkNamespace]) -> None:
        """Forget what is captured besides these. Blocks."""
        self._mode.settle(namespaces)

    def capture_counters(self) -> Mapping[str, int]:
        """What the mode counts."""
        return self._mode.counters()

    def capture_maps(self) -> Sequence[MapUsage]:
        """What the BPF maps of the mode and of `direct` take."""
        return [*self._mode.maps(), *self.accelerator.maps()]

    def close(self) -> None:
        """Let go of what is shared between workloads."""
        self.accelerator.close()
        if self._datagrams is not None:
            self._datagrams.close()
        self._mode.close()

    def addresses(self, namespace: NetworkNamespace) -> Iterable[bytes]:
        """Addresses in a namespace, without link-local ones; of a share with addresses of its own, those."""
        if isinstance(namespace, NamespaceShare) and namespace.share.addresses:
            return namespace.share.addresses
        found = [widen_address(raw) for raw in read_addresses(namespace)]
        return [address for address in found if address[:2] != b"\xfe\x80"]

    def check(self, host: VirtualHost) -> None:
        """ValueError if the engine cannot use a virtual host, such as for a bad regular expression."""
        try:
            make_virtual_host(host, 0)
        except EngineError as error:
            raise ValueError(str(error)) from None
