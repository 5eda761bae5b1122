"""A control plane in the test's own process, over a unix socket, with files that the test writes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from harness.control_plane import pod, service
from harness.xds_client import DeltaClient, SotwClient, node
from nodeagent.app.controlplane import ControlPlane
from nodeagent.config.controlplane import ControlPlaneConfig

REVIEWS = "reviews.default.svc.cluster.local"
RATINGS = "ratings.default.svc.cluster.local"
CLUSTER = f"outbound|9080||{REVIEWS}"
BASE = (
    service("reviews", "10.96.0.1"),
    service("db", "10.96.0.2", "tcp", 5432),
    pod("web", "10.0.0.1", "web"),
    pod("reviews-1", "10.0.0.2", "reviews"),
)
ROUTE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - {route: [{destination: {host: reviews}}], timeout: %s}
"""


class Plane:
    """A control plane in this process, over a unix socket, with files that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config"
        self.config.mkdir()
        self.put("base.yaml", *BASE)
        self.socket = folder / "xds.sock"
        self.plane = ControlPlane(
            ControlPlaneConfig(
                config=(self.config,), listen=("127.0.0.1:0",), unix=self.socket, admin=folder / "admin.sock"
            )
        )

    def put(self, name: str, *documents: str) -> None:
        scratch = self.config.parent / "scratch"
        scratch.write_text("---\n".join(documents))
        scratch.replace(self.config / name)

    def remove(self, name: str) -> None:
        (self.config / name).unlink()

    @property
    def target(self) -> str:
        return f"unix:{self.socket}"

    def delta(self, **who: Any) -> DeltaClient:
        return DeltaClient(self.target, node(**who))

    def sotw(self, **who: Any) -> SotwClient:
        return SotwClient(self.target, node(**who))

    def client_state(self, type_url: str) -> dict[str, Any]:
        (client,) = self.plane.hub.clients()
        state: dict[str, Any] = client["types"][type_url]
        return state


async def until(condition: Any, what: str, timeout: float = 5) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what
