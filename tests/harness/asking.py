"""A mesh whose pods make requests and connections on demand: one process in each pod asks as long as the mesh is up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.mesh import ROOT, Mesh
from harness.policy_cases import Ask

ASKER = ROOT / "tests" / "harness" / "asker.py"


class AskingMesh(Mesh):
    """A lab; `asked` tells what becomes of requests and connections."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self._askers: dict[str, subprocess.Popen[str]] = {}

    def asked(self, asks: Iterable[Ask], *headers: str) -> list[int | str]:
        """What becomes of each, in order."""
        asks = tuple(asks)
        verdicts: dict[int, int | str] = {}
        for client in dict.fromkeys(ask.client for ask in asks):
            own = [index for index, ask in enumerate(asks) if ask.client == client]
            items = json.dumps([asks[index].as_item(headers) for index in own])
            verdicts.update(zip(own, json.loads(self._tell(client, items)), strict=True))
        return [verdicts[index] for index in range(len(asks))]

    def down(self) -> None:
        """End the processes that ask, and take the lab down."""
        for asker in self._askers.values():
            asker.communicate(timeout=10)
        super().down()

    def _tell(self, client: str, line: str) -> str:
        if client not in self._askers:
            self._askers[client] = self.popen(client, "python3", str(ASKER))
        asker = self._askers[client]
        assert asker.stdin is not None
        assert asker.stdout is not None
        asker.stdin.write(f"{line}\n")
        asker.stdin.flush()
        answer = asker.stdout.readline()
        assert answer, asker.communicate(timeout=10)[1]
        return answer
