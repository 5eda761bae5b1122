"""Readers of what several Istio resources have in common: hosts, string matches, headers."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from nodeagent.controlplane.decode import Fields, group_count
from nodeagent.controlplane.istio.values import HeaderOperations, Headers, MatchKind, StringMatch
from nodeagent.controlplane.kubernetes.metadata import check_export_to
from nodeagent.controlplane.report import Severity
from nodeagent.model.header_commands import unsupported
from nodeagent.model.names import canonical_address, resolve_host

_MOST_WEIGHT: Final = 1_000_000
"""Of an endpoint: Envoy adds up those of a locality in 32 bits."""
_LABEL: Final = r"[a-z0-9]([-a-z0-9_]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"^{_LABEL}(\.{_LABEL})*\.?$", re.IGNORECASE)
# RFC 9110, section 5.6.2.
_TOKEN: Final = re.compile(r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")
_PSEUDO_HEADERS: Final = frozenset({":authority", ":method", ":path", ":scheme"})
# Envoy's substitution commands in header values, and what it refuses: a lone percent sign.
_FORMAT: Final = re.compile(r"^(%%|%[A-Z][A-Z0-9_]*(\([^()]*\))?(:\d+)?%|[^%])*$")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_AUTHORITY_NAMES: Final = frozenset({"host", ":authority"})
# What of a request target may be there (RFC 3986, and what is beyond it in use), and what of a Location.
_TARGET: Final = re.compile(r"^[!-~]*$")
_AUTHORITY: Final = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9!$%&'()*+\-.;=_~]+)(:\d{0,5})?$")
# Framing of messages and connections: a change would set peers at odds with each other.
_CONNECTION_HEADERS: Final = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
)


def endpoint_weight(fields: Fields) -> int:
    """`weight` of a WorkloadEntry: a share of what its service gets; 0 is as none (Istio), which is 1."""
    return fields.integer("weight", low=0, high=_MOST_WEIGHT) or 1


def check_host(fields: Fields, path: str, host: str, *, wildcard: bool) -> bool:
    """Whether a host is a DNS name, an address or (where allowed) `*` or `*.name`; reported if not."""
    if not host:
        fields.problems.error(path, "required, but empty", "missing-field")
        return False
    if canonical_address(host) is not None:
        return True
    plain = host
    if host == "*" or host.startswith("*."):
        if not wildcard:
            fields.problems.error(path, f"{host!r}: a wildcard is not allowed here")
            return False
        if host == "*":
            return True
        plain = host[2:]
    if len(plain) > 255 or not _HOST.match(plain):
        fields.problems.error(
            path, f"{host!r} is not a host name; use a name such as reviews or a.example.com"
        )
        return False
    return True


def full_host(host: str, namespace: str, domain: str) -> str:
    """The host in full, without a final dot."""
    return resolve_host(host.removesuffix("."), namespace, domain)


def string_match(fields: Fields, *, presence: bool = False) -> StringMatch | None:
    """A StringMatch: one of exact, prefix and regex; where `presence`, an empty one or regex `*` means present."""
    with fields:
        if presence and fields.data.get("regex") == "*":
            fields.ignore("exact", "prefix", "regex")
            return StringMatch(MatchKind.PRESENT)
        found = fields.one_of(
            {
                "exact": lambda name: StringMatch(MatchKind.EXACT, fields.string(name)),
                "prefix": lambda name: StringMatch(MatchKind.PREFIX, fields.string(name, required=True)),
                "regex": lambda name: StringMatch(MatchKind.REGEX, fields.regex(name) or ""),
            },
            required=not presence,
        )
    if found is None and presence:
        return StringMatch(MatchKind.PRESENT)
    return found


def string_match_field(fields: Fields, name: str) -> StringMatch | None:
    """A field that holds a StringMatch."""
    nested = fields.message(name)
    return None if nested is None else string_match(nested)


def header_matches(fields: Fields, name: str) -> tuple[tuple[str, StringMatch], ...]:
    """A map of header names to StringMatch; names in lower case, in order of name."""
    found = []
    for key, nested in fields.message_map(name):
        if key.startswith(":") and key not in _PSEUDO_HEADERS:
            fields.problems.error(
                nested.path, f"{key!r} is not a pseudo-header; there are :authority, :method, ..."
            )
        elif not key.startswith(":") and not _TOKEN.match(key):
            fields.problems.error(nested.path, f"{key!r} is not a header name")
        match = string_match(nested, presence=True)
        if match is not None:
            found.append((key.lower(), match))
    return tuple(sorted(found, key=lambda pair: pair[0]))


def query_matches(fields: Fields, name: str) -> tuple[tuple[str, StringMatch], ...]:
    """A map of query parameter names to StringMatch, in order of name."""
    found = []
    for key, nested in fields.message_map(name):
        match = string_match(nested, presence=True)
        if not key:
            fields.problems.error(nested.path, "a query parameter needs a name")
        elif match is not None:
            found.append((key, match))
    return tuple(sorted(found, key=lambda pair: pair[0]))


def headers(fields: Fields) -> Headers:
    """The `headers` field of a route or destination."""
    nested = fields.message("headers")
    if nested is None:
        return Headers()
    with nested:
        request, authority = _operations(nested, "request", authority_allowed=True)
        response, _ = _operations(nested, "response", authority_allowed=False)
    return Headers(request, response, authority)


def _operations(fields: Fields, side: str, *, authority_allowed: bool) -> tuple[HeaderOperations, str]:
    nested = fields.message(side)
    if nested is None:
        return HeaderOperations(), ""
    with nested:
        changed = dict(nested.string_map("set"))
        added = nested.string_map("add")
        removed = nested.strings("remove")
        authority = ""
        for name in list(changed):
            if authority_allowed and name.lower() in _AUTHORITY_NAMES:
                authority = changed.pop(name)
                _check_authority(nested, f"{nested.at('set')}[{name}]", authority)
        for operation, items in (("set", changed), ("add", added)):
            for name, value in items.items():
                _check_header(nested, f"{nested.at(operation)}[{name}]", name, value)
        for index, name in enumerate(removed):
            _check_header(nested, f"{nested.at('remove')}[{index}]", name, "")
    pairs = [
        tuple(sorted((name.lower(), value) for name, value in items.items())) for items in (changed, added)
    ]
    return HeaderOperations(pairs[0], pairs[1], tuple(sorted(name.lower() for name in removed))), authority


def _check_header(fields: Fields, path: str, name: str, value: str) -> None:
    if name.lower() in _AUTHORITY_NAMES:
        fields.problems.error(path, f"{name} can only be set, on requests (headers.request.set)")
    elif not _TOKEN.match(name):
        fields.problems.error(path, f"{name!r} is not a header name that can be changed")
    elif name.lower() in _CONNECTION_HEADERS:
        message = f"{name} belongs to the connection; the agent leaves it as it is"
        fields.problems.add(Severity.WARNING, "connection-header", path, message)
    if _CONTROL.search(value):
        fields.problems.error(path, "a header value cannot hold line breaks or other control characters")
    elif not _FORMAT.match(value):
        fields.problems.error(
            path, f"{value!r}: a percent sign begins a command such as %PROTOCOL%; write it as %%"
        )
    elif reason := unsupported(value):
        message = f"{reason} by the agent; it leaves the header as it is"
        fields.problems.add(Severity.WARNING, "not-supported-yet", path, message)


def _check_authority(fields: Fields, path: str, value: str) -> None:
    found = _AUTHORITY.match(value)
    if value and (found is None or int((found[2] or ":")[1:] or 0) > 65535):
        fields.problems.error(path, f"{value!r} is not a host with an optional port")


def authority(fields: Fields, name: str) -> str:
    """A host with an optional port, as it goes into a request or a redirect; empty when not set."""
    value = fields.string(name)
    _check_authority(fields, fields.at(name), value)
    return value


def uri_part(fields: Fields, name: str, *, fragment: bool = False) -> str:
    """Text that goes into a URI as it is: visible ASCII, and a `#` only where a URI may end in a `fragment`."""
    value = fields.string(name)
    if not _TARGET.match(value):
        fields.error(name, f"{value!r} has a character that a URI cannot have; write it percent-encoded")
    elif "#" in value and not fragment:
        fields.error(name, f"{value!r}: a request has no fragment; write # as %23")
    return value


def one_line(fields: Fields, name: str) -> str:
    """A string that goes into a request or response head as it is."""
    value = fields.string(name)
    if any(character in value for character in "\r\n\0"):
        fields.error(name, "cannot hold line breaks or NUL")
    return value


def scheme(fields: Fields, name: str) -> str:
    """The scheme of a URI (RFC 3986 3.1); empty when not set."""
    value = fields.string(name)
    if value and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", value):
        fields.error(name, f"{value!r} is not a scheme such as https")
    return value


def substitution(fields: Fields, name: str, pattern: str) -> str:
    r"""What replaces a match of `pattern`: text with \0 to \9 for the groups that the pattern has (RE2)."""
    value = one_line(fields, name)
    groups = group_count(pattern)
    for reference in re.findall(r"\\(.?)", value):
        if reference.isdecimal() and int(reference) > groups:
            fields.error(name, f"\\{reference} means a group that the pattern does not have; it has {groups}")
        elif not reference.isdecimal() and reference != "\\":
            fields.error(name, "a backslash must be followed by a digit or another backslash")
    if not _TARGET.match(value) or "#" in value:
        fields.error(name, f"{value!r} has a character that a path cannot have; write it percent-encoded")
    return value


def subnet(fields: Fields, path: str, text: str) -> str | None:
    """An address or CIDR in canonical form; None (reported) if it is neither."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        fields.problems.error(path, f"{text!r} is neither an IP address nor a subnet such as 10.1.0.0/16")
        return None


def export_to(fields: Fields) -> frozenset[str]:
    """The `exportTo` field."""
    return check_export_to(fields.strings("exportTo"), fields.at("exportTo"), fields)
