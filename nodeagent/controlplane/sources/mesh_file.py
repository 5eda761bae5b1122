"""MeshConfig in a file of its own, as istiod's --meshConfig takes it: read as the ConfigMap that would hold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.controlplane.sources.documents import Document, read_yaml

CONFIG_MAP: Final = "istio"
"""Name of the ConfigMap with the MeshConfig; it is in the root namespace (Istio)."""
MESH_KEY: Final = "mesh"


@dataclass(frozen=True, slots=True)
class MeshFile:
    """The file, and the namespace of the ConfigMap that it stands for."""

    path: Path
    root_namespace: str

    def documents(self, text: str) -> list[Document]:
        """The ConfigMap; DocumentError if the text is not YAML. A file that holds the ConfigMap itself may be given,
        too."""
        found = read_yaml(text)
        if any(document.body.get("kind") == "ConfigMap" for document in found):
            return found
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": self.root_namespace},
            "data": {MESH_KEY: text},
        }
        return [Document(body, 1)] if found else []
