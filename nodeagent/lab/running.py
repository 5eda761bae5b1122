"""A lab that runs: everything it has, kept as it should be.

Makes the namespaces, and keeps control plane, agents, pods, DNS and service proxy going and in line with each
other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from nodeagent.config.lab import AgentOptions
from nodeagent.errors import NodeagentError
from nodeagent.lab import conntrack, netns, proxy, topology
from nodeagent.lab.dns_server import DnsServer, open_sockets
from nodeagent.lab.dns_zone import build_zone
from nodeagent.lab.identity import make_identity
from nodeagent.lab.manifests import Manifest
from nodeagent.lab.mesh import Agent, ControlPlane, MeshProcess
from nodeagent.lab.names import LabNames, netns_path
from nodeagent.lab.node_services import ServiceEnrolment
from nodeagent.lab.plan import DNS4, DNS6, LabPlan
from nodeagent.lab.pods import Pod
from nodeagent.lab.process import trim_log
from nodeagent.lab.registry import Registry, require_known
from nodeagent.lab.service_objects import is_pod, pod_labels
from nodeagent.lab.services import Service
from nodeagent.lab.store import Change, ConfigStore
from nodeagent.lab.virtual_ips import VirtualIps
from nodeagent.lab.zds import Enrolment

log = logging.getLogger("nodeagent.lab")

DOMAIN: Final = "cluster.local"
_LOOK_SECONDS: Final = 0.1  # how often what is not ready is looked at
_CALM_LOOKS: Final = 10  # what is ready is looked at every so many times
_TRIM_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0
_POD_GRACE: Final = 2.0


class RunningLab:
    """One lab. `plain` labs have no control plane and no agents; `options` are the agents'."""

    def __init__(self, names: LabNames, plan: LabPlan, *, plain: bool, options: AgentOptions) -> None:
        self.names = names
        self.plan = plan
        self.plain = plain
        self.phase = "starting"
        self.error = ""
        self.registry = Registry(ConfigStore(names.config), VirtualIps(names.virtual_ips))
        self.services: list[Service] = []
        self.dns = DnsServer(build_zone(DOMAIN, (), (), ()))
        nodes = {node.name: node for node in plan.nodes}
        self.pods = {
            pod.spec.key: Pod(names, pod, nodes[pod.spec.node], DOMAIN, self._changed) for pod in plan.pods
        }
        self.controlplane: ControlPlane | None = None
        self.agents: dict[str, Agent] = {}
        if not plain:
            self._make_mesh(options)
        self.stopping = asyncio.Event()
        self._dirty = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._ruleset = ""

    def _make_mesh(self, options: AgentOptions) -> None:
        names, changed = self.names, self._changed
        identity = None
        if self.plan.identity is not None:
            identity = make_identity(names, self.plan.identity, [node.name for node in self.plan.nodes])
        self.controlplane = ControlPlane(names, DOMAIN, changed, identity)
        serving = {pod.spec.node for pod in self.plan.pods if pod.spec.host_network}
        self.agents = {
            node.name: Agent(names, node, DOMAIN, changed, identity, options, services=node.name in serving)
            for node in self.plan.nodes
        }

    # -- lifecycle --

    async def bring_up(self, initial: Iterable[Manifest]) -> None:
        """Make everything and start everything; readiness comes later."""
        await asyncio.to_thread(topology.build, self.plan.namespaces())
        sockets = await asyncio.to_thread(
            netns.run_in, self.names.fabric_netns, lambda: open_sockets((DNS4, DNS6))
        )
        await self.dns.start(sockets)
        for manifest in initial:
            await self.put(manifest)
        await self.refresh()
        for process in self._mesh_processes():
            process.start()
        for agent in self.agents.values():
            agent.zds.start()
        for pod in self.pods.values():
            pod.start()
            self.enrol(pod)

    async def shut_down(self) -> None:
        """End all processes, giving each a moment to do it well."""
        self.phase = "stopping"
        await asyncio.gather(*(pod.stop(_POD_GRACE) for pod in self.pods.values()))
        await asyncio.gather(*(process.stop() for process in self._mesh_processes()))
        for agent in self.agents.values():
            await agent.zds.close()
        self.dns.close()

    async def watch(self) -> None:
        """Look after readiness, and bring in force what changed, until stopped."""
        # Apart, because an agent that hangs takes seconds to look at.
        works = (self.stopping.wait(), self._watch_mesh(), self._watch_pods(), self._trim_logs())
        tasks = [asyncio.ensure_future(work) for work in works]
        done, going = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        for task in done:
            task.result()  # one that failed has ended all

    async def _watch_mesh(self) -> None:
        for look in itertools.count():
            calm = look % _CALM_LOOKS == 0
            processes = [p for p in self._mesh_processes() if calm or not p.ready]
            await asyncio.gather(*(process.check() for process in processes))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _watch_pods(self) -> None:
        for look in itertools.count():
            calm = look % _CALM_LOOKS == 0
            for pod in self.pods.values():
                if (calm or not pod.ready) and pod.check(self.registry.targeted_ports):
                    self._changed()
            if self._dirty.is_set():
                await self._refresh_logged()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), _LOOK_SECONDS)

    async def _trim_logs(self) -> None:
        while True:
            for file in (
                *self.names.logs.glob("*.log"),
                *(agent.access_log for agent in self.agents.values()),
            ):
                trim_log(file)
            await asyncio.sleep(_TRIM_SECONDS)

    def _mesh_processes(self) -> list[MeshProcess]:
        first: list[MeshProcess] = [self.controlplane] if self.controlplane is not None else []
        return [*first, *self.agents.values()]

    def _changed(self) -> None:
        self._dirty.set()

    @property
    def is_changing(self) -> bool:
        """Whether something has changed that is not in its folder yet."""
        return self._dirty.is_set() or self._refreshing.locked()

    # -- what is in force --

    async def put(self, manifest: Manifest) -> tuple[Change, list[str]]:
        """Keep a configuration object, in force from the next refresh; returns what changed, and notes.

        A v1 Pod changes the labels of the lab's pod of that name; all else about pods is the lab file's.
        """
        if is_pod(manifest.key):
            require_known(manifest.key, self.pods)
            return self.relabel(self.pods[manifest.key.place], pod_labels(manifest)), []
        return await asyncio.to_thread(self.registry.put, manifest)

    async def refresh(self) -> None:
        """Bring pods, services, DNS, service proxy and the control plane's folder in line."""
        async with self._refreshing:
            self._dirty.clear()
            backends = [pod.backend() for pod in self.pods.values()]
            before = conntrack.udp_endpoints(self.services)
            self.services = self.registry.services(backends)
            namespaces = {pod.spec.namespace for pod in self.pods.values()}
            namespaces |= {service.spec.namespace for service in self.services}
            self.dns.zone = build_zone(DOMAIN, self.services, backends, namespaces)
            await asyncio.to_thread(self._write_pods)
            await self._apply_proxy(proxy.ruleset(self.services))
            if gone := before - conntrack.udp_endpoints(self.services):
                await asyncio.gather(
                    *(asyncio.to_thread(conntrack.forget, n.netns, gone) for n in self.plan.nodes)
                )

    async def _apply_proxy(self, ruleset: str) -> None:
        if ruleset == self._ruleset:
            return
        nodes = [node.netns for node in self.plan.nodes]
        await asyncio.gather(*(asyncio.to_thread(proxy.apply, node, ruleset) for node in nodes))
        self._ruleset = ruleset

    async def _refresh_logged(self) -> None:
        try:
            await self.refresh()
        except (NodeagentError, OSError) as error:
            log.error("refresh failed, trying again: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)
            self._changed()

    def _write_pods(self) -> None:
        for pod in self.pods.values():
            pod.captured = self._is_captured(pod)
            self.registry.store.write(pod.key, pod.manifest())

    def _is_captured(self, pod: Pod) -> bool:
        known = self.enrolment(pod)
        return known is not None and known.captured

    def enrolment(self, pod: Pod) -> Enrolment | ServiceEnrolment | None:
        """What the agent of its node was told, and says, of a pod; None: it is none of its business."""
        agent = self.agents.get(pod.node.name)
        if agent is None:
            return None
        if pod.spec.host_network:
            return agent.services.enrolment(pod.spec.key)
        return agent.zds.enrolment(pod.uid)

    def relabel(self, pod: Pod, labels: Mapping[str, str]) -> Change:
        """Replace the labels of a pod, and with them its services and its place in the mesh."""
        if labels == pod.labels:
            return "unchanged"
        pod.labels = labels
        self.enrol(pod)
        return "configured"

    def enrol(self, pod: Pod) -> None:
        """Have a pod captured, or let it go, as its labels now say."""
        agent = self.agents.get(pod.node.name)
        if agent is None:
            return
        known = self.enrolment(pod)
        if pod.in_mesh and known is None:
            spec = pod.spec
            if spec.host_network:
                agent.services.add(spec, pod.cgroup)
                return
            path = netns_path(pod.plan.netns)
            agent.zds.add(Enrolment(pod.uid, spec.name, spec.namespace, spec.service_account, path))
        elif not pod.in_mesh and known is not None:
            if pod.spec.host_network:
                agent.services.remove(pod.spec.key)
            else:
                agent.zds.remove(pod.uid)
