"""A second evaluator of snapshot checks, in a few lines of Python: what tests hold the compiler's output against.

It knows what a connection or a request is by the words of the tests, and shares no code with the engine.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nodeagent.snapshot.address import format_address
from nodeagent.snapshot.matches import MatchFlags, MatchKind
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
    Check,
    Not,
    Place,
    PortCheck,
    RuleAction,
    Rules,
    TextCheck,
)


@dataclass(frozen=True)
class Asked:
    """A connection, or with a path a request."""

    principal: str = ""
    source: str = "10.244.0.1"
    destination: str = "10.244.0.9"
    port: int = 8080
    client: str = ""
    path: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str | bool] = field(default_factory=dict)
    sni: str | None = None


def _text(check: TextCheck, asked: Asked) -> str | None:
    trust_domain, _, rest = asked.principal.removeprefix("spiffe://").partition("/ns/")
    namespace, _, account = rest.partition("/sa/")
    values = {
        Attribute.PRINCIPAL: asked.principal,
        Attribute.NAMESPACE: namespace,
        Attribute.SERVICE_ACCOUNT: f"{namespace}/{account}",
        Attribute.TRUST_DOMAIN: trust_domain,
    }
    if check.attribute in values:
        return values[check.attribute] if asked.principal else None
    if check.attribute is Attribute.HEADER:
        return asked.headers.get(check.name)
    if check.attribute in (Attribute.METADATA, Attribute.LITERAL):
        return _scalar(asked.metadata.get(check.name), check.attribute)
    return asked.path if check.attribute is Attribute.PATH else asked.sni


def _scalar(value: str | bool | None, attribute: Attribute) -> str | None:
    if isinstance(value, str):
        return value if attribute is Attribute.METADATA else None
    return None if value is None or attribute is Attribute.METADATA else str(value).lower()


def _matches(check: TextCheck, text: str) -> bool:
    wanted = check.value
    if check.template:
        pattern = re.escape(wanted).replace(r"\{\*\*\}", ".*").replace(r"\{\*\}", "[^/]+")
        return re.fullmatch(pattern, text) is not None
    if check.flags & MatchFlags.IGNORE_CASE:
        wanted, text = wanted.lower(), text.lower()
    return {
        MatchKind.EXACT: lambda: text == wanted,
        MatchKind.PREFIX: lambda: text.startswith(wanted),
        MatchKind.SUFFIX: lambda: text.endswith(wanted),
        MatchKind.CONTAINS: lambda: wanted in text,
        MatchKind.REGEX: lambda: re.fullmatch(wanted, text) is not None,
        MatchKind.PRESENT: lambda: True,
    }[check.kind]()


def holds(check: Check, asked: Asked) -> bool:
    """Whether a check is true of what is asked."""
    match check:
        case Always():
            return True
        case AllOf(checks):
            return all(holds(each, asked) for each in checks)
        case AnyOf(checks):
            return any(holds(each, asked) for each in checks)
        case Not(inner):
            return not holds(inner, asked)
        case PortCheck(low, high):
            return low <= asked.port <= high
        case AddressCheck(place, address, prefix):
            place_of = {
                Place.PEER: asked.source,
                Place.CLIENT: asked.client,
                Place.DESTINATION: asked.destination,
            }
            base, bits = format_address(address), prefix
            if "." in base:
                bits -= 96
            return ipaddress.ip_address(place_of[place]) in ipaddress.ip_network(f"{base}/{bits}")
        case TextCheck():
            text = _text(check, asked)
            inverted = bool(check.flags & MatchFlags.INVERT)
            if text is None:
                if not check.flags & MatchFlags.MISSING_AS_EMPTY:
                    return check.kind is MatchKind.PRESENT and inverted
                text = ""
            return _matches(check, text) != inverted
    raise AssertionError(check)


def admits(stages: Iterable[object], asked: Asked) -> bool:
    """Whether rules let pass what is asked."""
    for stage in stages:
        assert isinstance(stage, Rules)
        if stage.shadow or stage.action is RuleAction.LOG:
            continue
        matched = any(holds(policy.check, asked) for policy in stage.policies)
        if matched is (stage.action is RuleAction.DENY):
            return False
    return True
