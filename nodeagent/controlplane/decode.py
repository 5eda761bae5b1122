"""Strict reading of objects: every field is taken, refused by name, or warned of; nothing is dropped in silence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, TypeVar

import re2

from nodeagent.controlplane.report import Issue, Severity

T = TypeVar("T")

_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_DURATION: Final = timedelta(days=365)
_JSON_TYPES: Final = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}


class Problems:
    """Collects what is wrong with one object while it is read."""

    def __init__(self, source: str, resource: str) -> None:
        self.source = source
        self.resource = resource
        self.issues: list[Issue] = []
        self.contained: list[Issue] = []
        """Findings about parts that are left out by themselves: the object is taken all the same."""

    def contain(self, part: Problems) -> None:
        """Take over what is wrong with a part."""
        self.contained += part.issues

    def add(self, severity: Severity, code: str, path: str, message: str) -> None:
        """Record a finding at a field."""
        self.issues.append(Issue(severity, code, message, self.source, self.resource, path))

    def error(self, path: str, message: str, code: str = "invalid-value") -> None:
        """Record an error: the object is not taken."""
        self.add(Severity.ERROR, code, path, message)

    def unsupported(self, path: str) -> None:
        """Warn of a field of the API that has no effect yet."""
        self.add(Severity.WARNING, "not-supported-yet", path, "not supported yet; it has no effect")

    @property
    def failed(self) -> bool:
        """Whether there is an error among them."""
        return any(issue.severity is Severity.ERROR for issue in self.issues)


def type_name(value: object) -> str:
    """The JSON type of a decoded value, for messages."""
    if value is None:
        return "null"
    return next((name for kind, name in _JSON_TYPES.items() if type(value) is kind), "an object")


def parse_duration(text: str) -> timedelta | None:
    """A Go duration (`1h30m`, `2.5s`, `100ms`, `0`); None if it is not one."""
    if text in ("0", "+0"):
        return timedelta()
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return timedelta(seconds=sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts))


def regex_error(pattern: str) -> str | None:
    """Why RE2 refuses a pattern; None if it takes it."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else "invalid"
        return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    return None


def group_count(pattern: str) -> int:
    """Number of capturing groups of a valid pattern; 0 for an invalid one."""
    return 0 if regex_error(pattern) is not None else int(re2.compile(pattern).groups)


class Fields:
    """A reader over one JSON object; used in a `with`, at whose end unread fields are reported as unknown.

    A wrong value is recorded in `problems` and the field's default is returned, so that one pass finds all.
    """

    def __init__(self, data: Mapping[str, Any], path: str, problems: Problems) -> None:
        self.data = data
        self.path = path
        self.problems = problems
        self._known: set[str] = set()

    def __enter__(self) -> Fields:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._report_unknown()

    def _report_unknown(self) -> None:
        for name in self.data:
            if name in self._known:
                continue
            close = difflib.get_close_matches(str(name), self._known, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.problems.error(self.at(str(name)), f"unknown field{hint}", "unknown-field")

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, message: str, code: str = "invalid-value") -> None:
        """Record an error at a field."""
        self.problems.error(self.at(name), message, code)

    def has(self, name: str) -> bool:
        """Whether the field is set to something other than null."""
        return self.data.get(name) is not None

    def ignore(self, *names: str) -> None:
        """Fields that are known and rightly have no effect here."""
        self._known.update(names)

    def ignore_rest(self) -> None:
        """Take every other field as known: the object was validated elsewhere."""
        self._known.update(map(str, self.data))

    def unsupported(self, *names: str) -> None:
        """Fields of the API that have no effect yet: each one that is set is warned of."""
        self._known.update(names)
        for name in names:
            if self.has(name):
                self.problems.unsupported(self.at(name))

    def _take(self, name: str, kinds: tuple[type, ...], expected: str, required: bool) -> Any:
        self._known.add(name)
        value = self.data.get(name)
        if value is None:
            if required:
                self.error(name, "required, but missing", "missing-field")
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.error(name, f"expected {expected}, got {type_name(value)}", "wrong-type")
            return None
        if isinstance(value, str) and "\0" in value:
            self.error(name, "cannot hold a NUL character")
            return None
        return value

    def string(self, name: str, default: str = "", *, required: bool = False) -> str:
        """A string; when required it must not be empty either."""
        value = self._take(name, (str,), "a string", required)
        if value == "" and required:
            self.error(name, "required, but empty", "missing-field")
        return default if value is None else str(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._take(name, (bool,), "true or false", False)
        return default if value is None else bool(value)

    def integer(self, name: str, *, low: int, high: int, required: bool = False) -> int | None:
        """A whole number within bounds; None if unset or wrong."""
        value = self._take(name, (int,), "a whole number", required)
        if value is None:
            return None
        if not low <= value <= high:
            self.error(name, f"must be between {low} and {high}, got {value}", "out-of-range")
            return None
        return int(value)

    def port(self, name: str, *, required: bool = False) -> int | None:
        """A port number."""
        return self.integer(name, low=1, high=65535, required=required)

    def choice(self, name: str, choices: Iterable[str], default: str = "") -> str:
        """One of several words."""
        value = self._take(name, (str,), "a string", False)
        allowed = list(choices)
        if value is None:
            return default
        if value not in allowed:
            self.error(name, f"must be one of {', '.join(allowed)}, got {value!r}")
            return default
        return str(value)

    def duration(self, name: str, *, at_least: timedelta = timedelta()) -> timedelta | None:
        """A duration; None if unset or wrong."""
        value = self._take(name, (str,), "a duration such as 5s", False)
        if value is None:
            return None
        parsed = parse_duration(value)
        if parsed is None:
            self.error(name, f"{value!r} is not a duration; write it as 5s, 100ms or 1h30m")
            return None
        if not at_least <= parsed <= _MAX_DURATION:
            self.error(
                name,
                f"must be between {at_least.total_seconds():g}s and 365 days, got {value}",
                "out-of-range",
            )
            return None
        return parsed

    def regex(self, name: str) -> str | None:
        """An RE2 pattern; None if unset or wrong."""
        value = self._take(name, (str,), "a string", False)
        if value is None:
            return None
        reason = regex_error(value)
        if reason is not None:
            self.error(name, f"{value!r} is not an RE2 regular expression: {reason}", "invalid-regex")
            return None
        return str(value)

    def message(self, name: str, *, required: bool = False) -> Fields | None:
        """A nested object, to be read in a `with` of its own; None if unset or wrong."""
        value = self._take(name, (dict,), "an object", required)
        return None if value is None else Fields(value, self.at(name), self.problems)

    def messages(self, name: str, *, required: bool = False) -> Iterator[Fields]:
        """The objects of a list; elements of another type are reported and left out."""
        for index, value in enumerate(self._list(name, required)):
            path = f"{self.at(name)}[{index}]"
            if isinstance(value, dict):
                yield Fields(value, path, self.problems)
            else:
                self.problems.error(path, f"expected an object, got {type_name(value)}", "wrong-type")

    def strings(self, name: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of strings; elements of another type are reported and left out."""
        found = []
        for index, value in enumerate(self._list(name, required)):
            if isinstance(value, str):
                found.append(value)
            else:
                path = f"{self.at(name)}[{index}]"
                self.problems.error(path, f"expected a string, got {type_name(value)}", "wrong-type")
        return tuple(found)

    def _list(self, name: str, required: bool) -> Sequence[Any]:
        value = self._take(name, (list,), "a list", required)
        if value is not None and not value and required:
            self.error(name, "required, but empty", "missing-field")
        return value or ()

    def string_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        return {key: value for key, value in self._map(name) if self._is_string(name, key, value)}

    def message_map(self, name: str) -> Iterator[tuple[str, Fields]]:
        """An object whose values are objects."""
        for key, value in self._map(name):
            path = f"{self.at(name)}[{key}]"
            if isinstance(value, dict):
                yield key, Fields(value, path, self.problems)
            else:
                self.problems.error(path, f"expected an object, got {type_name(value)}", "wrong-type")

    def _map(self, name: str) -> Iterator[tuple[str, Any]]:
        value = self._take(name, (dict,), "an object", False)
        for key, item in (value or {}).items():
            if "\0" in str(key):
                self.error(name, "a key cannot hold a NUL character")
            yield str(key), item

    def _is_string(self, name: str, key: str, value: object) -> bool:
        if isinstance(value, str):
            return True
        message = f"expected a string, got {type_name(value)}; put it in quotes"
        self.problems.error(f"{self.at(name)}[{key}]", message, "wrong-type")
        return False

    def one_of(self, readers: Mapping[str, Callable[[str], T | None]], *, required: bool = True) -> T | None:
        """Exactly one (at most one, if not required) of several fields; the reader of the one set gets its name."""
        self._known.update(readers)
        present = [name for name in readers if self.has(name)]
        if len(present) > 1:
            self.problems.error(self.path, f"only one of {', '.join(present)} may be set")
            return None
        if not present:
            if required:
                self.problems.error(self.path, f"one of {', '.join(readers)} must be set", "missing-field")
            return None
        return readers[present[0]](present[0])
