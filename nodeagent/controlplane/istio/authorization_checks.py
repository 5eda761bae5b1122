"""What the values of an AuthorizationPolicy may look like, by what they are compared with."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from nodeagent.controlplane.istio.security_values import Attribute

MAX_SERVICE_ACCOUNTS: Final = 16
_MAX_SERVICE_ACCOUNT: Final = 320
_ONE_SEGMENT: Final = "{*}"
_ANY_SEGMENTS: Final = "{**}"
# RFC 3986, appendix A: pchar, as far as Envoy's URI templates take it.
_LITERAL: Final = re.compile(r"^[a-zA-Z0-9\-._~%!$&'()+,;:@=]+$")
# RFC 9110, section 5.6.2; pseudo-headers can be asked for, too.
_HEADER: Final = re.compile(r"^:?[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")


def is_header(name: str) -> bool:
    """Whether it is the name of a header."""
    return bool(_HEADER.match(name))


def is_template(path: str) -> bool:
    """Whether a path is a template with `{*}` or `{**}`, not a string with a wildcard."""
    return _ONE_SEGMENT in path or _ANY_SEGMENTS in path


def why_wrong(attribute: Attribute, value: str) -> str:
    """What is wrong with a value; empty if nothing is."""
    if not value:
        return "must not be empty"
    if any(character in value for character in "\0\r\n"):
        return "cannot hold line breaks or NUL"
    match attribute:
        case Attribute.SOURCE_IP | Attribute.REMOTE_IP | Attribute.DESTINATION_IP:
            return _subnet(value)
        case Attribute.DESTINATION_PORT:
            return _port(value)
        case Attribute.PATH:
            return _path(value)
        case Attribute.SERVICE_ACCOUNT:
            return _service_account(value)
        case Attribute.TRUST_DOMAIN:
            return _trust_domain(value)
        case Attribute.PRINCIPAL if value.startswith("spiffe://"):
            return f"{value!r}: write it without spiffe://"
    return ""


def _subnet(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return f"{value!r} is neither an IP address nor a subnet such as 10.1.0.0/16"
    return ""


def _port(value: str) -> str:
    good = value.isascii() and value.isdecimal() and int(value) <= 65535
    return "" if good else f"{value!r} is not a port; write a number up to 65535 in quotes"


def _service_account(value: str) -> str:
    if len(value) > _MAX_SERVICE_ACCOUNT:
        return f"longer than {_MAX_SERVICE_ACCOUNT} characters"
    if "*" in value:
        return f"{value!r}: a wildcard is not allowed here; use principals"
    if value.count("/") > 1 or not all(value.split("/")):
        return f"{value!r} is neither NAME nor NAMESPACE/NAME"
    return ""


def _trust_domain(value: str) -> str:
    if "/" in value:
        return f"{value!r}: a trust domain has no '/'"
    if value.count("*") > 1 or ("*" in value and not value.startswith("*") and not value.endswith("*")):
        return f"{value!r}: one wildcard is allowed, at the beginning or the end"
    return ""


def _path(value: str) -> str:
    """Istio's rules for templates: whole segments, nothing after `{**}`, plain text between."""
    seen_any = False
    template = is_template(value)
    for segment in value.strip("/").split("/"):
        if segment in (_ONE_SEGMENT, _ANY_SEGMENTS):
            if seen_any:
                return f"{value!r}: {_ANY_SEGMENTS} must be the last of its templates"
            seen_any = segment == _ANY_SEGMENTS
        elif "{" in segment or "}" in segment:
            return f"{value!r}: a template is a whole segment, {_ONE_SEGMENT} or {_ANY_SEGMENTS}"
        elif template and not _LITERAL.match(segment):
            return f"{value!r}: segment {segment!r} has a character that a path with templates cannot have"
    if template and not value.startswith("/"):
        return f"{value!r}: a path begins with '/'"
    return ""
