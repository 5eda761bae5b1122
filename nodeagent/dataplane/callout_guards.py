"""Makes the engine's stages that ask somebody else (na_guards_callout) of a snapshot's Callouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.guard_calls import did, held
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.snapshot.policies import Callout, Check


def add_callout(guards: Any, guarded: int, callout: Callout, check: Callable[[Check, str], None]) -> None:
    """Append the stage to what is asked of connections or requests (`guarded`). `check` appends an expression."""
    what = f"callout to {callout.cluster}"
    texts = [held(text) for text in (callout.cluster, callout.authority, callout.path_prefix)]
    config = ffi.new(
        "na_callout_config *",
        {
            "cluster": texts[0],
            "authority": texts[1],
            "path_prefix": texts[2],
            "timeout_ms": callout.timeout_ms,
            "status_on_error": callout.status_on_error,
            "body_bytes": callout.body_bytes,
            "grpc": callout.grpc,
            "fail_open": callout.fail_open,
            "body_partial": callout.body_partial,
            "body_raw": callout.body_raw,
            "mark_open": callout.mark_open,
        },
    )
    did(guards, lib.na_guards_callout(guards, guarded, config), what)
    if callout.when is not None:
        did(guards, lib.na_callout_when(guards), what)
        check(callout.when, what)
    _names(guards, callout, what)
    for which, headers in (
        (lib.NA_CALLOUT_EXTRA, callout.send_extra),
        (lib.NA_CALLOUT_METADATA, callout.metadata),
    ):
        for name, value in headers:
            did(guards, lib.na_callout_header(guards, which, c_string(name), c_string(value)), what)


def _names(guards: Any, callout: Callout, what: str) -> None:
    for which, names in (
        (lib.NA_CALLOUT_SEND, callout.send),
        (lib.NA_CALLOUT_HIDE, callout.hide),
        (lib.NA_CALLOUT_KEEP, callout.keep),
        (lib.NA_CALLOUT_KEEP_APPEND, callout.keep_append),
        (lib.NA_CALLOUT_ANSWER, callout.answer),
        (lib.NA_CALLOUT_ANSWER_ALLOWED, callout.answer_allowed),
        (lib.NA_CALLOUT_TO_METADATA, callout.keep_metadata),
    ):
        for name in names:
            did(guards, lib.na_callout_name(guards, which, int(name.kind), c_string(name.value)), what)
