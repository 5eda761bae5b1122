"""Matches on texts of a request, as the engine's router and its guards make them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class MatchKind(IntEnum):
    """enum na_match_kind. PRESENT, SUFFIX and CONTAINS are for headers and query parameters, PATH_PREFIX
    for paths."""

    EXACT = 0
    PREFIX = 1
    REGEX = 2
    PRESENT = 3
    SUFFIX = 4
    CONTAINS = 5
    PATH_PREFIX = 6


class MatchFlags(IntFlag):
    """NA_MATCH_*."""

    NONE = 0
    IGNORE_CASE = 1
    INVERT = 2
    MISSING_AS_EMPTY = 4


@dataclass(frozen=True, slots=True)
class PathMatch:
    """na_route_path: a match on the path without its query."""

    kind: MatchKind
    value: str
    flags: MatchFlags = MatchFlags.NONE


@dataclass(frozen=True, slots=True)
class NamedMatch:
    """A match on a header, pseudo-header or query parameter; `value` is empty for PRESENT."""

    name: str
    kind: MatchKind
    value: str = ""
    flags: MatchFlags = MatchFlags.NONE
