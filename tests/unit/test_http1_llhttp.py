"""The engine's HTTP/1 parser against llhttp, Node's parser, in strict mode.

Both get the same heads: hand-made ones and thousands of mutations of them. What the engine accepts, llhttp
must accept too, and read the same: method, target, version, every header, body length, persistence. Where
the engine refuses and llhttp does not, the refusal must be one of those that it makes on purpose.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import llhttp
import pytest

from nodeagent.dataplane._native import ffi, lib

HEADS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a/b?c=d&e#f HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\n\r\n",
    b"\r\nGET /x HTTP/1.1\r\nHost: reviews.default.svc.cluster.local:9080\r\nUser-Agent: curl/7.88.1\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nContent-Type: text/plain\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n",
    b"PUT /p HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET http://a/p HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"DELETE /d HTTP/1.1\r\nHost: [::1]:80\r\nX: a\tb\r\nEmpty:\r\nSpaced: \t x y \t\r\nLatin: \xfc\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
]

PIECES = [
    *(bytes([byte]) for byte in b'\r\n\0 \t:,;#?@%\x7f\x80\xff\x0b/0-aA("'),
    *(b"\r\n", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b"HTTP/1.1", b"chunked"),
    *(b"\r\nHost: b", b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked"),
    *(b"\r\nConnection: host", b"\r\nX : y"),
]

# Refusals that llhttp does not make, and whose rule it is instead.
STRICTER_REASONS = {
    "HTTP/1.1 without Host": "RFC 9112 3.2",
    "more than one Host": "RFC 9112 3.2",
    "invalid Host": "RFC 9112 3.2",
    "Host differs from the request target": "two hosts in one request: a peer might take the other",
    "fragment in request target": "RFC 9112 3.2.1: never sent; CVE-2021-39156",
    "invalid byte in request target": "RFC 3986",
    "request target has no valid form": "RFC 9112 3.2",
    "invalid authority in request target": "RFC 9110 4.2.4: no user information",
    "target * without OPTIONS": "RFC 9112 3.2.4",
    "CONNECT target is no host:port": "RFC 9112 3.2.3",
    "CONNECT with a body length": "RFC 9110 9.3.6",
    "transfer coding other than chunked": "one reading only; others are not implemented",
    "more than one Transfer-Encoding": "one reading only",
    "Transfer-Encoding in HTTP/1.0": "RFC 9112 6.1",
    "more than one Content-Length": "one reading only",
    "invalid Content-Length": "RFC 9110 8.6: lists are not collapsed; above 2^63-1",
    "Connection names a header that must not be removed": "removal smuggling",
    "invalid Connection option": "RFC 9110 7.6.1",
    "HTTP version not supported": "llhttp takes HTTP/0.9 and HTTP/2.0 too",
    "empty lines before the request": "RFC 9112 2.2: one is enough",
    "empty request target": "llhttp takes one of CONNECT",
    "request line without version": "llhttp takes HTTP/0.9",
    "malformed HTTP version": "RFC 9112 3: single spaces in the request line",
    "line ended by a bare LF": "llhttp takes one before the request and in HTTP/0.9",
    "invalid method": "leading white space or empty lines",
    "control character in a header value": "RFC 9110 5.5",
    "Transfer-Encoding with Content-Length": "RFC 9112 6.3",
}


@dataclass(frozen=True, slots=True)
class Head:
    """A head as a parser read it."""

    method: bytes
    target: bytes
    minor: int
    headers: tuple[tuple[bytes, bytes], ...]
    content_length: int
    keep_alive: bool
    consumed: int


class Reader(llhttp.Request):  # type: ignore[misc]
    """Collects what llhttp reports until the end of the head."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[list[bytes]] = []
        self.value_follows = False
        self.complete = False
        self.persistent = False
        self.length = 0
        self.method_name = b""

    def on_method(self, data: memoryview) -> None:
        self.method_name += bytes(data)

    def on_url(self, data: memoryview) -> None:
        self.target += bytes(data)

    def on_header_field(self, data: memoryview) -> None:
        if self.value_follows or not self.fields:
            self.fields.append([b"", b""])
            self.value_follows = False
        self.fields[-1][0] += bytes(data)

    def on_header_value(self, data: memoryview) -> None:
        self.value_follows = True
        self.fields[-1][1] += bytes(data)

    def on_header_value_complete(self) -> None:
        self.value_follows = True

    def on_headers_complete(self) -> None:
        self.complete = True
        self.persistent = bool(self.should_keep_alive)
        self.length = self.content_length or 0


def by_llhttp(data: bytes) -> Head | Exception | None:
    """The head as llhttp reads it; the error with which it refuses; None while incomplete.

    Byte by byte, so that the end of the head is known and no body is looked at.
    """
    reader = Reader()
    for at in range(len(data)):
        try:
            reader.execute(data[at : at + 1])
        except Exception as error:
            return error
        if reader.complete:
            return Head(
                reader.method_name,
                reader.target,
                reader.minor,
                tuple((name, value.strip(b" \t")) for name, value in reader.fields),
                reader.length,
                reader.persistent,
                at + 1,
            )
    return None


def by_engine(data: bytes) -> Head | str | None:
    """The head as the engine reads it; the reason for which it refuses; None while incomplete."""
    why = ffi.new("char[]", 1 << 16)
    consumed = lib.na_http1_check_request(data, len(data), why, len(why))
    text = ffi.string(why)
    if consumed < 0:
        return str(text.decode())
    if consumed == 0:
        return None
    first, *lines = text.split(b"\n")[:-1]
    method, path_query, authority, minor, _, length, keep_alive = first.split(b" ")
    headers = tuple(tuple(line.split(b": ", 1)) for line in lines)
    return Head(
        method,
        authority if method == b"CONNECT" else path_query,
        int(minor),
        headers,  # type: ignore[arg-type]
        int(length),
        keep_alive == b"1",
        consumed,
    )


def mutations(head: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Heads that differ from `head` in one to three places, the same ones in every run."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = head
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            at = rng.randrange(len(changed) + 1)
            end = at + rng.choice([0, 0, 1, 1, 2, 5])
            changed = changed[:at] + rng.choice([b"", rng.choice(PIECES), rng.choice(PIECES)]) + changed[end:]
        yield changed


def assert_same_reading(data: bytes, ours: Head, theirs: Head) -> None:
    """Both read the same; an absolute target is compared by its end, since the engine takes it apart."""
    assert ours.method == theirs.method, data
    if theirs.target.lower().startswith((b"http://", b"https://")) and ours.method != b"CONNECT":
        assert theirs.target.endswith(ours.target) or ours.target == b"/", data
    else:
        assert ours.target == theirs.target, data
    assert (ours.minor, ours.headers, ours.content_length) == (
        theirs.minor,
        theirs.headers,
        theirs.content_length,
    ), data
    # llhttp does not know "close" with a tab after it.
    assert ours.keep_alive == theirs.keep_alive or b"\t\r\n" in data, data
    assert ours.consumed == theirs.consumed, data


def is_needless(refusal: Exception, data: bytes) -> bool:
    """Whether llhttp refuses what the RFCs allow: unregistered methods, and a tab after a framing value.

    RFC 9110 9.1 and 5.6.3. The engine forwards values without the white space around them.
    """
    name = type(refusal).__name__
    framing = name in ("InvalidContentLengthError", "InvalidTransferEncodingError")
    return name == "InvalidMethodError" or (framing and b"\t\r\n" in data)


def compare(data: bytes, verdicts: Counter[str]) -> None:
    ours, theirs = by_engine(data), by_llhttp(data)
    if isinstance(ours, Head):
        if isinstance(theirs, Exception) and is_needless(theirs, data):
            verdicts["llhttp refuses needlessly"] += 1
            return
        assert isinstance(theirs, Head), (data, theirs)
        assert_same_reading(data, ours, theirs)
        verdicts["same"] += 1
    elif isinstance(ours, str) and isinstance(theirs, Head):
        assert ours in STRICTER_REASONS, (data, ours)
        verdicts[ours] += 1
    elif ours is None:
        assert not isinstance(theirs, Head), data
        verdicts["incomplete"] += 1
    else:
        verdicts["both refuse"] += 1


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_reads_as_llhttp_does(head: bytes) -> None:
    compare(head, Counter())


@pytest.mark.parametrize("index", range(len(HEADS)))
def test_accepts_nothing_that_llhttp_refuses_or_reads_otherwise(index: int) -> None:
    verdicts: Counter[str] = Counter()
    for data in mutations(HEADS[index], 1500, seed=index):
        compare(data, verdicts)
    # The comparison means something only if a fair part of the mutations is refused by both, or read by both.
    assert verdicts["both refuse"] > 100, verdicts
    assert index in (1, 13, 14, 15) or verdicts["same"] > 100, verdicts
