"""What the echo workload is asked for and what it answers, whatever the protocol. Pure values."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl

from nodeagent.errors import ConfigError

MAX_SIZE: Final = 256 << 20
MAX_DELAY_SECONDS: Final = 3600.0
MAX_FAIL_KEYS: Final = 4096

_HASH_AT_ONCE: Final = 1 << 20  # bytes
_PATTERN: Final = bytes(range(256)) * 256
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h)")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# RFC 9110 section 5.1 and 5.5: what may stand in a field name and a field value.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class ControlError(ValueError):
    """A control of a request cannot be read; the message names it and what it takes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers: the pod as the operator or the environment named it."""

    pod: str
    namespace: str
    labels: Mapping[str, str]

    @classmethod
    def of(cls, name: str | None, namespace: str | None, labels: str | None) -> Identity:
        """Return the identity by options, else by POD_NAME, POD_NAMESPACE, POD_LABELS, else by host name."""
        environment = os.environ.get
        return cls(
            pod=name or environment("POD_NAME") or socket.gethostname(),
            namespace=namespace or environment("POD_NAMESPACE") or "default",
            labels=parse_labels(labels if labels is not None else environment("POD_LABELS", "")),
        )


def parse_labels(text: str) -> dict[str, str]:
    """Read `key=value,key=value`; ConfigError if a part is not of that form."""
    labels: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ConfigError(f"labels: {part!r} is not key=value (wanted: key=value,key=value)")
        labels[key] = value
    return labels


@dataclass(frozen=True, slots=True)
class Controls:
    """How a request wants to be answered: by query parameter, else by `x-echo-<name>` header."""

    status: int = 200
    delay: float = 0.0  # seconds
    size: int | None = None  # answer that many bytes of the pattern in place of the JSON
    headers: tuple[tuple[str, str], ...] = ()
    trailers: tuple[tuple[str, str], ...] = ()
    fail: int = 0  # answer the first so many requests of the key with 503
    key: str = ""  # of `fail`; empty: the path
    chunked: bool = False
    close: bool = False

    @property
    def plain(self) -> bool:
        """Whether the answer can be written at once: no waiting, no large or chunked body."""
        return not self.delay and self.size is None and not self.chunked and not self.trailers


DEFAULT_CONTROLS: Final = Controls()
_REPEATABLE: Final = frozenset({"header", "trailer"})
_NAMES: Final = frozenset({"status", "delay", "size", "fail", "key", "chunked", "close"}) | _REPEATABLE


def parse_controls(query: str, headers: Iterable[tuple[str, str]]) -> Controls:
    """Read the controls of a request; parameters and headers of other names are nobody's business here.

    ControlError for a value that cannot be read or is out of range.
    """
    found: list[tuple[str, str]] = []
    for name, value in headers:
        lower = name.lower()
        if lower.startswith("x-echo-") and lower[7:] in _NAMES:
            found.append((lower[7:], value))
    if query:
        found += [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] in _NAMES]
    if not found:
        return DEFAULT_CONTROLS
    controls = DEFAULT_CONTROLS
    for name, value in found:
        controls = _with_control(controls, name, value)
    return controls


def _with_control(controls: Controls, name: str, value: str) -> Controls:
    match name:
        case "status":
            return replace(controls, status=_integer(name, value, 200, 599))
        case "delay":
            return replace(controls, delay=parse_delay(value))
        case "size":
            return replace(controls, size=_integer(name, value, 0, MAX_SIZE))
        case "fail":
            return replace(controls, fail=_integer(name, value, 0, 1_000_000))
        case "key":
            return replace(controls, key=value)
        case "header":
            return replace(controls, headers=(*controls.headers, _field(name, value)))
        case "trailer":
            return replace(controls, trailers=(*controls.trailers, _field(name, value)))
        case "chunked":
            return replace(controls, chunked=_flag(name, value))
        case _:
            return replace(controls, close=_flag(name, value))


def _integer(name: str, value: str, low: int, high: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 12 and low <= int(value) <= high):
        raise ControlError(f"{name}={value}: not a whole number from {low} to {high}")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value.lower() in ("", "1", "true", "yes"):
        return True
    if value.lower() in ("0", "false", "no"):
        return False
    raise ControlError(f"{name}={value}: not 1 or 0")


def _field(name: str, value: str) -> tuple[str, str]:
    key, colon, content = value.partition(":")
    if not colon or not _FIELD_NAME.fullmatch(key) or not _FIELD_VALUE.fullmatch(content):
        raise ControlError(f"{name}={value}: not name:value")
    return key, content.strip()


def parse_delay(value: str) -> float:
    """Read a duration such as `200ms`, `1.5s` or `1m30s` into seconds."""
    parts = list(_DURATION.finditer(value))
    if value != "0" and (not parts or "".join(part[0] for part in parts) != value):
        raise ControlError(f"delay={value}: not a duration such as 200ms, 1.5s or 1m")
    seconds = sum(float(part[1]) * _SECONDS[part[2]] for part in parts)
    if seconds > MAX_DELAY_SECONDS:
        raise ControlError(f"delay={value}: more than {MAX_DELAY_SECONDS / 3600:.0f}h")
    return seconds


class Failures:
    """Counts the requests of each key that `fail` has turned down; the longest unused keys are forgotten."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def next_fails(self, key: str, first: int) -> bool:
        """Count a request of the key; whether it is one of the first so many."""
        seen = self._seen.pop(key, 0)
        self._seen[key] = seen + 1
        if len(self._seen) > MAX_FAIL_KEYS:
            self._seen.popitem(last=False)
        return seen < first


@functools.lru_cache(maxsize=256)
def pattern_sha256(size: int) -> str:
    """Return the SHA-256 of the first `size` bytes of the pattern (the bytes 0 to 255, repeated)."""
    digest = hashlib.sha256()
    for part in pattern(size):
        digest.update(part)
    return digest.hexdigest()


def pattern(size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of the pattern, at most 64 KiB at a time."""
    while size > 0:
        yield _PATTERN[:size]
        size -= len(_PATTERN)


@dataclass(slots=True)
class Request:
    """A request as received; `digest` has taken in the body so far."""

    protocol: str
    method: str
    path: str  # with the query
    host: str
    headers: list[tuple[str, str]]
    remote: tuple[str, int]
    digest: Any = None  # hashlib's object; None while there was no body
    body_bytes: int = 0
    trailers: list[tuple[str, str]] | None = None

    def add_body(self, data: bytes) -> None:
        """Take in a part of the body."""
        if self.digest is None:
            self.digest = hashlib.sha256()
        self.digest.update(data)
        self.body_bytes += len(data)

    def controls(self) -> Controls:
        """Return the controls of this request; ControlError if one cannot be read."""
        return parse_controls(self.path.partition("?")[2], self.headers)


_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode


def describe(identity: Identity, request: Request) -> dict[str, Any]:
    """Return what the answer says of the request and of who answers."""
    ip, port = request.remote
    answer: dict[str, Any] = {
        "pod": identity.pod,
        "namespace": identity.namespace,
        "labels": identity.labels,
        "protocol": request.protocol,
        "method": request.method,
        "host": request.host,
        "path": request.path,
        "headers": request.headers,
        "remote": {"ip": ip, "port": port},
        "body": {
            "bytes": request.body_bytes,
            "sha256": request.digest.hexdigest() if request.digest else _EMPTY_SHA256,
        },
    }
    if request.trailers:
        answer["trailers"] = request.trailers
    return answer


def encode(value: Mapping[str, Any]) -> bytes:
    """Return JSON in one line. Bytes that were no UTF-8 in a header come out as U+FFFD or latin-1 text."""
    return (_encode(value) + "\n").encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer before it is framed. `size` set: that many bytes of the pattern in place of `body`."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    size: int | None = None
    trailers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False
    close: bool = False

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if self.size is None else self.size

    def parts(self) -> Iterable[bytes]:
        """Return the body, at most 64 KiB at a time."""
        if self.size is not None:
            return pattern(self.size)
        return (self.body,) if self.body else ()


class Responder:
    """Turns requests into answers; one for all connections of a process, since it counts `fail`."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._failures = Failures()

    def answer(self, request: Request, controls: Controls) -> Answer:
        """Answer the request as its controls want it; `prepare` comes before."""
        status = controls.status
        headers = [("x-echo-pod", self.identity.pod)]
        if controls.fail and self.fails(request, controls):
            status = 503
        if status in (204, 205, 304):
            headers += controls.headers
            return Answer(status, headers, close=controls.close)
        if controls.size is None:
            body = encode(describe(self.identity, request))
            headers.append(("content-type", "application/json"))
        else:
            body = b""
            headers.append(("content-type", "application/octet-stream"))
            headers.append(("x-echo-sha256", pattern_sha256(controls.size)))
        headers += controls.headers
        return Answer(
            status, headers, body, controls.size, controls.trailers, controls.chunked, controls.close
        )

    async def prepare(self, controls: Controls) -> None:
        """Wait out the delay; take a long hash off the event loop."""
        if controls.delay:
            await asyncio.sleep(controls.delay)
        if controls.size is not None and controls.size > _HASH_AT_ONCE:
            await asyncio.to_thread(pattern_sha256, controls.size)

    def fails(self, request: Request, controls: Controls) -> bool:
        """Count the request for `fail`; whether it is one of those to fail."""
        return self._failures.next_fails(controls.key or request.path.partition("?")[0], controls.fail)

    def refuse(self, status: int, reason: str) -> Answer:
        """Answer with an error that says what is wrong with the request."""
        body = encode({"pod": self.identity.pod, "error": reason})
        return Answer(status, [("x-echo-pod", self.identity.pod), ("content-type", "application/json")], body)


def plain_address(peer: Any) -> tuple[str, int]:
    """Return the IP address and port of a socket address; IPv4 in IPv6 comes out as IPv4."""
    if not isinstance(peer, tuple) or len(peer) < 2:
        return "", 0
    ip = str(peer[0]).partition("%")[0]
    return ip.removeprefix("::ffff:") if "." in ip else ip, int(peer[1])
