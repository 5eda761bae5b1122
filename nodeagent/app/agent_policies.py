"""Policies in the agent: which L4 rules hold for a workload of this node."""

from __future__ import annotations

from nodeagent.app.agent_workloads import WorkloadStream
from nodeagent.compiler.workloads import WorkloadEntry
from nodeagent.config.agent import AgentConfig
from nodeagent.snapshot.policies import Rules


class Policies:
    """What the control plane tells of who may do what."""

    def __init__(self, config: AgentConfig, workloads: WorkloadStream) -> None:
        self._has_identities = bool(config.ca)
        self._workloads = workloads

    def every(
        self, namespace: str, entry: WorkloadEntry | None, *, l4_only: bool
    ) -> tuple[Rules, ...] | None:
        """What is asked of each connection to a workload; None while it is not known, and nothing may be let in.

        Which policies select a workload is told with the workload: PeerAuthentications among them, which matter only
        where there are identities, and everything where no listener has filters.
        """
        if not self._workloads.knows_policies:
            return None
        if entry is None and (l4_only or self._has_identities):
            return None
        listed = entry.policies if entry is not None else ()
        return self._workloads.policies.rules_for(namespace, listed, l4_only=l4_only)
