"""Envoy's header changes (HeaderValueOption and the lists of names to remove)."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.compiler.report import Report
from nodeagent.model.header_commands import unsupported
from nodeagent.snapshot.values import HeaderMutation, HeaderOp, HeaderSide

# HeaderValueOption.HeaderAppendAction
_ACTIONS: Final = {0: HeaderOp.ADD, 1: HeaderOp.ADD_IF_ABSENT, 2: HeaderOp.SET}
# They belong to the connection: the engine writes them itself, for the framing that it chose.
_CONNECTION_HEADERS: Final = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
)
_SIDES: Final = ((HeaderSide.REQUEST, "request"), (HeaderSide.RESPONSE, "response"))


def compile_mutations(holder: Any, report: Report) -> tuple[HeaderMutation, ...]:
    """The header changes of a route, weighted cluster, virtual host or route configuration; removals first,
    as Envoy evaluates them."""
    mutations = []
    for side, prefix in _SIDES:
        for name in getattr(holder, f"{prefix}_headers_to_remove"):
            if _is_changeable(name, report.at(f"{prefix}_headers_to_remove")):
                mutations.append(HeaderMutation(side, HeaderOp.REMOVE, _name(name)))
        for option in getattr(holder, f"{prefix}_headers_to_add"):
            mutation = _compile_option(side, option, report.at(f"{prefix}_headers_to_add"))
            if mutation is not None:
                mutations.append(mutation)
    return tuple(mutations)


def _is_changeable(name: str, report: Report) -> bool:
    if name.lower() not in _CONNECTION_HEADERS:
        return True
    report.warn(f"{name}: belongs to the connection and is left as it is")
    return False


def _compile_option(side: HeaderSide, option: Any, report: Report) -> HeaderMutation | None:
    name = _name(option.header.key)
    if not _is_changeable(name, report):
        return None
    raw = option.header.value or option.header.raw_value.decode("latin-1")
    if not raw and not option.keep_empty_value:
        return None  # Envoy adds no header whose value comes out empty, unless it is told to
    if reason := unsupported(raw):
        report.warn(f"{name}: {reason}; the header is left as it is")
        return None
    if option.HasField("append"):
        operation: HeaderOp | None = HeaderOp.ADD if option.append.value else HeaderOp.SET
    else:
        operation = _ACTIONS.get(option.append_action)
    if operation is None:
        report.warn(f"{name}: append_action {option.append_action} is not supported yet and has no effect")
        return None
    return HeaderMutation(side, operation, name, raw)


def _name(name: str) -> str:
    lower = name.lower()
    if lower.startswith(":") or lower == "host":
        raise ValueError(f"header {name!r} may not be changed; rewrite the authority instead")
    if not lower:
        raise ValueError("a header change names no header")
    return lower
