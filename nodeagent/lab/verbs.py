"""What the supervisor does for the verbs of `nodeagent lab`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from nodeagent.config.yaml_fields import suggestion
from nodeagent.errors import AdminError, LabError, NodeagentError
from nodeagent.lab.manifests import Manifest, ObjectKey
from nodeagent.lab.mesh import MeshProcess
from nodeagent.lab.pods import Pod
from nodeagent.lab.rpc import Handler
from nodeagent.lab.running import RunningLab
from nodeagent.lab.service_objects import is_pod
from nodeagent.lab.settling import Settling
from nodeagent.lab.status import describe

_SETTLE_LOOK: Final = 0.02


class Verbs:
    """Request handlers by verb; requests and answers are JSON objects."""

    def __init__(self, lab: RunningLab) -> None:
        self._lab = lab
        self._configuring = asyncio.Lock()

    def handlers(self) -> dict[str, Handler]:
        """Return the table that `rpc.serve` takes."""
        return {
            "status": self.status,
            "apply": self.apply,
            "delete": self.delete,
            "exec": self.exec,
            "stop": self.stop,
            "start": self.start,
            "restart": self.restart,
            "issues": self.issues,
            "settle": self.settle,
            "shutdown": self.shutdown,
        }

    async def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """Everything of the lab, and what `up` still waits for."""
        return describe(self._lab)

    async def exec(self, request: dict[str, Any]) -> dict[str, Any]:
        """How to become a command in a pod."""
        pod = self._pod(request["pod"])
        if pod.sandbox_pid is None:
            raise LabError(f"pod {pod.spec.key} is not running ({pod.waiting_for})")
        return pod.exec_spec(request["argv"])

    async def shutdown(self, _: dict[str, Any]) -> dict[str, Any]:
        """End the lab; answers the supervisor's pid, which is gone when all is done."""
        self._lab.stopping.set()
        return {"pid": os.getpid()}

    async def stop(self, request: dict[str, Any]) -> None:
        """End an agent or the control plane and leave it so."""
        await self._process(request["target"]).stop()

    async def start(self, request: dict[str, Any]) -> None:
        """Start what was stopped."""
        await self._started(self._process(request["target"]), request["within"])

    async def restart(self, request: dict[str, Any]) -> None:
        """Stop and start."""
        process = self._process(request["target"])
        await process.stop()
        await self._started(process, request["within"])

    async def _started(self, process: MeshProcess, within: float) -> None:
        process.start()
        deadline = time.monotonic() + within
        while not process.ready:
            if time.monotonic() > deadline:
                raise LabError(f"not ready after {within:g} s: {process.not_ready}")
            await asyncio.sleep(_SETTLE_LOOK)

    # -- configuration --

    async def apply(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take objects in force; answers what became of each."""
        async with self._configuring:
            settling = Settling(self._lab)
            await settling.begin()
            manifests = [Manifest.unpack(item) for item in request["objects"]]
            made = {
                manifest.key: await self._apply_one(manifest)
                for manifest in sorted(manifests, key=lambda manifest: _leads_to_others(manifest.key))
            }
            return await self._finish([made[manifest.key] for manifest in manifests], settling)

    async def delete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take objects out of force."""
        async with self._configuring:
            settling = Settling(self._lab)
            await settling.begin()
            keys = [ObjectKey(*item) for item in request["keys"]]
            made = {
                key: await self._delete_one(key) for key in sorted(keys, key=_leads_to_others, reverse=True)
            }
            return await self._finish([made[key] for key in keys], settling)

    async def issues(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        """What the control plane has to say of the whole configuration."""
        plane = self._lab.controlplane
        if plane is None or not plane.ready:
            return []
        try:
            return await Settling(self._lab).issues(plane)
        except AdminError:
            return []

    async def settle(self, _: dict[str, Any]) -> str:
        """Wait until what is configured is in force everywhere; else why it is not."""
        return await Settling(self._lab).settle()

    async def _apply_one(self, manifest: Manifest) -> dict[str, Any]:
        try:
            action, notes = await self._lab.put(manifest)
        except NodeagentError as error:
            return _result(manifest.key, "refused", error=str(error))
        return _result(manifest.key, action, notes=[f"{manifest.place}: {manifest.key}: {n}" for n in notes])

    async def _delete_one(self, key: ObjectKey) -> dict[str, Any]:
        if is_pod(key):
            if key.place not in self._lab.pods:
                return _result(key, "not found", error=f"{key}: the lab has no such pod")
            pod = self._lab.pods[key.place]
            self._lab.relabel(pod, pod.spec.labels)
            return _result(key, "reset to the lab file")
        if await asyncio.to_thread(self._lab.registry.remove, key):
            return _result(key, "deleted")
        return _result(key, "not found", error=f"{key}: there is no such object")

    async def _finish(self, results: list[dict[str, Any]], settling: Settling) -> dict[str, Any]:
        """Bring it in force, wait for the control plane and the agents, and add what they have to say."""
        await self._lab.refresh()
        issues, refused = await settling.end({result["object"] for result in results})
        return {"results": results, "issues": issues, "refused": refused, "waiting": settling.waiting}

    # -- names --

    def _pod(self, name: str) -> Pod:
        key = name if "/" in name else f"default/{name}"
        pod = self._lab.pods.get(key)
        if pod is None:
            raise LabError(f"the lab has no pod {key}{suggestion(key, list(self._lab.pods))}")
        return pod

    def _process(self, name: str) -> MeshProcess:
        known: dict[str, MeshProcess] = dict(self._lab.agents)
        if self._lab.controlplane is not None:
            known["controlplane"] = self._lab.controlplane
        if not known:
            raise LabError("a plain lab has no control plane and no agents")
        if name not in known:
            raise LabError(f"there is no node {name!r}{suggestion(name, list(known))}")
        return known[name]


def _leads_to_others(key: ObjectKey) -> bool:
    """Whether an object is a route. The control plane may read the folder at any time, and a route without what it
    leads to (a subset of a DestinationRule, a service) answers 503: it comes last and goes first."""
    return key.kind == "VirtualService" or key.kind.endswith("Route")


def _result(key: ObjectKey, action: str, *, notes: Sequence[str] = (), error: str = "") -> dict[str, Any]:
    """What became of one object: `action` in a word or two, `notes` and `error` as they are printed."""
    return {"object": str(key), "action": action, "notes": list(notes), "error": error}
