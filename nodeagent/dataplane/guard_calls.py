"""The calls that build guards: their return codes as errors."""

from __future__ import annotations

from typing import Any

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError


def did(guards: Any, code: int, what: str) -> None:
    """EngineError with the engine's reason, named `what`, if a call on the guards failed."""
    if code < 0:
        reason = ffi.string(lib.na_guards_error(guards)).decode(errors="replace")
        raise EngineError(f"{what}: {reason or f'error {-code}'}")


def held(text: str) -> Any:
    """The text for a field of a struct, which does not keep what it points to: keep it until the call."""
    return ffi.new("char[]", c_string(text))
