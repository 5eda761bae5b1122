"""What policy says to outsiders where that depends on where they come from (`ipBlocks`): a verdict for each prefix.

Rules tell addresses apart by the prefixes that they name, which lie within one another or apart. So all addresses that
have the same longest one of them are alike, and one of these is asked about for all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from nodeagent.dataplane.bypass_layout import Access
from nodeagent.dataplane.bypass_verdict import Judge, Peer, Target, Verdict
from nodeagent.snapshot.address import is_v4, widen_address
from nodeagent.snapshot.policies import AddressCheck, AllOf, AnyOf, Check, Not, Place, Rules

logger = logging.getLogger(__name__)

MAX_PREFIXES: Final = 1024
"""That the rules of a class may name; above, no outsider is let in."""
_BITS: Final = 128
_V4_BITS: Final = 96


class Prefix(NamedTuple):
    """Of 128 bits; `first` is its first address."""

    first: int
    length: int

    @property
    def last(self) -> int:
        """Its last address."""
        return self.first | ((1 << (_BITS - self.length)) - 1)

    @property
    def address(self) -> bytes:
        """Its first address as bytes."""
        return self.first.to_bytes(16)

    def holds(self, address: int) -> bool:
        """Whether an address is in it."""
        return self.first <= address <= self.last


Verdicts = dict[Prefix, Verdict]


def judge_outsiders(rules: Sequence[Rules], *, v4: bool, targets: Sequence[bytes], port: int) -> Verdicts:
    """What is said to whoever has no identity, by where it comes from: the longest prefix holds, the shortest one
    holds everybody. What cannot be said is a refusal, since there is nobody to ask."""
    everybody = Prefix(int.from_bytes(widen_address(bytes(4))), _V4_BITS) if v4 else Prefix(0, 0)
    named = {everybody, *_named(rules, v4=v4)}
    if len(named) > MAX_PREFIXES:
        logger.error(
            "UDP: a policy names %d ranges of addresses, of which %d are told apart: outsiders are refused",
            len(named),
            MAX_PREFIXES,
        )
        return {everybody: Verdict(Access.DENY)}
    judge = Judge(rules)
    found: Verdicts = {}
    for prefix, address in _examples(named):
        verdicts = {
            judge.verdict(Peer("", (address.to_bytes(16),)), Target((target,), port)) for target in targets
        }
        verdict = verdicts.pop() if len(verdicts) == 1 else Verdict(Access.DENY)
        found[prefix] = verdict if verdict.access is not Access.ENGINE else Verdict(Access.DENY)
    return found


def verdict_on(verdicts: Verdicts, address: bytes) -> Verdict:
    """What is said to an address."""
    number = int.from_bytes(address)
    holding = [prefix for prefix in verdicts if prefix.holds(number)]
    return verdicts[max(holding, key=lambda prefix: prefix.length)] if holding else Verdict(Access.DENY)


def _named(rules: Iterable[Rules], *, v4: bool) -> Iterator[Prefix]:
    """Those by which the rules tell peers of a family apart."""
    checks = (check for each in rules for policy in each.policies for check in _address_checks(policy.check))
    for check in checks:
        if check.place is Place.DESTINATION or len(check.address) != 16 or check.prefix > _BITS:
            continue
        # A range of IPv6 holds no address of IPv4 (bypass_checks.py).
        if (check.prefix >= _V4_BITS and is_v4(check.address)) is v4:
            shift = _BITS - check.prefix
            yield Prefix(int.from_bytes(check.address) >> shift << shift, check.prefix)


def _address_checks(check: Check) -> Iterator[AddressCheck]:
    match check:
        case AllOf(checks) | AnyOf(checks):
            for each in checks:
                yield from _address_checks(each)
        case Not(operand):
            yield from _address_checks(operand)
        case AddressCheck():
            yield check


def _examples(prefixes: Iterable[Prefix]) -> Iterator[tuple[Prefix, int]]:
    """For each prefix an address of which it is the longest; none where longer ones fill it."""
    free: list[tuple[Prefix, int]] = []
    """Those that hold what comes next, with the first address that is not in a longer one."""
    for prefix in sorted(prefixes):
        while free and not free[-1][0].holds(prefix.first):
            yield from _free(free)
        if free and free[-1][1] == prefix.first:
            free[-1] = free[-1][0], prefix.last + 1
        free.append((prefix, prefix.first))
    while free:
        yield from _free(free)


def _free(free: list[tuple[Prefix, int]]) -> Iterator[tuple[Prefix, int]]:
    prefix, address = free.pop()
    if address <= prefix.last:
        yield prefix, address
