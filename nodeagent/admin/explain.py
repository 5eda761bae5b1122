"""What `nodeagent explain` asks agents, and what they answer: where a request would go, and whether it may."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import QueryError

MAX_HEADERS: Final = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, or without a method a connection, and whom it is asked of."""

    workload: str  # of the node, namespace/name
    host: str = ""  # a name or an address
    port: int = 0
    method: str | None = None
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    # Of the policy's question only: where the connection comes from, where to, and who is known to be the client.
    source: str = ""
    destination: str = ""
    principal: str = ""

    @classmethod
    def parse(cls, query: Iterable[tuple[str, str]]) -> Asked:
        """Read the parameters of a query; `header` is `name:value` and may be repeated. QueryError for others."""
        fields: dict[str, str] = {}
        headers: list[tuple[str, str]] = []
        for name, value in query:
            if name == "header":
                headers.append(_header(value))
            elif name in _TEXTS or name == "port":
                fields[name] = value
            else:
                raise QueryError(f"no parameter {name!r} here; there are: header, port, {', '.join(_TEXTS)}")
        if "workload" not in fields:
            raise QueryError("workload is missing: namespace/name")
        if len(headers) > MAX_HEADERS:
            raise QueryError(f"{len(headers)} headers, over {MAX_HEADERS}")
        texts = {name: value for name, value in fields.items() if name != "port"}
        return cls(**texts, port=_port(fields.get("port", "")), headers=tuple(headers))


_TEXTS: Final = ("workload", "host", "method", "path", "source", "destination", "principal")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise QueryError(f"header {text!r}: not NAME:VALUE")
    return name.lower(), value.strip()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise QueryError(f"port {text!r}: not a number from 1 to 65535")
    return int(text)


@dataclass(frozen=True, slots=True)
class Line:
    """A step of an explanation, for people."""

    step: str
    text: str


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint that would serve."""

    address: str
    port: int
    healthy: bool
    workload: str = ""  # namespace/name
    node: str = ""
    identities: tuple[str, ...] = ()  # SPIFFE IDs, one of which must answer; none: it is reached in plaintext


@dataclass(frozen=True, slots=True)
class RouteExplanation:
    """Where a request would go."""

    lines: tuple[Line, ...]
    source: str = ""  # an address of the workload, of the family that is connected to
    principal: str = ""  # by which the workload is known to those that it reaches through tunnels
    http: bool = False  # whether it is read as HTTP on the way
    authority: str = ""
    path: str = "/"
    targets: tuple[Target, ...] = ()
    error: str = ""  # why it goes nowhere


@dataclass(frozen=True, slots=True)
class AccessExplanation:
    """Whether a workload's policies let it in."""

    lines: tuple[Line, ...]
    allowed: bool
    status: int = 0  # of the HTTP answer that refuses; a connection is reset
    detail: str = ""
