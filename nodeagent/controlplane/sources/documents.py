"""YAML and JSON text to objects with their lines, as Kubernetes tools read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"
_MAX_DEPTH: Final = 100
_MAX_NODES: Final = 5_000_000
_MAX_ALIASED: Final = 100_000
"""Values that aliases may add: they are read once, but looked at each time."""
# Sexagesimal numbers and timestamps of YAML 1.1 surprise everyone (10:30 is 630): Kubernetes reads them as strings.
_SEXAGESIMAL: Final = re.compile(r"^[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?$")


class DocumentError(Exception):
    """The text cannot be read; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file and the line where it begins."""

    body: dict[str, Any]
    line: int


class _Loader(_LOADER):  # type: ignore[misc,valid-type]
    """Plain data only; duplicate keys are errors, dates stay strings."""


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[object, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == _MERGE_TAG:
            continue
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str | int | bool | float):
            raise DocumentError(line, "a key must be a string")
        if key in seen:
            raise DocumentError(line, f"key {key!r} is there twice; the first is on line {seen[key]}")
        seen[key] = line
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


def _construct_number(loader: Any, node: yaml.ScalarNode) -> Any:
    if _SEXAGESIMAL.match(node.value):
        return node.value
    kind = node.tag.rpartition(":")[2]
    return loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)


def _construct_text(loader: Any, node: yaml.ScalarNode) -> str:
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _construct_text)


class _Sizes:
    """Counts what a document becomes when aliases are followed, looking at each node once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()
        self.own = 0
        """Values that are written out."""

    def measure(self, node: yaml.Node, depth: int = 0) -> tuple[int, int]:
        """(values in a node, levels below it); DocumentError if it holds itself, or is too deep."""
        key = id(node)
        line = node.start_mark.line + 1
        if key in self._open:
            raise DocumentError(line, "an alias leads back to what it is in")
        size, levels = self._known.get(key, (0, 0))
        if depth + levels > _MAX_DEPTH:
            raise DocumentError(line, f"nested more than {_MAX_DEPTH} deep")
        if size == 0:
            self.own += 1
            self._open.add(key)
            parts = [self.measure(child, depth + 1) for child in _children(node)]
            size, levels = 1 + sum(size for size, _ in parts), max((1 + deep for _, deep in parts), default=0)
            self._known[key] = size, levels
            self._open.remove(key)
        return size, levels


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_size(root: yaml.Node) -> None:
    """Refuse what would explode when aliases are followed, or overflow the stack."""
    sizes = _Sizes()
    size, _ = sizes.measure(root)
    line = root.start_mark.line + 1
    if size - sizes.own > _MAX_ALIASED:
        raise DocumentError(line, f"aliases stand for more than {_MAX_ALIASED} values")
    if size > _MAX_NODES:
        raise DocumentError(line, f"more than {_MAX_NODES} values in one document")


def read_yaml(text: str) -> list[Document]:
    """The objects of a multi-document YAML text; DocumentError with the line if it is broken."""
    loader = _Loader(text)
    found: list[Document] = []
    try:
        while loader.check_node():
            node = loader.get_node()
            _check_size(node)
            line = node.start_mark.line + 1
            found += _objects(loader.construct_document(node), line, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        detail = f"{error.context}: {error.problem}" if error.context else str(error.problem)
        raise DocumentError(mark.line + 1 if mark else 1, f"not valid YAML: {detail}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError(1, f"not valid YAML: {error}") from error
    finally:
        loader.dispose()
    return found


def read_json(text: str) -> list[Document]:
    """The object (or `List` of objects) of a JSON text; DocumentError with the line if it is broken."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DocumentError(1, f"key {twice!r} is there twice")
        return found

    try:
        body = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DocumentError(error.lineno, f"not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise DocumentError(1, "not valid JSON: nested too deep") from error
    _check_text(text, body)
    return list(_objects(body, 1, None))


def _check_text(text: str, body: Any) -> None:
    """Refuse half a character (RFC 8259, section 8.2): it can be escaped, but not be sent on."""
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DocumentError(1, "not valid JSON: half of a surrogate pair") from error


def _objects(body: Any, line: int, node: yaml.Node | None) -> Iterator[Document]:
    """The document itself, or the items of a Kubernetes `List`; nothing for an empty document."""
    if body is None:
        return
    if not isinstance(body, dict):
        raise DocumentError(line, "expected a Kubernetes object with apiVersion, kind and metadata")
    if not str(body.get("kind", "")).endswith("List") or not isinstance(body.get("items"), list):
        yield Document(body, line)
        return
    lines = _item_lines(node)
    for index, item in enumerate(body["items"]):
        at = lines[index] if index < len(lines) else line
        if not isinstance(item, dict):
            raise DocumentError(at, "an item of a List must be an object")
        yield Document(item, at)


def _item_lines(node: yaml.Node | None) -> list[int]:
    if not isinstance(node, yaml.MappingNode):
        return []
    for key, value in node.value:
        if key.value == "items" and isinstance(value, yaml.SequenceNode):
            return [item.start_mark.line + 1 for item in value.value]
    return []
