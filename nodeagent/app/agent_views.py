"""Which view a workload uses, and the views that there are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from nodeagent import __version__
from nodeagent.app.agent_access import workload_access
from nodeagent.app.agent_demand import DemandCounters, Waypoints
from nodeagent.app.agent_saver import Saver
from nodeagent.app.agent_view import ViewController, ViewEvents
from nodeagent.compiler.gateways import Gateways
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.workloads import WorkloadEntry, WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.model.extensions import ON_DEMAND_FEATURE, PEERS_FEATURE
from nodeagent.snapshot.address import format_address
from nodeagent.snapshot.values import VirtualHost
from nodeagent.xds.lastgood import LastGood
from nodeagent.xds.transport import ClientCertificate
from nodeagent.xds.types import Message

logger = logging.getLogger(__name__)

_NAME_LIMIT: Final = 200
"""na_event.view holds 255 bytes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A workload of this node, by what the CNI side and the control plane tell of it."""

    name: str
    namespace: str
    service_account: str
    addresses: tuple[bytes, ...]
    entry: WorkloadEntry | None = None


def view_name(subject: Subject) -> str:
    """The name of a workload's view, the same after a restart.

    Workloads share one if the control plane cannot tell them apart: same namespace, service account and
    labels. Where labels are not told, same owner. As long as the workload is not known at all it has a view
    of its own.
    """
    entry = subject.entry
    owner = (entry.ref.workload_name if entry is not None else "") or subject.name
    rest: tuple[str, ...] = ("pod",)
    if entry is not None and entry.labels is not None:
        rest = tuple(f"{key}={value}" for key, value in entry.labels)
    elif entry is not None:
        rest = (entry.ref.workload_type, entry.ref.canonical_name, entry.ref.canonical_revision)
    digest = hashlib.sha256("\0".join(("view", owner, *rest)).encode()).hexdigest()[:8]
    account = subject.service_account or "default"
    return f"{subject.namespace}/{account}/{owner}"[: _NAME_LIMIT - 9] + f"-{digest}"


def node_of(subject: Subject, config: AgentConfig) -> Message:
    """The xDS node by which a workload's configuration is asked for: that of a sidecar
    (istio.io/bootstrap)."""
    from envoy.config.core.v3 import base_pb2

    addresses = [format_address(address) for address in subject.addresses]
    first = addresses[0] if addresses else "127.0.0.1"
    node = base_pb2.Node(
        id=f"sidecar~{first}~{subject.name}.{subject.namespace}~{subject.namespace}.svc.{config.domain}",
        cluster=f"{_canonical(subject)}.{subject.namespace}",
        user_agent_name="nodeagent",
        user_agent_version=__version__,
        client_features=[*([] if config.xds_mode == "wildcard" else [ON_DEMAND_FEATURE]), PEERS_FEATURE],
    )
    metadata: dict[str, Any] = {
        "NAME": subject.name,
        "NAMESPACE": subject.namespace,
        "SERVICE_ACCOUNT": subject.service_account or "default",
        "NODE_NAME": config.node,
        "CLUSTER_ID": config.cluster_id,
        "INSTANCE_IPS": ",".join(addresses),
    }
    if subject.entry is not None and subject.entry.labels is not None:
        metadata["LABELS"] = dict(subject.entry.labels)
    node.metadata.update(metadata)
    return node


def _canonical(subject: Subject) -> str:
    return subject.entry.ref.canonical_name if subject.entry is not None else subject.name


class Views:
    """The views of this node's workloads; each lives as long as a workload uses it."""

    def __init__(
        self,
        config: AgentConfig,
        index: WorkloadIndex,
        events: ViewEvents,
        store: LastGood,
        saver: Saver,
        check: Callable[[VirtualHost], None],
        certificate_of: Callable[[str], ClientCertificate | None] = lambda principal: None,
    ) -> None:
        """`certificate_of` gives the certificate in force of a SPIFFE ID."""
        self._certificate_of = certificate_of
        self._config = config
        self._index = index
        self.gateways = Gateways(index)
        self._events = events
        self._store = store
        self._saver = saver
        self._check = check
        self._views: dict[str, ViewController] = {}
        self._principals: dict[str, str] = {}
        """By name of the view: the SPIFFE ID of its workloads."""
        self._provisional: set[str] = set()
        """Views of workloads that the control plane had not told of when they came."""
        self.counters = DemandCounters()

    def acquire(self, uid: str, subject: Subject) -> ViewController:
        """The view of a workload, made if it is the first; to be released under the same uid."""
        name = view_name(subject)
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = self._make(name, subject)
            if subject.entry is None:
                self._provisional.add(name)
            view.restore(self._store.load(name))
            view.start()
        view.users.add(uid)
        return view

    def _make(self, name: str, subject: Subject) -> ViewController:
        scope = Scope(name, self._index.workload_at, self._check)
        waypoints = None
        if self._config.ca:
            waypoints = Waypoints(self.gateways, self._principal(subject))
            scope = replace(
                scope,
                tunnel_to=self.gateways.tunnel_to,
                waypoint_of=waypoints.endpoints_of,
                beyond=self.gateways.beyond,
            )
        node = node_of(subject, self._config)
        principal = self._principals[name] = self._principal(subject)
        access = workload_access(self._config, lambda: self._certificate_of(principal))
        return ViewController(
            name, node, self._config, self._index, scope, self._events, self.counters, access, waypoints
        )

    def _principal(self, subject: Subject) -> str:
        account = subject.service_account or "default"
        return f"spiffe://{self._config.trust_domain}/ns/{subject.namespace}/sa/{account}"

    def is_right(self, view: ViewController, subject: Subject) -> bool:
        """Whether a workload uses the view that is made for such as it. The view of one that was not known at
        first is its alone, and follows what becomes known of it."""
        if view.name in self._provisional:
            view.identify(node_of(subject, self._config))
            return True
        return view_name(subject) == view.name

    async def release(self, uid: str, view: ViewController) -> None:
        """A workload uses its view no more; the last one ends it."""
        view.users.discard(uid)
        if not view.users and self._views.get(view.name) is view:
            del self._views[view.name]
            self._provisional.discard(view.name)
            self._principals.pop(view.name, None)
            self._saver.forget(view.stream)
            await view.stop()

    def certificate_changed(self, principal: str) -> None:
        """A SPIFFE ID has another certificate, or none any more: streams in its name are opened anew by it."""
        if not self._config.xds_mtls:
            return
        for name, view in self._views.items():
            if self._principals.get(name) == principal:
                view.stream.reopen()

    def get(self, name: str) -> ViewController | None:
        """The view of a name."""
        return self._views.get(name)

    def __iter__(self) -> Iterator[ViewController]:
        return iter(tuple(self._views.values()))

    async def stop(self) -> None:
        """End all streams."""
        for view in self:
            await view.stop()
