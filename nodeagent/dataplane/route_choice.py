"""Asking the engine's router which way a request would take, with no packet (na_engine_explain_route)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError

_NAME_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class RouteQuestion:
    """A request as it would stand on the wire."""

    method: str
    authority: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """The route by its name, and its cluster (a Cluster.name; of several the first). No cluster: it answers itself."""

    route: str
    cluster: str


def explain_route(engine: Any, table: str, question: RouteQuestion) -> RouteChoice | None:
    """The choice; None if no route of the table (a RouteTable.name) takes the request. EngineError if no such request
    can be."""
    packed = b"".join(c_string(part) + b"\0" for pair in question.headers for part in pair)
    route, cluster = ffi.new("char[]", _NAME_BYTES), ffi.new("char[]", _NAME_BYTES)
    code = lib.na_engine_explain_route(
        engine,
        c_string(table),
        c_string(question.method),
        c_string(question.authority),
        c_string(question.path),
        ffi.from_buffer("char[]", packed),
        len(packed),
        route,
        _NAME_BYTES,
        cluster,
        _NAME_BYTES,
    )
    if code == -errno.ENOENT:
        return None
    if code < 0:
        raise EngineError(f"route table {table} cannot be asked: {os.strerror(-code)}")
    return RouteChoice(*(ffi.string(text).decode(errors="replace") for text in (route, cluster)))
