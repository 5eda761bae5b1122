"""The agent: puts its parts together, runs them, and ends them in order.

Start: own cgroup, before the first socket is opened; engine; last good configuration from disk; control
plane; then the CNI side, so that workloads meet an agent that knows something. Stop: take on no more
workloads, drain the engine. Capture stays, so that nothing gets past while no agent runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final

from nodeagent import __version__
from nodeagent.admin.server import AdminOptions, AdminServer
from nodeagent.app.agent_acceleration import Acceleration, AccelerationCollector
from nodeagent.app.agent_access import xds_transport
from nodeagent.app.agent_bypass import BypassKeeper
from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_datagrams import DatagramCollector, DatagramKeeper
from nodeagent.app.agent_enrolment import Enrolment
from nodeagent.app.agent_flows import FlowCollector, FlowKeeper
from nodeagent.app.agent_identity import Identities, IdentityCollector
from nodeagent.app.agent_memory import collect_seldom, keep_what_is_there, limit_arenas, settle_memory
from nodeagent.app.agent_metrics import AgentCollector, CaptureCollector, KeySetCollector
from nodeagent.app.agent_node import workload_node
from nodeagent.app.agent_policies import Policies
from nodeagent.app.agent_ports import Datagrams, Dataplane, Engine
from nodeagent.app.agent_saver import Saver
from nodeagent.app.agent_state import Parts, State
from nodeagent.app.agent_view import ViewController, ViewEvents
from nodeagent.app.agent_views import Views
from nodeagent.app.agent_workloads import NAME as WORKLOADS
from nodeagent.app.agent_workloads import WorkloadStream
from nodeagent.compiler.dns import Names
from nodeagent.compiler.workloads import IndexChange, WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.enroll.workload_file import WorkloadFile
from nodeagent.enroll.zds import ZdsClient
from nodeagent.errors import CapabilityError, DataplaneError, NodeagentError
from nodeagent.snapshot.values import DestinationNeeded, Need, WorkloadRef
from nodeagent.xds.lastgood import LastGood

if TYPE_CHECKING:
    from nodeagent.app.agent_access_log import AccessLogKeeper

logger = logging.getLogger(__name__)

CGROUP: Final = "nodeagent"
STATS_PERIOD: Final = 1.0
USAGE_PERIOD: Final = 5.0
INDEX_DEBOUNCE: Final = 0.1
SETTLE_DELAY: Final = 3.0
FREEZE_STEP: Final = 10_000
"""Workloads and services by which the index grows before its memory is settled."""
HOPE: Final = 3.0
"""Seconds after the start, and after it was last there, that a control plane that does not answer is waited for."""
HOPE_PERIOD: Final = 0.5


def main(config: AgentConfig) -> None:
    """Run the agent until it is told to stop."""
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # what a change means is logged by us
    limit_arenas()
    collect_seldom()
    import uvloop

    from nodeagent.app.agent_dataplane import KernelDataplane
    from nodeagent.dataplane.cgroup import ensure_own_group

    group = ensure_own_group(CGROUP)
    uvloop.run(Agent(config, KernelDataplane(config, group)).run())


class Agent:
    """The composition. `run` returns when it has been told to stop and has drained."""

    def __init__(self, config: AgentConfig, dataplane: Dataplane) -> None:
        self._config = config
        self._dataplane = dataplane
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pending = IndexChange()
        self._settling: asyncio.Handle | None = None
        self._capture_settling: asyncio.Task[None] | None = None
        self._frozen = 0
        self._settle_later: asyncio.Handle | None = None
        self._defect = ""
        self._seen = 0.0
        """When the control plane was last there; at first the start."""
        self.index = WorkloadIndex(config.node, config.network)
        self.names = Names(self.index)
        self.engine = dataplane.engine()
        self._check = dataplane.check
        self.configuration = Configuration(self.engine)
        store = LastGood(config.state / "xds")
        self._store = store
        self._saver = Saver(store)
        self.identities = Identities(config)
        self.identities.serve(self.engine)
        self.workloads = WorkloadStream(
            xds_transport(config),
            workload_node(config),
            self.index,
            self._index_changed,
            self._workloads_stored,
            trust=self.identities.trust if config.ca else None,
        )
        self.policies = Policies(config, self.index, self.workloads)
        events = ViewEvents(self._view_changed, self._inbound_changed, self._view_stored)
        self.views = Views(
            config,
            self.index,
            events,
            store,
            self._saver,
            dataplane.check,
            self.identities.client_certificate,
        )
        self.identities.follow(self.views.certificate_changed)
        self.enrolment = self._make_enrolment(dataplane)
        self.acceleration = Acceleration(config, self.index, dataplane.accelerator, self.enrolment)
        self.enrolment.on_change = self._enrolment_changed
        self._zds = ZdsClient(str(config.zds) if config.has_cni else "", self.enrolment)
        self._file = WorkloadFile(config.workloads, self.enrolment) if config.workloads is not None else None
        self.bypass, self._why_no_bypass = dataplane.bypass()
        self._bypass_keeper = self._keep_bypass()
        self.datagrams, self._why_no_datagrams = dataplane.datagrams()
        self._datagram_keeper = self._keep_datagrams(self.datagrams)
        self.workloads.policies_changed = self.policies.changed = self._policies_changed
        flows = dataplane.flows()
        self._flow_keeper = None if flows is None else FlowKeeper(flows, self._pull_reports)
        self._metrics = self._make_metrics()
        self._access_log = _make_access_log(config, self.engine)
        self.state = State(self._parts())
        self._admin = AdminServer(self.state, AdminOptions(config.admin, config.metrics, config.ready))

    def _make_enrolment(self, dataplane: Dataplane) -> Enrolment:
        enrolment = Enrolment(
            self.engine,
            self.views,
            self.configuration,
            self.index,
            dataplane.capture,
            dataplane.addresses,
            self._config,
            self.policies,
            self._is_hopeful,
        )
        enrolment.on_synced = self._enrolment_synced
        enrolment.before_capture = self._index_settled
        enrolment.on_arrival = self.identities.arrived
        enrolment.on_departure = self.identities.departed
        enrolment.await_identity = self.identities.wait
        return enrolment

    def _keep_bypass(self) -> BypassKeeper | None:
        if self.bypass is None:
            return None
        parts = self.engine, self.configuration, self.enrolment, self.identities
        keeper = BypassKeeper(self.bypass, *parts)
        self.configuration.after = keeper.configured
        self.enrolment.drain_bypass = keeper.drain
        self.identities.follow(lambda identity: keeper.refresh())
        return keeper

    def _keep_datagrams(self, datagrams: Datagrams | None) -> DatagramKeeper | None:
        if datagrams is None:
            return None
        parts = self.engine, self.index, self.policies, self.enrolment, self.identities
        keeper = DatagramKeeper(
            datagrams,
            *parts,
            has_identities=bool(self._config.ca),
            is_synced=lambda: self.workloads.synced,
        )
        self.identities.follow(lambda identity: keeper.changed())
        return keeper

    def _policies_changed(self) -> None:
        self.enrolment.refresh_all()
        if self._datagram_keeper is not None:
            self._datagram_keeper.changed()

    def _parts(self) -> Parts:
        return Parts(
            self._config,
            self.engine,
            self.index,
            self.workloads,
            self.views,
            self.configuration,
            self.enrolment,
            self._zds,
            self._file,
            self._saver,
            self.identities,
            self.policies,
            self._dataplane,
            self.acceleration,
            self.bypass,
            self._why_no_bypass,
            self.datagrams,
            self._datagram_keeper,
            self._why_no_datagrams,
            self._render_metrics,
            self.stop,
            self._unsettled,
            lambda: self._admin.problems,
        )

    def _unsettled(self) -> Iterator[str]:
        """What is on its way from the control plane into force, in this order."""
        if self._config.static is None:
            if lacks := self.workloads.stream.outstanding:
                yield f"the stream of workloads {lacks}"
            yield from (f"view {view.name} {lacks}" for view in self.views if (lacks := view.unsettled))
        if self._settling is not None:
            yield "changes of services and workloads"
        yield from (f"workload {name}" for name in self.enrolment.unsettled())
        if not (self.configuration.settled and self.engine.settled()):
            yield "configuration of the engine"
        if self._bypass_keeper is not None and not self._bypass_keeper.settled:
            yield "connections past the engine"
        if self._datagram_keeper is not None and not self._datagram_keeper.settled:
            yield "UDP"

    # -- lifecycle --

    def stop(self) -> None:
        """Begin to drain and exit; SIGTERM does this."""
        self._stop.set()

    async def run(self) -> None:
        """Run until stopped."""
        loop = asyncio.get_running_loop()
        self._seen = loop.time()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        logger.info("nodeagent %s on node %s, pid %d", __version__, self._config.node, os.getpid())
        self.engine.start()
        try:
            await self._start()
            await self._stop.wait()
        finally:
            await self._shut_down()
        if self._defect:
            raise NodeagentError(f"stopped for a defect of the agent: {self._defect}")

    async def _start(self) -> None:
        if self._access_log is not None:
            self._access_log.start()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._access_log.reopen)
        self._restore_workloads()
        asyncio.get_running_loop().call_later(SETTLE_DELAY, settle_memory)
        self.engine.watch(asyncio.get_running_loop(), self._on_need)
        await self._admin.start()
        self._spawn("saver", self._saver.run())
        self._spawn("statistics", self._every(STATS_PERIOD, self._pull_statistics))
        self._spawn("usage", self._every(USAGE_PERIOD, self._pull_usage))
        self._spawn("hope", self._every(HOPE_PERIOD, self._look_for_control_plane))
        if self._access_log is not None:
            self._spawn("access log", self._access_log.run())
        if self._config.static is not None:
            from nodeagent.app import agent_static

            agent_static.serve(self._config.static, self.engine, self.configuration, self._check)
            return
        self.identities.start()
        self._spawn("xds workloads", self.workloads.stream.run())
        if self._config.has_cni:
            self._spawn("zds", self._zds.run())
        if self._file is not None:
            self._spawn("workloads", self._file.run())
        self._spawn("acceleration", self.acceleration.run())
        if self._flow_keeper is not None:
            self._spawn("connections past the engine", self._flow_keeper.run())

    def _spawn(self, name: str, body: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(body, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """None of them ends by itself: a defect of ours. The supervisor's restart is the way on."""
        if not task.cancelled() and not self._stop.is_set():
            logger.critical("%s ended unexpectedly", task.get_name(), exc_info=task.exception())
            self._defect = f"{task.get_name()} ended unexpectedly: {task.exception()!r}"
            self.stop()

    async def _shut_down(self) -> None:
        logger.info("draining for at most %g s", self._config.drain)
        self.engine.unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.views.stop()
        await self.identities.stop()
        await self.policies.keys.stop()
        await self._saver.flush()
        if self._capture_settling is not None:
            await self._capture_settling
        if self._bypass_keeper is not None:
            await self._bypass_keeper.stop()
        if self._datagram_keeper is not None:
            await self._datagram_keeper.stop()
        if self._flow_keeper is not None:
            await self._flow_keeper.stop()
        await self.engine.stop(int(self._config.drain * 1000))
        self._pull_reports()
        await self._admin.stop()
        if self._access_log is not None:
            await self._access_log.close()
        self.engine.close()
        self._dataplane.close()
        logger.info("stopped; captured workloads are refused until an agent runs again")

    def _restore_workloads(self) -> None:
        held = self._store.load(WORKLOADS)
        self.workloads.restore(held)
        if held:
            logger.info("restored %d workloads and services of an earlier run", len(self.index))

    def _is_hopeful(self) -> bool:
        """Whether it makes sense to wait for the control plane."""
        recently = asyncio.get_running_loop().time() - self._seen < HOPE
        return self.workloads.stream.state.connected or recently

    def _look_for_control_plane(self) -> None:
        if self.workloads.stream.state.connected:
            self._seen = asyncio.get_running_loop().time()
        self.configuration.expect_answers(self._is_hopeful())

    # -- events of the parts --

    def _index_changed(self, change: IndexChange) -> None:
        self.enrolment.workloads_changed(change.workloads)
        if self._datagram_keeper is not None:
            self._datagram_keeper.index_changed(change)
        self._pending.add(change)
        if (change.hints or change.addresses or change.services) and self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(INDEX_DEBOUNCE, self._index_settled)

    def _index_settled(self) -> None:
        """What was derived from the index is derived anew, once for a burst of changes."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        change, self._pending = self._pending, IndexChange()
        rerouted = self.views.gateways.forget(change)
        has_identities = bool(self._config.ca)
        if change.hints or (change.tunnels and has_identities):
            self.configuration.put_hints(self.index.hints(tunnels=has_identities))
        if self._config.captures_dns:
            self.configuration.put_names(self.names.update(change))
        if change.hints:
            self.enrolment.refresh_all()
        for view in self.views:
            if change.hints or rerouted:
                view.reconsider()
            view.refresh_workloads(change.addresses)
        if len(self.index) > self._frozen + FREEZE_STEP:
            self._frozen = len(self.index)
            keep_what_is_there()
            if self._settle_later is not None:
                self._settle_later.cancel()
            self._settle_later = asyncio.get_running_loop().call_later(SETTLE_DELAY, settle_memory)

    def _view_changed(self, view: ViewController) -> None:
        if self.views.get(view.name) is view:
            self.configuration.put_view(view.view)

    def _inbound_changed(self, view: ViewController) -> None:
        self.policies.want_keys(self.views)
        self.enrolment.refresh_view(view)

    def _view_stored(self, view: ViewController) -> None:
        self._saver.mark(view.stream)

    def _workloads_stored(self) -> None:
        self._saver.mark(self.workloads.stream)

    def _enrolment_changed(self) -> None:
        self.acceleration.changed()
        if self._bypass_keeper is not None:
            self._bypass_keeper.refresh()
        if self._datagram_keeper is not None:
            self._datagram_keeper.changed()

    def _enrolment_synced(self) -> None:
        """One who finds workloads has named them all; where there are two, the other one may not have yet."""
        if self._file is not None and self._config.has_cni and not (self._zds.synced and self._file.synced):
            return
        self.acceleration.complete()
        if self._flow_keeper is not None:
            self._flow_keeper.complete()
        self._store.keep_only({WORKLOADS, *(view.name for view in self.views)})
        namespaces = self.enrolment.namespaces()
        if namespaces is not None:
            self._capture_settling = asyncio.create_task(self._settle_capture(namespaces))

    async def _settle_capture(self, namespaces: list[NetworkNamespace]) -> None:
        try:
            await asyncio.to_thread(self._dataplane.settle, namespaces)
        except (CapabilityError, DataplaneError) as error:
            logger.warning("what an earlier agent captured is not looked through: %s", error)

    def _on_need(self, need: Need) -> None:
        view = self.views.get(need.view)
        if view is None:
            return
        if isinstance(need, DestinationNeeded):
            view.need_destination(need.address, need.port)
        else:
            view.need_host(need.table, need.host)

    # -- pulled from the engine --

    async def _every(self, period: float, action: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(period)
            try:
                action()
            except Exception:
                logger.exception("%s failed", getattr(action, "__name__", action))

    def _pull_reports(self) -> None:
        self._pull_statistics()
        if self._access_log is not None:
            self._access_log.pull()

    def _pull_statistics(self) -> None:
        self._metrics.update(self.engine.drain_stats())
        self._metrics.update_decisions(self.engine.drain_decisions())

    def _pull_usage(self) -> None:
        for use in self.engine.usage():
            view = self.views.get(use.view)
            if view is not None:
                view.touch(use)
        for view in self.views:
            view.sweep()
        self.policies.want_keys(self.views)

    # -- telemetry --

    def _make_metrics(self) -> Any:
        from nodeagent.telemetry.metrics import Metrics

        collector = AgentCollector(
            self.workloads, self.views, self.configuration, self.enrolment, self._zds, self._file, self._saver
        )
        registry = collector.register()
        registry.register(IdentityCollector(self.identities))
        registry.register(CaptureCollector(self._dataplane))
        registry.register(KeySetCollector(self.policies.keys))
        if self.datagrams is not None:
            registry.register(DatagramCollector(self.datagrams))
        if self._flow_keeper is not None:
            registry.register(FlowCollector(self._flow_keeper))
        registry.register(AccelerationCollector(self.acceleration))
        return Metrics(self, registry)

    def _render_metrics(self) -> Iterator[bytes]:
        self._pull_statistics()
        pages: Iterator[bytes] = self._metrics.pages(self.engine.counters())
        return pages

    def by_uid(self, uid: str) -> WorkloadRef | None:
        """Who a workload of this node is (telemetry's lookup)."""
        return self.enrolment.ref(uid)

    def by_address(self, address: bytes) -> WorkloadRef | None:
        """Who is at an address (telemetry's lookup)."""
        return self.index.workload_at(address)


def _make_access_log(config: AgentConfig, engine: Engine) -> AccessLogKeeper | None:
    """Imported only where there is one."""
    if config.access_log == "off":
        return None
    from nodeagent.app.agent_access_log import AccessLogKeeper

    return AccessLogKeeper(config, engine)
