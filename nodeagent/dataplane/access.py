"""Asking the engine's guards what they would say, with no packet (na_engine_explain_access)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError

_ANSWER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class AccessQuestion:
    """Who would like to do what at a port of a workload. Addresses are 16 bytes. Without a method it is a connection
    that is taken for TCP; without a principal it comes in plaintext."""

    port: int
    source: bytes
    destination: bytes
    principal: str = ""
    source_port: int = 0
    method: str | None = None
    authority: str = ""
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()


class Step(StrEnum):
    """The first word of a line of the answer (engine.h)."""

    PROTOCOL = "protocol"
    GUARDS = "guards"
    STAGE = "stage"
    POLICY = "policy"
    TOKENS = "tokens"
    CALLOUT = "callout"
    VERDICT = "verdict"


@dataclass(frozen=True, slots=True)
class AccessStep:
    """A line of the answer: `words` are what follows. Of a policy: its name, and `matched` or `not matched`; of tokens:
    what is found out about them (`OK`); of a callout: the cluster, and `would be asked` or `not asked`."""

    step: Step
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccessAnswer:
    """What the guards say, step by step. `status` and `detail` are those of a refusal."""

    steps: tuple[AccessStep, ...]
    allowed: bool
    status: int = 0
    detail: str = ""


def explain_access(engine: Any, workload: int, question: AccessQuestion) -> AccessAnswer:
    """Ask. EngineError if the workload's inbound configuration is not in force, or no such request can be."""
    packed = b"".join(c_string(part) + b"\0" for pair in question.headers for part in pair)
    # Kept in names: a struct does not keep what its pointers lead to.
    principal, authority, path = (
        ffi.new("char[]", c_string(text)) for text in (question.principal, question.authority, question.path)
    )
    method = ffi.NULL if question.method is None else ffi.new("char[]", c_string(question.method))
    headers = ffi.from_buffer("char[]", packed)
    asked = ffi.new(
        "na_access_question *",
        {
            "workload": workload,
            "port": question.port,
            "source_port": question.source_port,
            "source": question.source,
            "destination": question.destination,
            "principal": principal,
            "method": method,
            "authority": authority,
            "path": path,
            "headers": headers,
            "headers_n": len(packed),
        },
    )
    out = ffi.new("char[]", _ANSWER_BYTES)
    length = lib.na_engine_explain_access(engine, asked, out, _ANSWER_BYTES)
    if length < 0:
        raise EngineError(f"the guards of port {question.port} cannot be asked: {_reason(-length)}")
    return _read(ffi.buffer(out, length)[:].decode(errors="replace"))


def _reason(code: int) -> str:
    match code:
        case errno.ENOENT:
            return "the workload's inbound configuration is not in force"
        case errno.EINVAL:
            return "no such request can be"
    return os.strerror(code)


def _read(text: str) -> AccessAnswer:
    lines = [line.split("\t") for line in text.splitlines()]
    steps = tuple(AccessStep(Step(first), tuple(rest)) for first, *rest in lines)
    verdict = steps[-1].words
    if verdict[0] == "allowed":
        return AccessAnswer(steps, True)
    return AccessAnswer(steps, False, int(verdict[1]), verdict[2])
