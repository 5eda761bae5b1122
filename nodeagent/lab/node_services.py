"""Services of a lab's node: programs in the node's own network, which its agent knows from a file by their cgroups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nodeagent.config.lab import PodSpec
from nodeagent.lab import adminclient


@dataclass(slots=True)
class ServiceEnrolment:
    """A service that the file names, and what the agent says of it."""

    spec: PodSpec
    cgroup: str
    enrolled: bool = False
    error: str = ""

    @property
    def captured(self) -> bool:
        """Whether it is in the mesh."""
        return self.enrolled

    def row(self) -> dict[str, Any]:
        """As the agent's file has it."""
        return {
            "name": self.spec.name,
            "namespace": self.spec.namespace,
            "serviceAccount": self.spec.service_account,
            "cgroup": self.cgroup,
            "ports": [port.container_port for port in self.spec.ports if port.protocol == "TCP"],
        }


class NodeServices:
    """The file of a node's agent. `changed` is called when the agent says something else than before."""

    def __init__(self, path: Path, admin: Path, changed: Callable[[], None]) -> None:
        self.path = path
        self._admin = admin
        self._changed = changed
        self._known: dict[str, ServiceEnrolment] = {}

    def enrolment(self, key: str) -> ServiceEnrolment | None:
        """The service `namespace/name`, if the file names it."""
        return self._known.get(key)

    def add(self, spec: PodSpec, cgroup: str) -> None:
        """Have a service taken on."""
        self._known[spec.key] = ServiceEnrolment(spec, cgroup)
        self.write()

    def remove(self, key: str) -> None:
        """Have a service let go."""
        del self._known[key]
        self.write()

    def write(self) -> None:
        """Put the file in place, whole."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump({"workloads": [known.row() for known in self._known.values()]}))
        fresh.replace(self.path)

    async def check(self) -> None:
        """Ask the agent; AdminError if it does not answer."""
        if not self._known:
            return
        enrolment = (await adminclient.get_json(self._admin, "/status"))["enrolment"]
        rows = {f"{row['namespace']}/{row['name']}": row for row in enrolment["workloads"]}
        for key, known in self._known.items():
            row = rows.get(key, {"state": "", "error": enrolment["file_error"]})
            before = known.enrolled, known.error
            known.enrolled, known.error = row["state"] == "enrolled", row["error"]
            if before != (known.enrolled, known.error):
                self._changed()
