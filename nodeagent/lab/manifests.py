"""Kubernetes and Istio objects in YAML files, each with its place, and their text as the user wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import yaml

from nodeagent.config.yaml_fields import UniqueKeyLoader, read_text, yaml_error
from nodeagent.errors import ConfigError, ResourceError

SUFFIXES: Final = (".yaml", ".yml", ".json")
# Kubernetes kinds without a namespace that a lab may be given.
_CLUSTER_SCOPED: Final = {("", "Namespace"), ("", "Node"), ("gateway.networking.k8s.io", "GatewayClass")}
# RFC 1123 subdomain: what Kubernetes asks of an object's name.
_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """What tells objects apart: API group (empty for v1), kind, namespace (empty: none) and name."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.place}"

    @property
    def place(self) -> str:
        """`namespace/name`, or the name alone."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def file_name(self) -> str:
        """The name of the object's own file in the lab's config folder."""
        kind = f"{self.kind}.{self.group}" if self.group else self.kind
        return f"{kind.lower()}_{self.namespace or '-'}_{self.name}.yaml"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object: its key, its fields, the text it came from, and where that was."""

    key: ObjectKey
    body: dict[str, Any]
    text: str
    source: Path
    line: int

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.source}:{self.line}"

    def pack(self) -> dict[str, Any]:
        """Return what a request to the supervisor carries of it."""
        return {"text": self.text, "source": str(self.source), "line": self.line}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> Self:
        """Undo `pack`."""
        source = Path(packed["source"])
        (parsed,) = parse_manifests(packed["text"], source)
        return cls(parsed.key, parsed.body, parsed.text, source, packed["line"])


def read_manifests(paths: Iterable[Path]) -> list[Manifest]:
    """Read all objects of files and folders (recursively); the first error ends it and names its place."""
    found: dict[ObjectKey, Manifest] = {}
    for path in paths:
        for file in _files(path):
            for manifest in parse_manifests(read_text(file), file):
                if manifest.key in found:
                    raise ResourceError(
                        f"is defined a second time; the first is at {found[manifest.key].place}",
                        source=manifest.place,
                        resource=str(manifest.key),
                    )
                found[manifest.key] = manifest
    return list(found.values())


def parse_manifests(text: str, source: Path) -> Iterator[Manifest]:
    """Parse the objects of a (multi-document) YAML text; `kind: List` is opened."""
    loader = UniqueKeyLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None, "check_node() has seen one"
            body = loader.construct_document(node)
            line = node.start_mark.line + 1
            if body is None:
                continue
            yield from _objects(body, text[node.start_mark.index : node.end_mark.index], source, line)
    except yaml.YAMLError as error:
        raise yaml_error(source, error) from None
    finally:
        loader.dispose()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise ConfigError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        return files
    return [path]


def _objects(body: Any, text: str, source: Path, line: int) -> Iterator[Manifest]:
    place = f"{source}:{line}"
    if not isinstance(body, dict):
        raise ResourceError("must be a Kubernetes object (a mapping with apiVersion and kind)", source=place)
    kind = _string(body, "kind", place)
    if kind == "List":
        for item in body.get("items") or []:
            yield from _objects(item, yaml.safe_dump(item, sort_keys=False), source, line)
        return
    group, slash, _ = _string(body, "apiVersion", place).rpartition("/")
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        raise ResourceError("must be a mapping with a name", source=place, resource=kind, path="metadata")
    name = _string(metadata, "name", place, kind, "metadata.")
    if not _OBJECT_NAME.fullmatch(name):
        raise ResourceError(
            f"{name!r} is not a valid object name: lower case letters, digits, '-' and '.'",
            source=place, resource=kind, path="metadata.name",
        )  # fmt: skip
    namespace = ""
    if (group if slash else "", kind) not in _CLUSTER_SCOPED:
        namespace = (
            _string(metadata, "namespace", place, kind, "metadata.") if "namespace" in metadata else "default"
        )
        if not _OBJECT_NAME.fullmatch(namespace):
            raise ResourceError(
                f"{namespace!r} is not a valid namespace",
                source=place,
                resource=kind,
                path="metadata.namespace",
            )
    yield Manifest(ObjectKey(group if slash else "", kind, namespace, name), body, text, source, line)


def _string(fields: dict[Any, Any], name: str, place: str, resource: str = "", prefix: str = "") -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        problem = "missing" if value in (None, "") else f"must be a string, is {value!r}"
        raise ResourceError(problem, source=place, resource=resource, path=prefix + name)
    return value
