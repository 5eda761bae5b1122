"""HTTPMatchRequest to Envoy's RouteMatch."""

from __future__ import annotations

from typing import Final, TypeAlias

from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2

from nodeagent.controlplane.istio.values import HttpMatch, MatchKind, StringMatch

RouteMatch: TypeAlias = route_components_pb2.RouteMatch
HeaderMatcher: TypeAlias = route_components_pb2.HeaderMatcher
_ROOT: Final = "/"


def route_match(match: HttpMatch | None) -> RouteMatch:
    """All conditions of a match; None matches everything."""
    found = RouteMatch()
    _set_path(found, match.uri if match else None)
    if match is None:
        return found
    if match.ignore_uri_case and match.uri is not None and match.uri.kind is not MatchKind.REGEX:
        found.case_sensitive.value = False
    pseudo = ((":method", match.method), (":authority", match.authority), (":scheme", match.scheme))
    found.headers.extend(_header(name, condition) for name, condition in match.headers)
    found.headers.extend(_header(name, condition) for name, condition in pseudo if condition is not None)
    found.headers.extend(_without(name, condition) for name, condition in match.without_headers)
    for name, condition in match.query:
        parameter = found.query_parameters.add(name=name)
        if condition.kind is MatchKind.PRESENT:
            parameter.present_match = True
        else:
            parameter.string_match.CopyFrom(_string(condition))
    return found


def _set_path(found: RouteMatch, uri: StringMatch | None) -> None:
    if uri is None:
        found.prefix = _ROOT
    elif uri.kind is MatchKind.EXACT:
        found.path = uri.value
    elif uri.kind is MatchKind.PREFIX:
        found.prefix = uri.value
    else:
        found.safe_regex.regex = uri.value


def _string(condition: StringMatch) -> string_pb2.StringMatcher:
    match condition.kind:
        case MatchKind.PREFIX:
            return string_pb2.StringMatcher(prefix=condition.value)
        case MatchKind.REGEX:
            return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=condition.value))
        case _:
            return string_pb2.StringMatcher(exact=condition.value)


def _header(name: str, condition: StringMatch) -> HeaderMatcher:
    if condition.kind is MatchKind.PRESENT:
        return HeaderMatcher(name=name, present_match=True)
    return HeaderMatcher(name=name, string_match=_string(condition))


def _without(name: str, condition: StringMatch) -> HeaderMatcher:
    """The header must not be so; one that is missing counts as empty, unless presence is what is asked."""
    found = _header(name, condition)
    found.invert_match = True
    found.treat_missing_header_as_empty = condition.kind is not MatchKind.PRESENT
    return found
