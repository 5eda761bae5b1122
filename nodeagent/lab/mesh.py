"""The mesh's own processes: one control plane, one agent a node."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nodeagent.config.lab import AgentOptions
from nodeagent.errors import AdminError
from nodeagent.lab import adminclient
from nodeagent.lab.identity import TLS_PORT, LabIdentity
from nodeagent.lab.names import LabNames, netns_path
from nodeagent.lab.node_services import NodeServices
from nodeagent.lab.plan import FABRIC4, NodePlan
from nodeagent.lab.process import Keeper, Launch
from nodeagent.lab.zds import ZdsServer

XDS_PORT: Final = 15010
_NODEAGENT: Final = (sys.executable, "-m", "nodeagent.cli.main")
# Agents drain for five seconds; then they are killed.
STOP_SECONDS: Final = 8.0


class MeshProcess:
    """A control plane or agent: kept running, asked by its admin socket whether it is ready."""

    def __init__(self, launch: Launch, log: Path, admin: Path, changed: Callable[[], None]) -> None:
        self.admin = admin
        self.log = log
        self.ready = False
        self.not_ready = "not started"
        self.keeper = Keeper(lambda: launch, log, changed)

    def start(self) -> None:
        """Start it, or do nothing when it runs."""
        self.keeper.start()

    async def stop(self) -> None:
        """End it and leave it so."""
        await self.keeper.stop(STOP_SECONDS)
        self.ready, self.not_ready = False, "stopped"

    async def check(self) -> bool:
        """Ask whether it is ready; True when that changed."""
        was = self.ready
        if self.keeper.pid is None:
            self.ready, self.not_ready = False, self.keeper.last_exit or self.keeper.state
            return was
        try:
            status, body = await adminclient.get(self.admin, "/healthz/ready")
            self.ready, self.not_ready = status == 200, body.decode(errors="replace").strip()
        except AdminError as error:
            self.ready, self.not_ready = False, str(error)
        return self.ready != was


class ControlPlane(MeshProcess):
    """The lab's `nodeagent controlplane`, in the fabric's namespace."""

    def __init__(
        self, names: LabNames, domain: str, changed: Callable[[], None], identity: LabIdentity | None = None
    ) -> None:
        admin = names.controlplane / "admin.sock"
        names.controlplane.mkdir(parents=True, exist_ok=True)
        argv = (
            *_NODEAGENT, "controlplane",
            "--config", str(names.config),
            "--listen", f"{FABRIC4}:{XDS_PORT}",
            "--unix", str(names.controlplane / "xds.sock"),
            "--admin", str(admin),
            "--domain", domain,
            *(identity.controlplane_options() if identity is not None else ()),
        )  # fmt: skip
        launch = Launch(argv, f"{names.cgroup}/controlplane", netns_path(names.fabric_netns), _environment())
        super().__init__(launch, names.log("controlplane"), admin, changed)

    async def issues(self) -> list[dict[str, Any]]:
        """What the control plane finds in the configuration: severity, message, source, resource, path."""
        answer = await adminclient.get_json(self.admin, "/config_errors")
        return list(answer["issues"])

    async def clients(self) -> list[dict[str, Any]]:
        """Who is connected, and how each of its types stands."""
        return list(await adminclient.get_json(self.admin, "/debug/syncz"))

    async def loaded(self) -> dict[str, str]:
        """SHA-256 by path of the configuration files that are in force."""
        answer = await adminclient.get_json(self.admin, "/config_files")
        return {path: str(file["sha256"]) for path, file in answer["files"].items()}


class Agent(MeshProcess):
    """A node's `nodeagent run` and the ZDS socket that tells it of the node's pods."""

    def __init__(
        self,
        names: LabNames,
        node: NodePlan,
        domain: str,
        changed: Callable[[], None],
        identity: LabIdentity | None,
        options: AgentOptions,
        *,
        services: bool = False,
    ) -> None:
        """With `services` it is told of programs in the node's own network, too."""
        folder = names.node(node.name)
        (folder / "state").mkdir(parents=True, exist_ok=True)
        self.node = node
        self.access_log = folder / "access.log"
        self.zds = ZdsServer(folder / "zds.sock", changed)
        self.services = NodeServices(folder / "workloads.yaml", folder / "admin.sock", changed)
        if services:
            self.services.write()
        argv = (
            *_NODEAGENT, "run",
            "--node", node.name,
            "--xds", f"https://{FABRIC4}:{TLS_PORT}" if identity is not None else f"{FABRIC4}:{XDS_PORT}",
            "--zds", str(folder / "zds.sock"),
            *(("--workloads", str(self.services.path)) if services else ()),
            "--admin", str(folder / "admin.sock"),
            "--state", str(folder / "state"),
            "--domain", domain,
            "--capture", options.capture,
            "--bypass", options.bypass,
            "--udp", options.udp,
            "--bpf-pins", str(names.node_pins(node.name)),
            "--access-log", "text",
            "--access-log-file", str(self.access_log),
            *(identity.agent_options(node.name) if identity is not None else ()),
        )  # fmt: skip
        launch = Launch(argv, names.agent_cgroup(node.name), netns_path(node.netns), _environment())
        super().__init__(launch, names.log(f"agent.{node.name}"), folder / "admin.sock", changed)

    async def unsettled(self) -> str:
        """What of its configuration is not in force yet; empty if all of it is."""
        status, body = await adminclient.get(self.admin, "/healthz/settled")
        return "" if status == 200 else body.decode(errors="replace").strip().removeprefix("not settled: ")

    async def check(self) -> bool:
        """Ask whether it is ready, and what it says of the node's services."""
        changes = await super().check()
        with contextlib.suppress(AdminError):
            await self.services.check()
        return changes


def _environment() -> dict[str, str]:
    binaries = Path(sys.executable).parent
    return {
        "PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
