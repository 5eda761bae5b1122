"""The lab's configuration folder: one file an object, replaced by rename, as the control plane watches it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import yaml

from nodeagent.lab.manifests import Manifest, ObjectKey

Change = Literal["created", "configured", "unchanged"]


class ConfigStore:
    """The objects of a lab by key, in memory and as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects: dict[ObjectKey, Manifest] = {}
        self._written: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def objects(self) -> list[Manifest]:
        """Return all objects."""
        return list(self._objects.values())

    def get(self, key: ObjectKey) -> Manifest | None:
        """Return an object, or None."""
        return self._objects.get(key)

    def put(self, manifest: Manifest, content: dict[str, Any] | None = None) -> Change:
        """Keep an object and write its text, or `content` in its place."""
        known = self._objects.get(manifest.key)
        self._objects[manifest.key] = manifest
        if known is not None and known.body == manifest.body:
            return "unchanged"
        self.write(manifest.key, content or manifest.text)
        return "created" if known is None else "configured"

    def remove(self, key: ObjectKey) -> bool:
        """Forget an object and remove its file; False when there was none."""
        if self._objects.pop(key, None) is None:
            return False
        self.erase(key)
        return True

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 (hexadecimal) of each file that the folder now holds, by path."""
        return {str(self._folder / name): digest for name, digest in self._written.items()}

    def path(self, key: ObjectKey) -> Path:
        """Return the file of an object."""
        return self._folder / key.file_name

    def write(self, key: ObjectKey, content: str | dict[str, Any]) -> bool:
        """Write an object's file if it differs from what was written last; readers see old or new, whole."""
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        if not text.endswith("\n"):
            text += "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self._written.get(key.file_name) == digest:
            return False
        fresh = self._folder / f".{key.file_name}.new"
        fresh.write_text(text)
        fresh.replace(self._folder / key.file_name)
        self._written[key.file_name] = digest
        return True

    def erase(self, key: ObjectKey) -> None:
        """Remove an object's file."""
        self._written.pop(key.file_name, None)
        (self._folder / key.file_name).unlink(missing_ok=True)
