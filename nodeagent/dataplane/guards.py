"""Makes engine guards (na_guards) of a snapshot's Guards."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.callout_guards import add_callout
from nodeagent.dataplane.guard_calls import did
from nodeagent.dataplane.token_guards import add_tokens
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError
from nodeagent.snapshot.policies import (
    AddressCheck,
    AllOf,
    Always,
    AnyOf,
    Attribute,
    Callout,
    Check,
    ConnectionStage,
    Guards,
    Not,
    PortCheck,
    RequestStage,
    Rules,
    TextCheck,
    Tokens,
)

_NAMED: Final = frozenset({Attribute.HEADER, Attribute.METADATA, Attribute.LITERAL})


def make_guards(guards: Guards) -> Any:
    """The na_guards, freed with its last reference. EngineError naming what the engine cannot use, and why."""
    slot = ffi.new("na_guards **")
    if (code := lib.na_guards_new(slot)) < 0:
        raise EngineError(f"guards cannot be made: error {-code}")
    maker = _Maker(ffi.gc(slot[0], lib.na_guards_free))
    did(maker.guards, lib.na_guards_slashes(maker.guards, int(guards.slashes)), "slashes in paths")
    for guarded, stages in (
        (lib.NA_GUARDED_CONNECTION, guards.connection),
        (lib.NA_GUARDED_REQUEST, guards.request),
    ):
        for stage in stages:
            maker.stage(guarded, stage)
    return maker.guards


class _Maker:
    """The guards under construction."""

    def __init__(self, guards: Any) -> None:
        self.guards = guards

    def _did(self, code: int, what: str) -> None:
        did(self.guards, code, what)

    def stage(self, guarded: int, stage: ConnectionStage | RequestStage) -> None:
        """Append a stage."""
        match stage:
            case Rules():
                self._rules(guarded, stage)
            case Tokens():
                add_tokens(self.guards, stage)
            case Callout():
                add_callout(self.guards, guarded, stage, self.check)

    def _rules(self, guarded: int, rules: Rules) -> None:
        code = lib.na_guards_rules(
            self.guards, guarded, int(rules.action), rules.shadow, c_string(rules.prefix)
        )
        self._did(code, f"{rules.action.name} rules")
        for policy in rules.policies:
            what = f"policy {policy.name}"
            self._did(lib.na_guards_policy(self.guards, c_string(policy.name)), what)
            self.check(policy.check, what)

    def check(self, check: Check, what: str) -> None:
        """Append an expression, operands after their operator."""
        match check:
            case Always():
                self._did(lib.na_check_always(self.guards), what)
            case AllOf(checks):
                self._did(lib.na_check_all(self.guards, len(checks)), what)
                self._all(checks, what)
            case AnyOf(checks):
                self._did(lib.na_check_any(self.guards, len(checks)), what)
                self._all(checks, what)
            case Not(operand):
                self._did(lib.na_check_not(self.guards), what)
                self.check(operand, what)
            case TextCheck():
                self._text(check, what)
            case AddressCheck():
                if len(check.address) != 16:
                    raise EngineError(f"{what}: address {check.address!r} has not 16 bytes")
                code = lib.na_check_address(self.guards, int(check.place), check.address, check.prefix)
                self._did(code, what)
            case PortCheck(low, high):
                self._did(lib.na_check_port(self.guards, low, high), what)

    def _all(self, checks: tuple[Check, ...], what: str) -> None:
        for check in checks:
            self.check(check, what)

    def _text(self, check: TextCheck, what: str) -> None:
        named = check.attribute in _NAMED
        code = lib.na_check_text(
            self.guards,
            int(check.attribute),
            lib.NA_MATCH_TEMPLATE if check.template else int(check.kind),
            c_string(check.name) if named else ffi.NULL,
            c_string(check.value),
            int(check.flags),
        )
        self._did(
            code, f"{what}: {check.attribute.name.lower()} {check.name} {check.value!r}".replace("  ", " ")
        )
