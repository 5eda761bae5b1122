"""Takes this node's workloads on and lets them go: view, engine, inbound configuration, capture, in this
order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from nodeagent.app.agent_baggage import baggage
from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_enrolled import Enrolled
from nodeagent.app.agent_policies import Policies
from nodeagent.app.agent_ports import Capture, Engine
from nodeagent.app.agent_view import ViewController
from nodeagent.app.agent_views import Subject, Views
from nodeagent.compiler.dns import search_list
from nodeagent.compiler.inbound import assemble_inbound
from nodeagent.compiler.workloads import WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.errors import DataplaneError, NetnsError, NodeagentError
from nodeagent.snapshot.values import WorkloadRef

logger = logging.getLogger(__name__)

ADDRESS_WAIT: Final = 1.0
"""Seconds that a new workload waits for the control plane to tell of it."""
FAIL_MODE_LABEL: Final = "nodeagent.io/fail-mode"
"""`open`: connections of the workload pass while no agent runs. A label, since annotations reach no agent."""
LISTEN_ATTEMPTS: Final = 10
FAILURES_KEPT: Final = 64
"""Workloads that could not be taken on, kept to be shown."""
INBOUND_WAIT: Final = 1.5
"""Seconds that a new workload waits for its inbound configuration before it is captured without."""
CERTIFICATE_WAIT: Final = 2.0
"""Seconds that a new workload waits for its certificate: once it is enrolled, others begin to make tunnels to it."""


async def _no_bypass(workload: Enrolled, seconds: float) -> None:
    """Nothing passes the engine."""


async def _no_wait(identity: str, timeout: float) -> None:
    """In place of a wait for what is not there."""


class Enrolment:
    """The Enroller that the ZDS client and the file of workloads drive (enroll/)."""

    def __init__(
        self,
        engine: Engine,
        views: Views,
        configuration: Configuration,
        index: WorkloadIndex,
        make_capture: Callable[[NetworkNamespace], Capture],
        read_addresses: Callable[[NetworkNamespace], Iterable[bytes]],
        config: AgentConfig,
        policies: Policies,
        is_hopeful: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._views = views
        self._configuration = configuration
        self._index = index
        self._make_capture = make_capture
        self._read_addresses = read_addresses
        self._config = config
        self._policies = policies
        self._is_hopeful = is_hopeful
        self._workloads: dict[str, Enrolled] = {}
        self._failed: OrderedDict[str, Enrolled] = OrderedDict()
        self._retired: dict[str, Enrolled] = {}
        """Those that are captured still, and not served."""
        self._by_name: dict[tuple[str, str], str] = {}
        self._arrivals: dict[tuple[str, str], asyncio.Event] = {}
        self.on_synced: Callable[[], None] = lambda: None
        self.on_arrival: Callable[[EnrolledPod], str] = lambda pod: ""
        """Called when a workload is about to be taken on, for its identity; what that needs can be obtained
        meanwhile."""
        self.await_identity: Callable[[str, float], Awaitable[None]] = _no_wait
        self.on_departure: Callable[[EnrolledPod], None] = lambda pod: None
        self.on_change: Callable[[], None] = lambda: None
        """Called when workloads are there, change their view, are about to go, or when something may be known of them
        that was not."""
        self.drain_bypass: Callable[[Enrolled, float], Awaitable[None]] = _no_bypass
        """Called when a workload goes: it waits so many seconds for its connections past the engine, and ends them."""
        self.before_capture: Callable[[], None] = lambda: None
        """Called before a workload is captured: what waits to be put in force must be there from the start."""

    # -- Enroller --

    async def add(self, pod: EnrolledPod, netns: NetworkNamespace) -> None:
        """Serve and capture a pod; all or nothing. Takes over `netns`."""
        addresses = tuple(await asyncio.to_thread(self._read_addresses, netns))
        workload = Enrolled(pod, netns, addresses)
        self._workloads[pod.uid] = workload
        self._by_name[pod.namespace, pod.name] = pod.uid
        workload.identity = self.on_arrival(pod)
        try:
            await self._take_on(workload)
        except BaseException as error:
            await self._undo(workload)
            self._note_failure(workload, str(error) or type(error).__name__)
            raise
        workload.state = "enrolled"
        self._failed.pop(pod.uid, None)
        if (retired := self._retired.pop(pod.uid, None)) is not None:
            retired.netns.close()
        self.on_change()
        self._turn(workload)
        logger.info("enrolled %s/%s", pod.namespace, pod.name)

    def _note_failure(self, workload: Enrolled, error: str) -> None:
        workload.state, workload.error = "failed", error
        self._failed[workload.pod.uid] = workload
        if len(self._failed) > FAILURES_KEPT:
            self._failed.popitem(last=False)

    async def _take_on(self, workload: Enrolled) -> None:
        pod = workload.pod
        await self._await_address(pod)
        view = workload.view = self._views.acquire(pod.uid, self._subject(workload))
        self._configuration.put_view(view.view)
        if self._is_hopeful():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(view.inbound_ready.wait(), INBOUND_WAIT)
        if workload.identity:
            await self.await_identity(workload.identity, CERTIFICATE_WAIT if self._is_hopeful() else 0)
        self.refresh_inbound(pod.uid)
        self.before_capture()
        self._configuration.publish()
        # Made before it listens: where it cannot be captured nothing is to be opened.
        capture = self._make_capture(workload.netns)
        self._add_to_engine(workload, view)
        # Not before: should it not listen, what an earlier agent captures stays so.
        workload.capture = capture
        await asyncio.to_thread(capture.apply)

    async def regrouped(self, uid: str) -> None:
        """The cgroup of a workload came, went, or is another one of the same name."""
        workload = self._workloads.get(uid)
        if workload is not None and workload.capture is not None and workload.state == "enrolled":
            await asyncio.to_thread(workload.capture.apply)

    def _add_to_engine(self, workload: Enrolled, view: ViewController) -> None:
        pod = workload.pod
        entry = self._index.workload_named(pod.namespace, pod.name)
        ref = self.ref(pod.uid)
        assert ref is not None
        self._engine.add_workload(
            pod.uid,
            workload.netns,
            view.name,
            workload.addresses,
            identity=workload.identity,
            baggage=baggage(ref, entry.locality if entry is not None else "") if workload.identity else "",
            search=search_list(pod.namespace, self._config.domain) if self._config.captures_dns else "",
        )

    async def _await_address(self, pod: EnrolledPod) -> None:
        """Let the control plane tell of a pod first. The CNI side is often the quicker one."""
        key = (pod.namespace, pod.name)
        if self._index.workload_named(*key) is None and self._is_hopeful():
            event = self._arrivals.setdefault(key, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), ADDRESS_WAIT)
            self._arrivals.pop(key, None)

    async def _undo(self, workload: Enrolled) -> None:
        """Leave nothing of a workload behind, however far it came. The namespace stays the caller's."""
        uid = workload.pod.uid
        if workload.capture is not None and uid not in self._retired:
            with contextlib.suppress(DataplaneError):
                await asyncio.to_thread(workload.capture.remove)
        await self._engine.remove_workload(uid, 0)
        await self._forget(workload)

    async def remove(self, uid: str) -> None:
        """Restore plain networking, let connections end, and forget the pod."""
        await self._let_go(uid, again=False)
        self._failed.pop(uid, None)
        retired = self._retired.pop(uid, None)
        if retired is not None and retired.capture is not None:
            try:
                await asyncio.to_thread(retired.capture.remove)
            finally:
                retired.netns.close()

    async def retire(self, uid: str) -> None:
        """As remove(), of a workload that is taken on again at once: it stays captured, and is refused in between, or
        until remove() if it cannot be."""
        await self._let_go(uid, again=True)

    async def _let_go(self, uid: str, *, again: bool) -> None:
        workload = self._workloads.get(uid)
        if workload is None or workload.state != "enrolled":
            return
        workload.state = "draining"
        self.on_change()
        assert workload.capture is not None
        if changing := [task for task in (workload.moving, workload.turning) if task is not None]:
            await asyncio.wait(changing)
        try:
            if not again:
                await asyncio.to_thread(workload.capture.release)
            await asyncio.gather(
                self._engine.remove_workload(uid, int(self._config.drain * 1000)),
                self.drain_bypass(workload, self._config.drain),
            )
            if not again:
                await asyncio.to_thread(workload.capture.remove)
        finally:
            await self._forget(workload)
            if again:
                self._retired[uid] = workload
            else:
                workload.netns.close()
        logger.info("let %s/%s go", workload.pod.namespace, workload.pod.name)

    async def _forget(self, workload: Enrolled) -> None:
        uid = workload.pod.uid
        self._workloads.pop(uid, None)
        if self._by_name.get((workload.pod.namespace, workload.pod.name)) == uid:
            del self._by_name[workload.pod.namespace, workload.pod.name]
        self.on_departure(workload.pod)
        self._configuration.drop_inbound(uid)
        if workload.view is not None:
            view, workload.view = workload.view, None
            await self._release(uid, view)

    async def _release(self, uid: str, view: ViewController) -> None:
        await self._views.release(uid, view)
        if not view.users:
            self._configuration.drop_view(view.name)

    def synced(self) -> None:
        """The CNI side has named all workloads."""
        self.on_synced()

    # -- what changes later --

    def refresh_inbound(self, uid: str) -> None:
        """Put a workload's inbound configuration in force, as its view, the index and the policies have it now. What is
        in force stays while one of them is not known."""
        workload = self._workloads.get(uid)
        if workload is None or workload.view is None or workload.view.inbound is None:
            return
        piece, namespace = workload.view.inbound, workload.pod.namespace
        entry = self._index.workload_named(namespace, workload.pod.name)
        every = self._policies.every(namespace, entry, l4_only=piece.l4_only)
        if every is None:
            return
        services = self._index.services_of(entry) if entry is not None else ()
        inbound = assemble_inbound(piece, services, every, self._policies.keys.keys_of)
        if entry is not None:
            names = self._index.names_of(entry)
            inbound = replace(inbound, names=names, tunnel=entry.application_tunnel)
        self._configuration.put_inbound(uid, inbound)
        workload.may_open = inbound.is_open
        self._turn(workload)

    # -- what happens while no agent runs --

    def _is_to_open(self, workload: Enrolled) -> bool:
        """Whether its connections shall pass without an agent: as it asks, by its enrolment or its label, and only
        where everybody may come in anyway."""
        entry = self._index.workload_named(workload.pod.namespace, workload.pod.name)
        labels = dict(entry.labels or ()) if entry is not None else {}
        return workload.may_open and (workload.pod.fail_open or labels.get(FAIL_MODE_LABEL) == "open")

    def _turn(self, workload: Enrolled) -> None:
        """See to it that the kernel goes by the fail mode as it is to be now."""
        wanted = "open" if self._is_to_open(workload) else "closed"
        if workload.state == "enrolled" and workload.turning is None and workload.fail_mode != wanted:
            workload.turning = asyncio.create_task(self._turn_now(workload, wanted))

    async def _turn_now(self, workload: Enrolled, wanted: str) -> None:
        assert workload.capture is not None
        try:
            await asyncio.to_thread(workload.capture.set_open, wanted == "open")
            workload.fail_mode = wanted
        except NodeagentError as error:
            name = f"{workload.pod.namespace}/{workload.pod.name}"
            if workload.error != str(error):
                logger.warning("workload %s is not fail-%s: %s", name, wanted, error)
            workload.error = str(error)
        finally:
            workload.turning = None
        if not workload.error:
            self._turn(workload)

    def refresh_view(self, view: ViewController) -> None:
        """The inbound configuration of a view's workloads has changed."""
        for uid in view.users:
            self.refresh_inbound(uid)

    def workloads_changed(self, uids: Iterable[str]) -> None:
        """Resources of workloads (by xDS uid) came, changed or went."""
        for uid in uids:
            entry = self._index.workload(uid)
            if entry is None:
                continue
            key = (entry.ref.namespace, entry.ref.name)
            if key in self._arrivals:
                self._arrivals[key].set()
            if key in self._by_name:
                self.refresh_inbound(self._by_name[key])
                self._check_view(self._workloads[self._by_name[key]])
                self.on_change()

    def _check_view(self, workload: Enrolled) -> None:
        """Labels may have changed, and with them the view that the workload belongs to."""
        view = workload.view
        if view is None or workload.state != "enrolled":
            return
        if self._views.is_right(view, self._subject(workload)) or workload.moving is not None:
            return
        workload.moving = asyncio.create_task(self._move(workload, view))

    async def _move(self, workload: Enrolled, old: ViewController) -> None:
        """Serve a workload by another view. Its connections end as if it went; new ones find the new view."""
        uid = workload.pod.uid
        view = workload.view = self._views.acquire(uid, self._subject(workload))
        workload.between_views = True
        self._configuration.put_view(view.view)
        try:
            if self._is_hopeful():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(view.inbound_ready.wait(), INBOUND_WAIT)
            self.refresh_inbound(uid)
            self._configuration.publish()
            # What connects meanwhile waits in its listeners.
            with self._engine.keeping_listeners(uid):
                draining = asyncio.create_task(
                    self._engine.remove_workload(uid, int(self._config.drain * 1000)), name=f"drain {uid}"
                )
                await self._listen_again(workload, view)
            workload.between_views = False
            self.on_change()
            await draining
        except DataplaneError as error:
            workload.error = str(error)
            logger.error(
                "workload %s/%s cannot change its view: %s", workload.pod.namespace, workload.pod.name, error
            )
        finally:
            workload.moving, workload.between_views = None, False
            await self._release(uid, old)
            self.on_change()

    async def _listen_again(self, workload: Enrolled, view: ViewController) -> None:
        """Add a workload whose former listeners are being closed by the workers at this moment."""
        for attempt in range(LISTEN_ATTEMPTS):
            await asyncio.sleep(0.02 * attempt)
            if workload.state != "enrolled":
                return
            try:
                self._add_to_engine(workload, view)
            except NetnsError:
                if attempt == LISTEN_ATTEMPTS - 1:
                    raise
            else:
                return

    def _subject(self, workload: Enrolled) -> Subject:
        pod = workload.pod
        entry = self._index.workload_named(pod.namespace, pod.name)
        return Subject(pod.name, pod.namespace, pod.service_account, workload.addresses, entry)

    def refresh_all(self) -> None:
        """Services or policies came, changed or went: inbound ports may belong to others, or be open to others."""
        for uid in self._workloads:
            self.refresh_inbound(uid)

    # -- questions --

    def namespaces(self) -> list[NetworkNamespace] | None:
        """Those of all workloads; None while one could not be taken on: what it had before is not known to be
        superfluous."""
        return None if self._failed else [workload.netns for workload in self._workloads.values()]

    def unsettled(self) -> Iterator[str]:
        """The workloads that are being taken on, or change what they are served by."""
        for each in self._workloads.values():
            if each.state == "pending" or each.between_views or each.turning is not None:
                yield f"{each.pod.namespace}/{each.pod.name}"

    def __iter__(self) -> Iterator[Enrolled]:
        return iter((*self._workloads.values(), *self._failed.values()))

    def ref(self, uid: str) -> WorkloadRef | None:
        """Who a workload of this node is, by the uid of its enrolment: as the control plane tells, else as
        the CNI side does."""
        workload = self._workloads.get(uid)
        if workload is None:
            return None
        pod = workload.pod
        entry = self._index.workload_named(pod.namespace, pod.name)
        if entry is not None:
            return entry.ref
        return WorkloadRef(
            uid="",
            name=pod.name,
            namespace=pod.namespace,
            workload_name=pod.name,
            cluster=self._config.cluster_id,
            service_account=pod.service_account,
            trust_domain=self._config.trust_domain,
        )
