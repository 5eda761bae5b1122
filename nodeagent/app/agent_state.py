"""What the agent tells the admin API of itself (admin/state.py's AgentState)."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from nodeagent import __version__
from nodeagent.admin.explain import AccessExplanation, Asked, RouteExplanation
from nodeagent.admin.state import (
    AgentStatus,
    BpfMapStatus,
    BypassStatus,
    CaptureStatus,
    ClusterRow,
    ConnectionRow,
    ControlPlaneStatus,
    DatagramStatus,
    EndpointRow,
    EngineStatus,
    EnrolledWorkload,
    EnrolmentStatus,
    ListenerRow,
    PolicyRow,
    RouteRow,
    ServiceRow,
    SnapshotStatus,
    StreamStatus,
    TypeStatus,
    WorkloadRow,
)
from nodeagent.app import agent_rows as rows
from nodeagent.app.agent_acceleration import Acceleration
from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_datagrams import DatagramKeeper
from nodeagent.app.agent_enrolment import Enrolment
from nodeagent.app.agent_explain import Explainer
from nodeagent.app.agent_identity import Identities
from nodeagent.app.agent_policies import Policies
from nodeagent.app.agent_policy_rows import dump_authorization
from nodeagent.app.agent_ports import Bypass, Datagrams, Dataplane, Engine
from nodeagent.app.agent_resource import resource_json
from nodeagent.app.agent_saver import Saver
from nodeagent.app.agent_views import Views
from nodeagent.app.agent_workloads import WorkloadStream
from nodeagent.compiler.workloads import WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.report import ConnectionState
from nodeagent.enroll.workload_file import WorkloadFile
from nodeagent.enroll.zds import ZdsClient
from nodeagent.snapshot.values import Snapshot
from nodeagent.xds.store import TypeState
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.types import AUTHORIZATION, L7_TYPES, message_class, short_name

CONNECTIONS_LISTED: Final = 10_000
WARNINGS_LISTED: Final = 100


@dataclass(slots=True)
class Parts:
    """The parts of the agent that have something to tell."""

    config: AgentConfig
    engine: Engine
    index: WorkloadIndex
    workloads: WorkloadStream
    views: Views
    configuration: Configuration
    enrolment: Enrolment
    zds: ZdsClient
    file: WorkloadFile | None
    saver: Saver
    identities: Identities
    policies: Policies
    dataplane: Dataplane
    acceleration: Acceleration
    bypass: Bypass | None
    why_no_bypass: str
    datagrams: Datagrams | None
    datagram_keeper: DatagramKeeper | None
    why_no_datagrams: str
    metrics: Callable[[], Iterable[bytes]]
    quit: Callable[[], None]
    unsettled: Callable[[], Iterable[str]]
    problems: Callable[[], tuple[str, ...]] = tuple
    started: float = field(default_factory=time.time)


class State:
    """Implements AgentState."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._explainer = Explainer(
            parts.config, parts.index, parts.enrolment, parts.configuration, parts.engine, parts.bypass
        )

    # -- status --

    def not_ready(self) -> tuple[str, ...]:
        """Why the agent does not serve yet."""
        parts = self._parts
        reasons = []
        meshed = parts.config.static is None
        if meshed and not parts.workloads.synced:
            error = parts.workloads.stream.state.last_error
            reasons.append(
                f"no workloads from the control plane at {parts.config.xds} yet"
                + (f" ({error})" if error else "")
            )
        if meshed and parts.config.has_cni and not parts.zds.synced:
            error = parts.zds.last_error
            reasons.append(f"no workloads over {parts.config.zds} yet" + (f" ({error})" if error else ""))
        if meshed and parts.file is not None and not parts.file.synced:
            error = parts.file.last_error
            reasons.append(f"no workloads from {parts.file.path} yet" + (f" ({error})" if error else ""))
        if not parts.engine.settled():
            reasons.append("configuration is being put in force")
        return tuple(reasons)

    def unsettled(self) -> tuple[str, ...]:
        """What was received, or asked for, and is not in force yet."""
        return tuple(self._parts.unsettled())

    def status(self) -> AgentStatus:
        """Everything in short."""
        parts = self._parts
        reasons = self.not_ready()
        return AgentStatus(
            version=__version__,
            node=parts.config.node,
            pid=os.getpid(),
            started=parts.started,
            uptime_seconds=time.time() - parts.started,
            ready=not reasons,
            not_ready=reasons,
            control_plane=self._control_plane(),
            capture=self._capture(),
            bypass=self._bypass(),
            udp=self._udp(),
            engine=self._engine(),
            enrolment=self._enrolment(),
            snapshot=self._snapshot(),
            certificates=tuple(parts.identities.rows()),
            warnings=tuple(self._warnings()),
            acceleration=parts.acceleration.status(),
        )

    def _capture(self) -> CaptureStatus:
        dataplane = self._parts.dataplane
        maps = tuple(
            BpfMapStatus(each.name, each.memory, each.entries, each.limit, each.full)
            for each in dataplane.capture_maps()
        )
        return CaptureStatus(dataplane.mode, dataplane.reason, dataplane.capture_counters(), maps)

    def _bypass(self) -> BypassStatus:
        if self._parts.bypass is None:
            return BypassStatus("off", self._parts.why_no_bypass)
        found = self._parts.bypass.state()
        counts = found.counts
        return BypassStatus(
            "suspended" if found.error else "on",
            found.error,
            counts.services,
            counts.endpoints,
            counts.verdicts,
            counts.sources,
            dict(counts.refused),
            found.revoked,
            found.connections,
        )

    def _udp(self) -> DatagramStatus:
        parts = self._parts
        if parts.datagrams is None or parts.datagram_keeper is None:
            return DatagramStatus("off", parts.why_no_datagrams)
        found, error = parts.datagrams.state(), parts.datagram_keeper.error
        return DatagramStatus(
            "stale" if error else "on",
            error,
            found.services,
            found.endpoints,
            found.receivers,
            found.verdicts,
            dict(found.waiting),
            parts.datagrams.counters(),
        )

    def _control_plane(self) -> ControlPlaneStatus:
        parts = self._parts
        main = parts.workloads.stream
        return ControlPlaneStatus(
            address=parts.config.xds,
            connected=main.state.connected,
            connected_since=main.state.since,
            last_error=main.state.last_error,
            streams=tuple(_stream_status(stream) for stream in self._streams()),
        )

    def _streams(self) -> Iterator[DeltaStream]:
        yield self._parts.workloads.stream
        for view in self._parts.views:
            yield view.stream

    def _engine(self) -> EngineStatus:
        counters = {counter.name: counter.value for counter in self._parts.engine.counters()}
        listed = self._parts.engine.connections(CONNECTIONS_LISTED)
        return EngineStatus(
            workers=self._parts.config.workers,
            connections=sum(each.state is not ConnectionState.BYPASSED for each in listed),
            counters={name: value for name, value in counters.items() if value},
        )

    def _enrolment(self) -> EnrolmentStatus:
        zds, file = self._parts.zds, self._parts.file
        return EnrolmentStatus(
            socket=zds.path,
            connected=zds.connected,
            last_error=zds.last_error,
            file=str(file.path) if file is not None else "",
            file_error=file.last_error if file is not None else "",
            workloads=tuple(
                EnrolledWorkload(
                    uid=workload.pod.uid,
                    name=workload.pod.name,
                    namespace=workload.pod.namespace,
                    service_account=workload.pod.service_account,
                    state=workload.state,
                    view=workload.view.name if workload.view is not None else "",
                    error=workload.error,
                    fail_mode=workload.fail_mode,
                )
                for workload in self._parts.enrolment
            ),
        )

    def _snapshot(self) -> SnapshotStatus:
        configuration = self._parts.configuration
        return SnapshotStatus(
            version=str(configuration.applied.version),
            settled=self._parts.engine.settled(),
            commits=self._parts.engine.committed(),
            applied_at=configuration.state.applied_at,
            from_disk=any(view.from_disk for view in self._parts.views),
            last_error=configuration.state.last_error,
        )

    def _warnings(self) -> Iterator[str]:
        parts = self._parts
        yield from parts.problems()
        if parts.saver.last_error:
            yield parts.saver.last_error
        yield from parts.identities.warnings()
        yield from parts.policies.warnings()
        if parts.file is not None:
            yield from parts.file.warnings()
        yield from parts.acceleration.warnings()
        for rejection in parts.configuration.rejections:
            yield f"{rejection.kind} {rejection.table}: {rejection.message}"
        for view in parts.views:
            if view.lacks_inbound:
                yield f"view {view.name}: there is no usable virtualInbound listener; nothing is let in"
        yield from _gather(
            (f"{short_name(url)} {name}", text)
            for view in parts.views
            for (url, name), texts in view.warnings.items()
            for text in texts
        )

    # -- lists --

    @property
    def _applied(self) -> Snapshot:
        return self._parts.configuration.applied

    def workloads(self) -> Iterable[WorkloadRow]:
        """The workloads known."""
        local = {(each.pod.namespace, each.pod.name) for each in self._parts.enrolment}
        entries = self._parts.index.workloads()
        return (rows.workload_row(entry, (entry.ref.namespace, entry.ref.name) in local) for entry in entries)

    def services(self) -> Iterable[ServiceRow]:
        """The services known."""
        return rows.service_rows(self._parts.index)

    def routes(self) -> Iterable[RouteRow]:
        """The routes in force."""
        return chain.from_iterable(map(rows.route_rows, self._applied.views.values()))

    def clusters(self) -> Iterable[ClusterRow]:
        """The clusters in force."""
        return chain.from_iterable(map(rows.cluster_rows, self._applied.views.values()))

    def endpoints(self) -> Iterable[EndpointRow]:
        """The endpoints in force."""
        return chain.from_iterable(map(rows.endpoint_rows, self._applied.views.values()))

    def listeners(self) -> Iterable[ListenerRow]:
        """Destinations and inbound ports in force."""
        snapshot = self._applied
        yield from chain.from_iterable(map(rows.destination_rows, snapshot.views.values()))
        for workload in self._parts.enrolment:
            inbound = snapshot.inbound.get(workload.pod.uid)
            if inbound is not None:
                view = workload.view.name if workload.view is not None else ""
                yield from rows.inbound_rows(view, workload.pod.name, workload.pod.namespace, inbound)

    def policies(self) -> Iterable[PolicyRow]:
        """The policies received, and for whom of this node they are."""
        return self._parts.policies.rows(self._parts.enrolment, self._parts.views)

    def authorizations(self) -> Iterable[Mapping[str, Any]]:
        """The L4 policies received, as ztunnel dumps them."""
        for resource in tuple(self._parts.workloads.stream.protocol.types[AUTHORIZATION].resources.values()):
            yield dump_authorization(message_class(AUTHORIZATION).FromString(resource.body))

    async def explain_route(self, asked: Asked) -> RouteExplanation:
        """Where a request of a workload here would go."""
        return await self._explainer.route(asked)

    def explain_access(self, asked: Asked) -> AccessExplanation:
        """Whether the policies of a workload here let a request in."""
        return self._explainer.access(asked)

    def connections(self) -> Iterable[ConnectionRow]:
        """Live downstream connections."""
        found = self._parts.engine.connections(CONNECTIONS_LISTED)
        return (rows.connection_row(each, self._parts.enrolment.ref(each.workload)) for each in found)

    def config_dump(self) -> Iterable[tuple[str, Iterable[Mapping[str, Any]]]]:
        """The L7 resources received, by type."""
        for url in L7_TYPES:
            yield f"xds{short_name(url)}s", self._resources(url)

    def _resources(self, url: str) -> Iterator[Mapping[str, Any]]:
        for view in self._parts.views:
            for name, resource in tuple(view.stream.protocol.types[url].resources.items()):
                yield {
                    "view": view.name,
                    "name": name,
                    "version": resource.version,
                    "resource": resource_json(message_class(url).FromString(resource.body)),
                }

    # -- verbs --

    def metrics(self) -> Iterable[bytes]:
        """All metrics in Prometheus' text format, in pieces."""
        return self._parts.metrics()

    def quit(self) -> None:
        """Begin to drain and exit."""
        self._parts.quit()


def _stream_status(stream: DeltaStream) -> StreamStatus:
    return StreamStatus(
        name=stream.name,
        connected=stream.state.connected,
        node_id=stream.node.id,
        connected_since=stream.state.since,
        attempts=stream.state.attempts,
        last_error=stream.state.last_error,
        types=tuple(_type_status(state) for state in stream.protocol.types.values() if state.wanted),
    )


def _type_status(state: TypeState) -> TypeStatus:
    sent = state.answered or bool(state.resources)
    condition = "STALE" if state.rejected else "SYNCED" if sent else "NOT SENT"
    return TypeStatus(
        type_url=state.type_url,
        state=condition,
        resources=len(state.resources),
        version=state.version,
        last_update=state.last_update,
        nack=state.nack,
        nacks=state.nacks,
    )


def _gather(warnings: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The same warning of many resources once, with an example and their number."""
    places: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for place, text in warnings:
        key = text.rpartition(".")[2]
        places.setdefault(key, f"{place}: {text}")
        counts[key] += 1
    for key, count in counts.most_common(WARNINGS_LISTED):
        yield places[key] + (f" (and {count - 1} more)" if count > 1 else "")
