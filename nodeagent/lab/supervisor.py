"""The supervisor of a lab: one process that owns everything the lab runs, and serves the verbs.

Started in the background by `nodeagent lab up` as `python -m nodeagent.lab.supervisor LAB`. It reads the
lab's folder, makes the namespaces, and keeps control plane, agents, pods, DNS and service proxy as they
should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from nodeagent.config.lab import load_lab_file
from nodeagent.errors import LabError, NodeagentError
from nodeagent.lab import cgroups, conntrack, netns, proxy, rpc, topology
from nodeagent.lab.dns_server import DnsServer, open_sockets
from nodeagent.lab.dns_zone import build_zone
from nodeagent.lab.manifests import Manifest, ObjectKey, parse_manifests
from nodeagent.lab.mesh import Agent, ControlPlane, MeshProcess
from nodeagent.lab.names import LabNames, netns_path
from nodeagent.lab.plan import DNS4, DNS6, LabPlan, plan_lab
from nodeagent.lab.pods import Pod
from nodeagent.lab.process import trim_log
from nodeagent.lab.registry import Registry, require_known
from nodeagent.lab.service_objects import is_pod, pod_labels
from nodeagent.lab.services import Service
from nodeagent.lab.store import Change, ConfigStore
from nodeagent.lab.verbs import Verbs
from nodeagent.lab.virtual_ips import VirtualIps
from nodeagent.lab.zds import Enrolment

log = logging.getLogger("nodeagent.lab")

DOMAIN: Final = "cluster.local"
_LOOK_SECONDS: Final = 0.1  # how often what is not ready is looked at
_CALM_LOOKS: Final = 10  # what is ready is looked at every so many times
_TRIM_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0
_POD_GRACE: Final = 2.0


class Supervisor:
    """One lab. `plain` labs have no control plane and no agents."""

    def __init__(self, names: LabNames, plan: LabPlan, *, plain: bool) -> None:
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
        self.controlplane = None if plain else ControlPlane(names, DOMAIN, self._changed)
        self.agents = {} if plain else {n.name: Agent(names, n, DOMAIN, self._changed) for n in plan.nodes}
        self.stopping = asyncio.Event()
        self._dirty = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._ruleset = ""

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
            key = ObjectKey("", "Pod", pod.spec.namespace, pod.spec.name)
            self.registry.store.write(key, pod.manifest())

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
        known = agent.zds.enrolment(pod.uid)
        if pod.in_mesh and known is None:
            spec = pod.spec
            path = netns_path(pod.plan.netns)
            agent.zds.add(Enrolment(pod.uid, spec.name, spec.namespace, spec.service_account, path))
        elif not pod.in_mesh and known is not None:
            agent.zds.remove(pod.uid)


def read_initial(path: Path) -> list[Manifest]:
    """Read the configuration that `up` was given: objects as text with the place they came from."""
    return [manifest for item in json.loads(path.read_text()) for manifest in unpack(item)]


def unpack(item: dict[str, Any]) -> list[Manifest]:
    """Turn an object of a request into a manifest with its place in the user's file."""
    source, line = Path(item["source"]), int(item["line"])
    return [
        Manifest(manifest.key, manifest.body, manifest.text, source, line)
        for manifest in parse_manifests(item["text"], source)
    ]


async def main(lab: str) -> None:
    """Run the supervisor of a lab whose folder `up` has prepared."""
    names = LabNames(lab)
    (cgroups.create(f"{names.cgroup}/supervisor") / "cgroup.procs").write_text(str(os.getpid()))
    asyncio.get_event_loop_policy().set_child_watcher(_child_watcher())
    options = json.loads((names.root / "options.json").read_text())
    plan = plan_lab(names, load_lab_file(names.lab_file))
    supervisor = Supervisor(names, plan, plain=options["plain"])
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stopping.set)
    server = await rpc.serve(names.supervisor_socket, Verbs(supervisor).handlers())
    try:
        await supervisor.bring_up(read_initial(names.root / "initial.json"))
        supervisor.phase = "up"
        await supervisor.watch()
    except (NodeagentError, OSError) as error:
        log.error("the lab cannot come up: %s", error)
        supervisor.phase, supervisor.error = "failed", str(error)
        await supervisor.stopping.wait()
    server.close()
    await supervisor.shut_down()


def _child_watcher() -> asyncio.AbstractChildWatcher:
    """Watch children by pidfd: the default takes a thread for each of them."""
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    return watcher


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(sys.argv) != 2:
        raise LabError("usage: python -m nodeagent.lab.supervisor LAB")
    asyncio.run(main(sys.argv[1]))
