"""Controls, labels and the failure counter: pure."""

from __future__ import annotations

import hashlib

import pytest

from nodeagent.errors import ConfigError
from nodeagent.lab.echo import EchoOptions
from nodeagent.lab.echo_message import (
    MAX_FAIL_KEYS,
    ControlError,
    Controls,
    Failures,
    Identity,
    parse_controls,
    parse_delay,
    parse_labels,
    pattern,
    pattern_sha256,
    plain_address,
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Controls()),
        ("unrelated=1", Controls()),
        ("status=503", Controls(status=503)),
        ("delay=200ms&size=10", Controls(delay=0.2, size=10)),
        ("header=a:b&header=c:%20d", Controls(headers=(("a", "b"), ("c", "d")))),
        ("trailer=t:1", Controls(trailers=(("t", "1"),))),
        ("fail=3&key=k", Controls(fail=3, key="k")),
        ("chunked&close=1", Controls(chunked=True, close=True)),
        ("chunked=0", Controls()),
    ],
)
def test_query(query: str, expected: Controls) -> None:
    assert parse_controls(query, []) == expected


def test_headers_set_what_the_query_does_not() -> None:
    headers = [("X-Echo-Status", "404"), ("x-echo-size", "5"), ("X-Other", "1")]
    assert parse_controls("status=500", headers) == Controls(status=500, size=5)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=99", "status=99: not a whole number from 200 to 599"),
        ("status=abc", "status=abc: not"),
        ("size=-1", "size=-1: not"),
        ("size=999999999999999", "size="),
        ("delay=5", "delay=5: not a duration such as 200ms"),
        ("delay=2h", "delay=2h: more than 1h"),
        ("header=nocolon", "header=nocolon: not name:value"),
        ("header=a:b%0d%0aset-cookie:x", "not name:value"),
        ("close=maybe", "close=maybe: not 1 or 0"),
    ],
)
def test_bad_controls_are_named(query: str, message: str) -> None:
    with pytest.raises(ControlError, match=message.replace("(", r"\(")):
        parse_controls(query, [])


@pytest.mark.parametrize(("text", "seconds"), [("1m30s", 90), ("1.5s", 1.5), ("0", 0), ("250us", 0.00025)])
def test_delay(text: str, seconds: float) -> None:
    assert parse_delay(text) == pytest.approx(seconds)


def test_failures_are_counted_by_key_and_bounded() -> None:
    failures = Failures()
    assert [failures.next_fails("a", 2) for _ in range(4)] == [True, True, False, False]
    assert failures.next_fails("b", 1)
    for number in range(MAX_FAIL_KEYS):
        failures.next_fails(str(number), 1)
    assert len(failures._seen) == MAX_FAIL_KEYS
    assert failures.next_fails("a", 1), "the longest unused key is forgotten"


def test_pattern_is_what_its_hash_says() -> None:
    for size in (0, 1, 255, 65536, 65537, 200_000):
        data = b"".join(pattern(size))
        assert len(data) == size
        assert hashlib.sha256(data).hexdigest() == pattern_sha256(size)


def test_labels() -> None:
    assert parse_labels("a=b, c=d=e,") == {"a": "b", "c": "d=e"}
    with pytest.raises(ConfigError, match="'x' is not key=value"):
        parse_labels("a=b,x")


def test_identity_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "p")
    monkeypatch.setenv("POD_NAMESPACE", "n")
    monkeypatch.setenv("POD_LABELS", "k=v")
    assert Identity.of(None, None, None) == Identity("p", "n", {"k": "v"})
    assert Identity.of("q", None, "") == Identity("q", "n", {})


def test_options_need_distinct_ports() -> None:
    with pytest.raises(ConfigError, match="no port to listen on"):
        EchoOptions().check()
    with pytest.raises(ConfigError, match="--tcp 80: the port is taken by --http 80"):
        EchoOptions(http=(80,), tcp=(80,)).check()
    EchoOptions(http=(0,), tcp=(0,)).check()


def test_addresses_of_ipv4_clients_are_ipv4() -> None:
    assert plain_address(("::ffff:10.0.0.1", 5, 0, 0)) == ("10.0.0.1", 5)
    assert plain_address(("fe80::1%eth0", 5, 0, 2)) == ("fe80::1", 5)
    assert plain_address("") == ("", 0)
