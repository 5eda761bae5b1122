from __future__ import annotations

import textwrap
from typing import Any

import pytest

from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch, ObjectKey, RawObject
from nodeagent.controlplane.sources.documents import read_yaml
from nodeagent.controlplane.sources.objects import read_object
from nodeagent.controlplane.world import MeshSettings, World


class Configured:
    """A world that takes YAML, file by file."""

    def __init__(self) -> None:
        self.report = Report()
        self.world = World(MeshSettings(), self.report)
        self._count = 0

    def _seen(self, key: ObjectKey) -> float:
        self._count += 1
        return float(self._count)

    def objects(self, text: str) -> list[RawObject]:
        documents = read_yaml(textwrap.dedent(text))
        return [read_object(document, f"f.yaml:{document.line}", self._seen) for document in documents]

    def put(self, text: str) -> Any:
        """Apply the objects of a text and analyse; returns the change."""
        change = self.world.apply(Batch(changed=tuple(self.objects(text))))
        self.world.analyze()
        return change

    def remove(self, *keys: ObjectKey) -> Any:
        change = self.world.apply(Batch(removed=keys))
        self.world.analyze()
        return change

    def messages(self) -> list[str]:
        """Findings without the file."""
        return [str(issue).removeprefix(f"{issue.source}: ") for issue in self.report]


@pytest.fixture
def configured() -> Configured:
    return Configured()
