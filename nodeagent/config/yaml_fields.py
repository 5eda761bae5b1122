"""Strict reading of YAML: every value knows its file, line and field path, for errors to name them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import yaml

from nodeagent.errors import ConfigError, ResourceError

# RFC 1123 label: what Kubernetes asks of the names of nodes, namespaces, services and containers.
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TYPE_NAMES: Final = {
    "tag:yaml.org,2002:str": "a string",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:map": "a mapping",
    "tag:yaml.org,2002:seq": "a list",
}


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML 1.2 section 3.2.1.1 wants keys unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """Build a dict, or raise ConstructorError at the second of two equal keys."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; a ConfigError says what is wrong with the file otherwise."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def yaml_error(path: Path, error: yaml.YAMLError) -> ConfigError:
    """Return a ConfigError that names the file and line of a YAML error."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    return ConfigError(f"{place}: not valid YAML: {problem}")


def suggestion(word: str, known: Iterator[str] | set[str] | list[str]) -> str:
    """Return `; did you mean X?` for the nearest of `known`, or the list of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a YAML document with its place: the file, and the path such as `pods[2].labels`."""

    file: Path
    path: str
    node: yaml.Node

    @classmethod
    def document(cls, path: Path) -> Self:
        """Read a file that holds exactly one YAML document."""
        loader = UniqueKeyLoader(read_text(path))
        try:
            node = loader.get_single_node()
            if node is not None:
                loader.construct_document(node)  # refuses doubled keys and unknown tags, at any depth
        except yaml.YAMLError as error:
            raise yaml_error(path, error) from None
        finally:
            loader.dispose()
        if node is None:
            raise ConfigError(f"{path}: the file is empty")
        return cls(path, "", node)

    def error(self, message: str) -> ResourceError:
        """Return an error at this place."""
        return ResourceError(message, source=f"{self.file}:{self.node.start_mark.line + 1}", path=self.path)

    def is_mapping(self) -> bool:
        """Tell whether the value is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    def mapping(self, known: set[str] | None = None) -> dict[str, Field]:
        """Return the members of a mapping; a key that is not in `known` (when given) is an error."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self._type_error("a mapping")
        members: dict[str, Field] = {}
        for key_node, value_node in self.node.value:
            key = key_node.value
            place = Field(self.file, f"{self.path}.{key}" if self.path else str(key), key_node)
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
                raise place.error("a key must be a plain string")
            if known is not None and key not in known:
                raise place.error(f"unknown field{suggestion(key, known)}")
            members[key] = Field(self.file, place.path, value_node)
        return members

    def items(self) -> list[Field]:
        """Return the items of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self._type_error("a list")
        return [Field(self.file, f"{self.path}[{i}]", node) for i, node in enumerate(self.node.value)]

    def string(self) -> str:
        """Return a string; numbers and booleans must be quoted, as Kubernetes wants it."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != "tag:yaml.org,2002:str":
            hint = f' (quote it: "{self.node.value}")' if isinstance(self.node, yaml.ScalarNode) else ""
            raise self._type_error("a string", hint)
        return str(self.node.value)

    def boolean(self) -> bool:
        """Return true or false."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != "tag:yaml.org,2002:bool":
            raise self._type_error("true or false")
        return self.node.value.lower() in ("true", "yes", "on")

    def port(self) -> int:
        """Return a port number, 1 to 65535."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != "tag:yaml.org,2002:int":
            raise self._type_error("a port number")
        try:
            number = int(self.node.value)
        except ValueError:
            raise self._type_error("a decimal port number") from None
        if not 1 <= number <= 65535:
            raise self.error(f"{number} is not a port number (1 to 65535)")
        return number

    def seconds(self, least: int, most: int) -> int:
        """Return a number of seconds from `least` to `most`."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != "tag:yaml.org,2002:int":
            raise self._type_error("a whole number of seconds")
        try:
            number = int(self.node.value)
        except ValueError:
            raise self._type_error("a decimal number of seconds") from None
        if not least <= number <= most:
            raise self.error(f"{number} is not {least} to {most} seconds")
        return number

    def choice(self, *choices: str) -> str:
        """Return one of `choices`."""
        value = self.string()
        if value not in choices:
            raise self.error(f"{value!r} is not one of {', '.join(choices)}")
        return value

    def dns_label(self) -> str:
        """Return a name that is an RFC 1123 label."""
        value = self.string()
        if not is_dns_label(value):
            raise self.error(
                f"{value!r} is not a valid name: at most 63 lower case letters, digits and '-', "
                "beginning and ending with a letter or digit"
            )
        return value

    def string_map(self) -> dict[str, str]:
        """Return a mapping of strings to strings."""
        return {key: member.string() for key, member in self.mapping().items()}

    def _type_error(self, wanted: str, hint: str = "") -> ResourceError:
        found = _TYPE_NAMES.get(self.node.tag, self.node.tag)
        return self.error(f"must be {wanted}, is {found}{hint}")


def is_dns_label(value: str) -> bool:
    """Tell whether a name is an RFC 1123 label."""
    return _DNS_LABEL.fullmatch(value) is not None
