"""Pods at run time: a sandbox that holds the namespaces, the pod's own program in it, and its readiness."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from nodeagent.config.lab import PodSpec
from nodeagent.lab import cgroups
from nodeagent.lab.manifests import ObjectKey
from nodeagent.lab.names import LabNames, netns_path
from nodeagent.lab.plan import DNS4, DNS6, NodePlan, PodPlan
from nodeagent.lab.process import Keeper, Launch
from nodeagent.lab.services import Backend
from nodeagent.lab.sockets import listening

DATAPLANE_MODE_LABEL: Final = "istio.io/dataplane-mode"
REDIRECTION_ANNOTATION: Final = "ambient.istio.io/redirection"
NETWORKING: Final = "networking.istio.io"
TUNNEL_LABEL: Final = "networking.istio.io/tunnel"
NODE_ANNOTATION: Final = "nodeagent.io/node"
# Sleeps for good in coreutils' smallest program: holds the pod's mount and UTS namespaces.
# How long a program that runs may take to open the ports that are wanted of it: from the first one that is open to
# the others, and to the first. A pod without a readiness probe is ready in Kubernetes as soon as it runs.
_OTHERS_SECONDS: Final = 5.0
_FIRST_SECONDS: Final = 20.0
_PAUSE: Final = ("sleep", "infinity")
_PATH: Final = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UID_NAMESPACE: Final = uuid.UUID("6f0c9a52-6f64-4e6c-9d0a-6e6f64656167")

Port = tuple[str, int]  # protocol, number
# The machine's files that a pod's own ones cover, in the pod's mount namespace only.
ETC_FILES: Final = ("resolv.conf", "hosts", "hostname")


class Pod:
    """One pod. `labels` may be replaced while it runs; `ready` is kept by `check`."""

    def __init__(
        self, names: LabNames, plan: PodPlan, node: NodePlan, domain: str, changed: Callable[[], None]
    ) -> None:
        self.plan = plan
        self.node = node
        self.labels: Mapping[str, str] = plan.spec.labels
        self.ready = False
        self.captured = False  # by the agent of its node; kept by the lab
        self.waiting_for = "its process"
        self.warning = ""  # what is wanted of it and was not waited for any longer
        self._names = names
        self._domain = domain
        self._wanted: frozenset[Port] | None = None
        self._waits_since = 0.0  # since when the program runs without a port that is wanted; 0: it does not
        self._waits_with = 0  # how many of the ports were open then
        self._cgroup = names.pod_cgroup(plan.spec.namespace, plan.spec.name)
        self._changed = changed
        self._sandbox = Keeper(self._sandbox_launch, self.log, self._moved)
        self._main = Keeper(self._main_launch, self.log, self._moved, restart=plan.spec.restart)

    @property
    def spec(self) -> PodSpec:
        """The pod as the lab file has it."""
        return self.plan.spec

    @property
    def log(self) -> Path:
        """Where the program's output goes."""
        return self._names.log(f"pod.{self.spec.namespace}.{self.spec.name}")

    @property
    def uid(self) -> str:
        """metadata.uid: the same for the same pod of the same lab."""
        return str(uuid.uuid5(_UID_NAMESPACE, f"{self._names.lab}/{self.spec.key}"))

    @property
    def in_mesh(self) -> bool:
        """Whether the pod is to be captured: the lab file says so unless the label does."""
        mode = self.labels.get(DATAPLANE_MODE_LABEL)
        return {"none": False, "ambient": True}.get(mode or "", self.spec.mesh)

    @property
    def keeper(self) -> Keeper:
        """The pod's program, or its sandbox when it has none."""
        return self._main if self.spec.command else self._sandbox

    @property
    def sandbox_pid(self) -> int | None:
        """A process whose namespaces are the pod's."""
        return self._sandbox.pid

    @property
    def completed(self) -> bool:
        """Whether the program was to run once and ended well."""
        return self.keeper.state == "exited" and self.keeper.last_exit == "exited with status 0"

    def start(self) -> None:
        """Start sandbox and program."""
        self._write_files()
        self._sandbox.start()
        if self.spec.command:
            self._main.start()

    async def stop(self, grace: float) -> None:
        """End the program, then the sandbox."""
        await self._main.stop(grace if self.spec.command else 0)
        await self._sandbox.stop(0)

    def check(self, targeted: Callable[[Backend], Iterable[Port]]) -> bool:
        """Look whether the pod is ready, `targeted` being what services ask of it; True when that changed.

        Ready is a running program that listens on its declared ports and those that services target; one that
        does not for long is ready with a warning. What is asked for is settled when the pod first becomes ready:
        a later service with a wrong target port must not take the pod from the services that work.
        """
        wanted = self._wanted
        if wanted is None:
            declared = {(port.protocol, port.container_port) for port in self.spec.ports}
            wanted = frozenset(targeted(self.backend())) | declared
        was = self.ready
        missing = self._missing(wanted)
        if missing and self._has_waited(len(wanted) - len(missing)):
            wanted, self.warning, missing = wanted - missing, f"lacks {_listeners(missing)}", frozenset()
        self.waiting_for = self._not_running() or self._lacks(missing)
        self.ready = not self.waiting_for
        if self.ready:
            self._wanted = wanted
        return self.ready != was

    def _has_waited(self, opened: int) -> bool:
        """Whether a program that lacks ports had its time; `opened` of them are open by now."""
        now = time.monotonic()
        if self._not_running():
            self._waits_since = 0.0
        elif not self._waits_since or opened != self._waits_with:
            self._waits_since, self._waits_with = now, opened
        else:
            return now - self._waits_since > (_OTHERS_SECONDS if opened else _FIRST_SECONDS)
        return False

    def _moved(self) -> None:
        """A process came or went: what is gone serves nobody from this moment, not from the next look."""
        if missing := self._not_running():
            self.ready, self.waiting_for = False, missing
        self._changed()

    def _not_running(self) -> str:
        keeper = self.keeper
        if keeper.pid is None or self._sandbox.pid is None:
            return f"its process ({keeper.last_exit or keeper.state})"
        return ""

    def _lacks(self, missing: frozenset[Port]) -> str:
        """What of its ports is not open yet; of a program that ends each time, why it did the last time."""
        if missing and self.keeper.is_crashing:
            return f"its process ({self.keeper.last_exit})"
        return _listeners(missing)

    def _missing(self, wanted: frozenset[Port]) -> frozenset[Port]:
        pid = self.keeper.pid
        if pid is None or not self.spec.command:
            return frozenset()  # a pod that only exists serves nothing, whatever selects it
        return wanted - listening(pid, (self.plan.ipv4, self.plan.ipv6))

    def backend(self) -> Backend:
        """The pod as services see it."""
        ports = {(port.name, port.protocol): port.container_port for port in self.spec.ports}
        addresses = (self.plan.ipv4, self.plan.ipv6)
        return Backend(self.spec.name, self.spec.namespace, self.labels, addresses, self.ready, ports)

    @property
    def key(self) -> ObjectKey:
        """Of the object that the control plane reads."""
        group, kind = (NETWORKING, "WorkloadEntry") if self.spec.host_network else ("", "Pod")
        return ObjectKey(group, kind, self.spec.namespace, self.spec.name)

    @property
    def cgroup(self) -> str:
        """Where its processes are, in the hierarchy."""
        return self._cgroup

    def manifest(self) -> dict[str, Any]:
        """The object that the control plane reads: a v1 Pod, or a WorkloadEntry for a service of the node."""
        return self._workload_entry() if self.spec.host_network else self._pod()

    def _workload_entry(self) -> dict[str, Any]:
        return {
            "apiVersion": f"{NETWORKING}/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": self.spec.name,
                "namespace": self.spec.namespace,
                "labels": {TUNNEL_LABEL: "http"} if self.captured else {},
                "annotations": {NODE_ANNOTATION: self.node.name},
            },
            "spec": {
                "address": str(self.plan.ipv4),
                "serviceAccount": self.spec.service_account,
                "labels": dict(self.labels),
                "ports": {port.name: port.container_port for port in self.spec.ports},
            },
            "status": {"conditions": [{"type": "Healthy", "status": "True" if self.ready else "False"}]},
        }

    def _pod(self) -> dict[str, Any]:
        condition = {"type": "Ready", "status": "True" if self.ready else "False"}
        ports = [
            {"name": port.name, "containerPort": port.container_port, "protocol": port.protocol}
            for port in self.spec.ports
        ]
        addresses = [str(self.plan.ipv4), str(self.plan.ipv6)]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.spec.name,
                "namespace": self.spec.namespace,
                "uid": self.uid,
                "labels": dict(self.labels),
                # As istio-cni tells that it has a pod captured.
                **({"annotations": {REDIRECTION_ANNOTATION: "enabled"}} if self.captured else {}),
            },
            "spec": {
                "nodeName": self.node.name,
                "serviceAccountName": self.spec.service_account,
                "containers": [{"name": "main", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "hostIP": str(self.node.ipv4),
                "podIP": addresses[0],
                "podIPs": [{"ip": address} for address in addresses],
                "conditions": [condition],
            },
        }

    def environment(self) -> dict[str, str]:
        """The environment of the pod's programs; the lab file's `env` has the last word."""
        spec = self.spec
        addresses = (str(self.plan.ipv4), str(self.plan.ipv6))
        return {
            "PATH": _PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "HOSTNAME": spec.name,
            "POD_NAME": spec.name,
            "POD_NAMESPACE": spec.namespace,
            "POD_LABELS": ",".join(f"{key}={value}" for key, value in self.labels.items()),
            "SERVICE_ACCOUNT": spec.service_account,
            "NODE_NAME": self.node.name,
            "POD_IP": addresses[0],
            "POD_IPS": ",".join(addresses),
            **spec.env,
        }

    def exec_spec(self, argv: list[str]) -> dict[str, Any]:
        """What `sandbox.become` needs to run a command in the pod; makes the cgroup for it."""
        launch = Launch(
            argv=tuple(argv),
            cgroup=f"{self._cgroup}/exec",
            netns=netns_path(self.plan.netns),
            env=self.environment(),
            join=self.sandbox_pid,
        )
        cgroups.create(launch.cgroup)
        return launch.spec()

    def _sandbox_launch(self) -> Launch:
        folder = self._names.pod(self.spec.namespace, self.spec.name)
        return Launch(
            argv=_PAUSE,
            cgroup=f"{self._cgroup}/sandbox",
            netns=netns_path(self.plan.netns),
            env={"PATH": _PATH},
            hostname=self.spec.name,
            binds=tuple((str(folder / name), f"/etc/{name}") for name in ETC_FILES),
        )

    def _main_launch(self) -> Launch:
        return Launch(
            argv=self.spec.command,
            cgroup=f"{self._cgroup}/main",
            netns=netns_path(self.plan.netns),
            env=self.environment(),
            join=self._sandbox.pid,
        )

    def _files(self) -> dict[str, str]:
        """The pod's own files of /etc, as a kubelet writes them."""
        search = f"{self.spec.namespace}.svc.{self._domain} svc.{self._domain} {self._domain}"
        hosts = [
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            f"{self.plan.ipv4}\t{self.spec.name}",
            f"{self.plan.ipv6}\t{self.spec.name}",
        ]
        return {
            "resolv.conf": f"search {search}\nnameserver {DNS4}\nnameserver {DNS6}\noptions ndots:5\n",
            "hosts": "\n".join(hosts) + "\n",
            "hostname": f"{self.spec.name}\n",
        }

    def _write_files(self) -> None:
        folder = self._names.pod(self.spec.namespace, self.spec.name)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self._files().items():
            (folder / name).write_text(text)


def _listeners(ports: Iterable[Port]) -> str:
    return ", ".join(f"a listener on {protocol} port {port}" for protocol, port in sorted(ports))
