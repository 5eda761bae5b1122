"""Checks of guards, evaluated with what is known before a connection is made: true, false, or None for unknown.

As the engine evaluates them (check.c), made into functions since a node has many peers to ask about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from nodeagent.dataplane._native import lib
from nodeagent.snapshot.address import is_v4
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
    TextCheck,
)

_MAPPED_BITS: Final = 96
_TEXTS_REMEMBERED: Final = 8192
_OF_PEER: Final = frozenset(
    (Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT, Attribute.TRUST_DOMAIN)
)


class UndecidableError(Exception):
    """A check that the engine could not even make."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a connection."""

    texts: dict[Attribute, str] | None
    """Of the peer's identity, without those that are not there; None: not known, but there."""
    peer: bytes | None
    """Its address; None: not known."""
    destination: bytes
    port: int


Holds: TypeAlias = Callable[[Facts], bool | None]


def compile_check(check: Check) -> Holds:
    """The function that evaluates a check. It raises UndecidableError where the engine cannot have the check."""
    match check:
        case Always():
            return lambda facts: True
        case AllOf(checks):
            return _all(tuple(map(compile_check, checks)))
        case AnyOf(checks):
            return _any(checks)
        case Not(operand):
            return _not(compile_check(operand))
        case TextCheck():
            return _text(check)
        case AddressCheck():
            return _address(check)
        case PortCheck(low, high):
            return lambda facts: low <= facts.port <= high


def asks_for_address(check: Check) -> bool:
    """Whether a check looks at the peer's address."""
    match check:
        case AllOf(checks) | AnyOf(checks):
            return any(map(asks_for_address, checks))
        case Not(operand):
            return asks_for_address(operand)
        case AddressCheck(place):
            return place is not Place.DESTINATION
    return False


# -- operators --


def _all(operands: tuple[Holds, ...]) -> Holds:
    def holds(facts: Facts) -> bool | None:
        result: bool | None = True
        for operand in operands:
            held = operand(facts)
            if held is False:
                return False
            if held is None:
                result = None
        return result

    return operands[0] if len(operands) == 1 else holds


def _any(checks: Sequence[Check]) -> Holds:
    """Names that must be equal, of which policies have many, are looked up together."""
    names: dict[Attribute, set[str]] = {}
    others: list[Holds] = []
    for check in checks:
        if isinstance(check, TextCheck) and _is_name(check):
            names.setdefault(check.attribute, set()).add(check.value)
        else:
            others.append(compile_check(check))
    others.extend(_one_of(attribute, frozenset(values)) for attribute, values in names.items())
    return others[0] if len(others) == 1 else _any_of(tuple(others))


def _any_of(operands: tuple[Holds, ...]) -> Holds:
    def holds(facts: Facts) -> bool | None:
        result: bool | None = False
        for operand in operands:
            held = operand(facts)
            if held:
                return True
            if held is None:
                result = None
        return result

    return holds


def _not(operand: Holds) -> Holds:
    def holds(facts: Facts) -> bool | None:
        held = operand(facts)
        return None if held is None else not held

    return holds


# -- texts --


def _is_name(check: TextCheck) -> bool:
    plain = check.kind is MatchKind.EXACT and check.flags is MatchFlags.NONE and "\0" not in check.value
    return plain and check.attribute in _OF_PEER and bool(check.value)


def _one_of(attribute: Attribute, values: frozenset[str]) -> Holds:
    return lambda facts: None if facts.texts is None else facts.texts.get(attribute) in values


def _text(check: TextCheck) -> Holds:
    attribute = check.attribute
    if attribute in (Attribute.HEADER, Attribute.PATH):
        return lambda facts: False  # a connection has no request
    if attribute not in _OF_PEER:
        return lambda facts: None
    if _is_name(check):
        return _one_of(attribute, frozenset((check.value,)))
    kind, value, flags = int(check.kind), check.value, int(check.flags)
    is_presence = check.kind is MatchKind.PRESENT

    def holds(facts: Facts) -> bool | None:
        if facts.texts is None:
            return _engine_says(kind, value, flags, "there") if is_presence else None
        return _engine_says(kind, value, flags, facts.texts.get(attribute, ""))

    return holds


@lru_cache(_TEXTS_REMEMBERED)
def _engine_says(kind: int, value: str, flags: int, text: str) -> bool:
    code = lib.na_check_text_holds(kind, value.encode(), flags, text.encode())
    if code < 0 or "\0" in value:
        raise UndecidableError
    return bool(code)


# -- addresses --


def _address(check: AddressCheck) -> Holds:
    if check.prefix > 128 or len(check.address) != 16:
        return _cannot_be
    shift = 128 - check.prefix
    network = int.from_bytes(check.address) >> shift
    of_destination = check.place is Place.DESTINATION
    v6_only = check.prefix < _MAPPED_BITS  # a range of IPv6 holds no address of IPv4

    def holds(facts: Facts) -> bool | None:
        address = facts.destination if of_destination else facts.peer
        if address is None:
            return None
        return int.from_bytes(address) >> shift == network and not (v6_only and is_v4(address))

    return holds


def _cannot_be(facts: Facts) -> bool | None:
    raise UndecidableError
