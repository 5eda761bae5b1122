"""Envoy's matchers on paths, headers and query parameters."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.snapshot.matches import MatchFlags, MatchKind, NamedMatch, PathMatch

_STRING_KINDS: Final = {
    "exact": MatchKind.EXACT,
    "prefix": MatchKind.PREFIX,
    "suffix": MatchKind.SUFFIX,
    "contains": MatchKind.CONTAINS,
}
# HeaderMatcher's older one-by-one fields (deprecated in Envoy, still written by some control planes).
_HEADER_KINDS: Final = {
    "exact_match": MatchKind.EXACT,
    "prefix_match": MatchKind.PREFIX,
    "suffix_match": MatchKind.SUFFIX,
    "contains_match": MatchKind.CONTAINS,
}
_GRPC: Final = NamedMatch("content-type", MatchKind.PREFIX, "application/grpc")


class Unmatchable(Exception):
    """A route asks for something that cannot be told here, so it must not match at all."""


def compile_path(match: Any) -> PathMatch | None:
    """RouteMatch's path_specifier; None: any path."""
    kind = match.WhichOneof("path_specifier")
    # Only an explicit false ignores case; a regular expression never does (route_components.proto).
    ignore = match.HasField("case_sensitive") and not match.case_sensitive.value
    flags = MatchFlags.IGNORE_CASE if ignore else MatchFlags.NONE
    if kind is None:
        raise ValueError("match has no path specifier")
    if kind == "prefix":
        return PathMatch(MatchKind.PREFIX, match.prefix, flags) if match.prefix not in ("", "/") else None
    if kind == "path":
        return PathMatch(MatchKind.EXACT, match.path, flags)
    if kind == "path_separated_prefix":
        return PathMatch(MatchKind.PATH_PREFIX, match.path_separated_prefix, flags)
    if kind == "safe_regex":
        return PathMatch(MatchKind.REGEX, match.safe_regex.regex)
    raise Unmatchable(f"match.{kind}")


def compile_headers(match: Any) -> tuple[NamedMatch, ...]:
    """RouteMatch's headers, and its gRPC condition as the header that it is about."""
    headers = [compile_header(header) for header in match.headers]
    if match.HasField("grpc"):
        headers.append(_GRPC)
    return tuple(headers)


def compile_header(header: Any) -> NamedMatch:
    """A HeaderMatcher; Unmatchable for what cannot be told here."""
    flags = MatchFlags.NONE
    if header.invert_match:
        flags |= MatchFlags.INVERT
    if header.treat_missing_header_as_empty:
        flags |= MatchFlags.MISSING_AS_EMPTY
    name = header.name.lower()
    specifier = header.WhichOneof("header_match_specifier")
    if specifier == "string_match":
        return string_match(name, header.string_match, flags, f"header {name}")
    if specifier == "present_match" or specifier is None:
        present = specifier is None or header.present_match
        return NamedMatch(name, MatchKind.PRESENT, "", flags if present else flags ^ MatchFlags.INVERT)
    if specifier == "safe_regex_match":
        return NamedMatch(name, MatchKind.REGEX, header.safe_regex_match.regex, flags)
    if specifier in _HEADER_KINDS:
        return NamedMatch(name, _HEADER_KINDS[specifier], getattr(header, specifier), flags)
    raise Unmatchable(f"match.headers.{specifier} of {name}")


def compile_query(match: Any) -> tuple[NamedMatch, ...]:
    """RouteMatch's query_parameters."""
    return tuple(_compile_parameter(parameter) for parameter in match.query_parameters)


def _compile_parameter(parameter: Any) -> NamedMatch:
    specifier = parameter.WhichOneof("query_parameter_match_specifier")
    if specifier == "string_match":
        return string_match(
            parameter.name, parameter.string_match, MatchFlags.NONE, f"query parameter {parameter.name}"
        )
    inverted = specifier == "present_match" and not parameter.present_match
    return NamedMatch(
        parameter.name, MatchKind.PRESENT, "", MatchFlags.INVERT if inverted else MatchFlags.NONE
    )


def string_match(name: str, string: Any, flags: MatchFlags, where: str) -> NamedMatch:
    """A StringMatcher on what `name` stands for; Unmatchable, saying `where`, for what cannot be told here."""
    kind = string.WhichOneof("match_pattern")
    if string.ignore_case and kind != "safe_regex":
        flags |= MatchFlags.IGNORE_CASE
    if kind == "safe_regex":
        return NamedMatch(name, MatchKind.REGEX, string.safe_regex.regex, flags)
    if kind in _STRING_KINDS:
        return NamedMatch(name, _STRING_KINDS[kind], getattr(string, kind), flags)
    raise Unmatchable(f"match on {where}: {kind or 'empty string matcher'}")
