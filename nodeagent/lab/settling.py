"""Waiting until a change of configuration has arrived: read by the control plane, taken by the agents."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from nodeagent.errors import AdminError
from nodeagent.lab import adminclient
from nodeagent.lab.mesh import Agent, ControlPlane
from nodeagent.lab.running import RunningLab

_ALIVE_SECONDS: Final = 2.0
_READ_SECONDS: Final = 10.0
_TAKE_SECONDS: Final = 5.0
_LOOK: Final = 0.02

Refusal = tuple[str, str, str]
"""(client, type, reason)."""


class Settling:
    """One change of a lab's configuration, made between `begin` and `end`."""

    def __init__(self, lab: RunningLab) -> None:
        self._lab = lab
        self._plane: ControlPlane | None = None
        self._issues: list[dict[str, Any]] = []
        self._refused: set[Refusal] = set()
        self.waiting = ""
        """Why the change is not in force everywhere; empty if it is."""

    async def begin(self) -> None:
        """Note what was wrong before. A control plane that does not answer is asked nothing more."""
        plane = self._lab.controlplane
        if plane is None:
            return
        if not plane.ready:
            self.waiting = f"the control plane is not ready ({plane.not_ready}); it takes this when it is"
            return
        try:
            await adminclient.get(plane.admin, "/healthz/ready", _ALIVE_SECONDS)
            self._issues = await self.issues(plane)
            self._refused = _refusals(await plane.clients())
        except AdminError as error:
            self.waiting = f"the control plane does not answer: {error}"
            return
        self._plane = plane

    async def end(self, objects: set[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Wait for the control plane and its clients; (issues, refusals) that are new, or of these objects."""
        plane = self._plane
        if plane is None:
            return [], []
        try:
            self.waiting = await self._read(plane)
            issues = await self.issues(plane)
            refused = set() if self.waiting else await self._taken(plane)
        except AdminError as error:
            self.waiting = f"the control plane does not answer: {error}"
            return [], []
        new = [issue for issue in issues if issue not in self._issues or issue.get("resource") in objects]
        return new, [
            f"{client} refuses {kind}: {why}" for client, kind, why in sorted(refused - self._refused)
        ]

    async def issues(self, plane: ControlPlane) -> list[dict[str, Any]]:
        """What the control plane has to say of the configuration, with the user's files for the lab's copies."""
        return [self._from_user_file(issue) for issue in await plane.issues()]

    def _from_user_file(self, issue: dict[str, Any]) -> dict[str, Any]:
        path, _, line = str(issue.get("source", "")).rpartition(":")
        for manifest in self._lab.registry.store.objects():
            if path == str(self._lab.registry.store.path(manifest.key)):
                number = manifest.line + int(line) - 1 if line.isdigit() else manifest.line
                return {**issue, "source": f"{manifest.source}:{number}"}
        return issue

    async def settle(self) -> str:
        """Wait until what is configured is in force everywhere; else why it is not."""
        plane = self._lab.controlplane
        if plane is None:
            return ""
        try:
            self.waiting = await self._read(plane)
            if not self.waiting:
                await self._taken(plane)
        except AdminError as error:
            self.waiting = f"the control plane does not answer: {error}"
        return self.waiting

    async def _read(self, plane: ControlPlane) -> str:
        """Wait until the control plane has read the folder; else why it has not."""
        deadline = time.monotonic() + _READ_SECONDS
        while time.monotonic() < deadline:
            if not plane.ready:
                return f"the control plane has stopped ({plane.not_ready})"
            # Asked for anew each time: pods that become ready change the folder meanwhile.
            if await plane.loaded() == self._lab.registry.store.digests() and not self._lab.is_changing:
                return ""
            await asyncio.sleep(_LOOK)
        return f"the control plane has not read it within {_READ_SECONDS:g} s"

    async def _taken(self, plane: ControlPlane) -> set[Refusal]:
        """Wait until all clients have what they are to have, and agents have it in force; what they refuse of it."""
        deadline = time.monotonic() + _TAKE_SECONDS
        while True:
            clients = await plane.clients()
            # An agent is asked after the control plane: what it was sent leads to more that it asks for.
            late = [_name(client) for client in clients if _is_late(client)] or await self._unsettled()
            if not late or time.monotonic() > deadline:
                break
            await asyncio.sleep(_LOOK)
        if late:
            self.waiting = f"not taken within {_TAKE_SECONDS:g} s by {', '.join(sorted(set(late)))}"
        away = [name for name, agent in self._lab.agents.items() if not agent.ready]
        if away and not self.waiting:
            self.waiting = f"no agent is ready on {', '.join(away)}; it takes this when it is"
        return _refusals(await plane.clients())

    async def _unsettled(self) -> list[str]:
        """The agents in which something is still on its way into force, and what."""
        agents = [agent for agent in self._lab.agents.values() if agent.ready]
        reasons = await asyncio.gather(*map(_lacks, agents))
        return [f"{agent.node.name} ({why})" for agent, why in zip(agents, reasons, strict=True) if why]


async def _lacks(agent: Agent) -> str:
    try:
        return await agent.unsettled()
    except AdminError as error:
        return str(error)


def _is_late(client: dict[str, Any]) -> bool:
    """Whether something is being sent to the client, or was and has no answer yet."""
    return bool(client["busy"]) or any(
        state["state"] == "STALE" and not state["nack"] for state in client["types"].values()
    )


def _refusals(clients: list[dict[str, Any]]) -> set[Refusal]:
    return {
        (_name(client), type_url.rpartition(".")[2], state["nack"])
        for client in clients
        for type_url, state in client["types"].items()
        if state["nack"]
    }


def _name(client: dict[str, Any]) -> str:
    return f"{client['namespace']}/{client['pod']}" if client["pod"] else str(client["node"])
