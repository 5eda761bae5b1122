"""Policies in the agent: which L4 rules hold for a workload of this node, and what people are shown of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from nodeagent.admin.state import PolicyRow
from nodeagent.app.agent_enrolled import Enrolled
from nodeagent.app.agent_keys import KeySets
from nodeagent.app.agent_policy_rows import authorization_row, filter_rows
from nodeagent.app.agent_view import ViewController
from nodeagent.app.agent_workloads import WorkloadStream
from nodeagent.compiler.workloads import WorkloadEntry, WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.snapshot.policies import Rules
from nodeagent.xds.types import AUTHORIZATION


class Policies:
    """What the control plane tells of who may do what."""

    def __init__(self, config: AgentConfig, index: WorkloadIndex, workloads: WorkloadStream) -> None:
        self._index = index
        self.keys = KeySets(self._keys_changed, config.key_sets)
        self.changed: Callable[[], None] = lambda: None
        """Called when what holds for workloads may be another thing now."""
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

    def want_keys(self, views: Iterable[ViewController]) -> None:
        """Have the key sets that the listeners of these views name fetched."""
        inbound = (view.inbound for view in views if view.inbound is not None)
        self.keys.want(keys for piece in inbound for keys in piece.remote_keys)

    def _keys_changed(self) -> None:
        self.changed()

    # -- for people --

    def rows(self, workloads: Iterable[Enrolled], views: Iterable[ViewController]) -> Iterator[PolicyRow]:
        """L4 policies, then what the listeners of the views hold."""
        served = [workload for workload in workloads if workload.state == "enrolled"]
        held, meant = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for workload in served:
            for policy, is_asked in self._meant_for(workload):
                meant[policy].add(_name(workload))
                if is_asked:
                    held[policy].add(_name(workload))
        rejected = self._workloads.stream.protocol.types[AUTHORIZATION].rejected
        for entry in self._workloads.policies:
            found = held[entry.name], meant[entry.name]
            yield authorization_row(entry, *found, rejected.get(entry.name, ""))
        for view in views:
            if view.inbound is not None:
                users = [_name(workload) for workload in served if workload.view is view]
                yield from filter_rows(view.name, view.inbound, users)

    def _meant_for(self, workload: Enrolled) -> Iterator[tuple[str, bool]]:
        """(name, whether it is asked there) of each L4 policy that is meant for a workload."""
        namespace = workload.pod.namespace
        entry = self._index.workload_named(namespace, workload.pod.name)
        listed = entry.policies if entry is not None else ()
        inbound = workload.view.inbound if workload.view is not None else None
        policies = self._workloads.policies
        asked: set[str] = set()
        if inbound is not None:
            holding = policies.holding_for(namespace, listed, l4_only=inbound.l4_only)
            asked.update(policy.name for policy in holding)
        for policy in policies.holding_for(namespace, listed, l4_only=True):
            yield policy.name, policy.name in asked

    def warnings(self) -> Iterator[str]:
        """Policies that cannot be read, and deny everything for that; key sets that cannot be had."""
        yield from self.keys.warnings()
        for entry in self._workloads.policies:
            if entry.error:
                yield f"policy {entry.name} cannot be read: {entry.error}; whom it may be for lets nothing in"


def _name(workload: Enrolled) -> str:
    return f"{workload.pod.namespace}/{workload.pod.name}"
