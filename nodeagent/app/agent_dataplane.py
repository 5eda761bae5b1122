"""Makes the owners of the data plane for the agent."""

from __future__ import annotations

from collections.abc import Iterable

from nodeagent.app.agent_ports import Capture, Engine
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.capture import Capture as NftCapture
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.routing import read_addresses
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.dataplane.virtual_host import make_virtual_host
from nodeagent.errors import EngineError
from nodeagent.snapshot.address import widen_address
from nodeagent.snapshot.values import VirtualHost


class KernelDataplane:
    """The real thing: the C engine, and nftables in the workloads' namespaces."""

    def __init__(self, config: AgentConfig, group: Cgroup) -> None:
        self._config = config
        self._rules = CaptureRules.for_agent(group, hbone=bool(config.ca))

    def engine(self) -> Engine:
        """The engine, stopped."""
        return EngineOwner(
            EngineSettings(workers=self._config.workers, access_log=self._config.access_log != "off")
        )

    def capture(self, namespace: NetworkNamespace) -> Capture:
        """The capture of a workload's traffic."""
        return NftCapture(namespace, self._rules)

    def addresses(self, namespace: NetworkNamespace) -> Iterable[bytes]:
        """Addresses in a namespace, without link-local ones."""
        found = [widen_address(raw) for raw in read_addresses(namespace)]
        return [address for address in found if address[:2] != b"\xfe\x80"]

    def check(self, host: VirtualHost) -> None:
        """ValueError if the engine cannot use a virtual host, such as for a bad regular expression."""
        try:
            make_virtual_host(host, 0)
        except EngineError as error:
            raise ValueError(str(error)) from None
