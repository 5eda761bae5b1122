"""Rows as JSON: encoding, and filtering by query parameters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.admin.state import (
    CertificateRow,
    ClusterRow,
    ConnectionRow,
    EndpointRow,
    ListenerRow,
    PolicyRow,
    RouteRow,
    Row,
    ServiceRow,
    WorkloadRow,
)
from nodeagent.errors import QueryError

MAX_LIMIT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Resource:
    """A list of the admin API: its path, its rows, and the fields that parameter `name` is looked for in."""

    path: str
    row: type[Row]
    name_fields: tuple[str, ...]


RESOURCES: Final = {
    resource.path: resource
    for resource in (
        Resource("workloads", WorkloadRow, ("name", "uid", "addresses", "workload_name")),
        Resource("services", ServiceRow, ("name", "hostname", "addresses")),
        Resource("routes", RouteRow, ("name", "virtual_host", "domains", "route")),
        Resource("clusters", ClusterRow, ("name", "fqdn")),
        Resource("endpoints", EndpointRow, ("cluster", "workload", "address")),
        Resource("listeners", ListenerRow, ("name", "address", "port")),
        Resource("policies", PolicyRow, ("name",)),
        Resource("connections", ConnectionRow, ("name", "id")),
        Resource("certificates", CertificateRow, ("identity", "serial")),
    )
}


_field_names: Final[dict[type[Any], tuple[str, ...]]] = {}


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Return the field names of a dataclass, in order."""
    if kind not in _field_names:
        _field_names[kind] = tuple(field.name for field in dataclasses.fields(kind))
    return _field_names[kind]


def as_json(value: Any) -> Any:
    """Return a value made of dataclasses, tuples and mappings as JSON's types."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if dataclasses.is_dataclass(value):
        return {name: as_json(getattr(value, name)) for name in field_names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value]


def encode(value: Any) -> bytes:
    """Return JSON in one line, without the newline."""
    return json.dumps(as_json(value), ensure_ascii=False).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a query asks of the rows of a resource. All conditions must hold; values are compared as text."""

    resource: Resource
    conditions: tuple[tuple[tuple[str, ...], str], ...]  # (fields of which one must have it, value)
    limit: int

    @classmethod
    def parse(cls, resource: Resource, query: Iterable[tuple[str, str]]) -> Filter:
        """Read the parameters: `limit`, `name`, or any field of the row; QueryError for others."""
        known = field_names(resource.row)
        conditions: list[tuple[tuple[str, ...], str]] = []
        limit = MAX_LIMIT
        for name, value in query:
            if name == "limit":
                limit = _limit(value)
            elif name == "name":
                conditions.append((resource.name_fields, value))
            elif name in known:
                conditions.append(((name,), value))
            else:
                raise QueryError(f"no parameter {name!r} here; there are: limit, name, {', '.join(known)}")
        return cls(resource, tuple(conditions), limit)

    def apply(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows that are wanted."""
        left = self.limit
        for row in rows:
            if left <= 0:
                return
            if all(_has(row, fields, value) for fields, value in self.conditions):
                left -= 1
                yield row


def _limit(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) <= MAX_LIMIT):
        raise QueryError(f"limit={value}: not a whole number from 1 to {MAX_LIMIT}")
    return int(value)


def _has(row: Row, fields: tuple[str, ...], value: str) -> bool:
    return any(_equals(getattr(row, name), value) for name in fields)


def _equals(field: Any, value: str) -> bool:
    if isinstance(field, tuple):
        return any(_equals(item, value) for item in field)
    if isinstance(field, bool):
        return str(field).lower() == value.lower()
    return str(field) == value
