"""Lines written by the engine's library are those that the formatter in Python writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.builder import ClusterTag, Tagged
from nodeagent.dataplane.report import AccessRecord, LineFormat, WireProtocol
from nodeagent.dataplane.report_lines import BATCH, LineWriter
from nodeagent.dataplane.report_reader import ReportReader
from nodeagent.dataplane.tags import TagTable
from nodeagent.snapshot.address import V4_PREFIX
from nodeagent.snapshot.values import Cluster, ClusterUse, InboundPort, Protocol
from nodeagent.telemetry.log_format import IDENTITY_JSON, IDENTITY_TEXT, json_format, text_format

_PYTHON: dict[LineFormat, Callable[[AccessRecord], str]] = {
    LineFormat.TEXT: text_format(),
    LineFormat.JSON: json_format(),
    LineFormat.IDENTITY_TEXT: text_format(IDENTITY_TEXT),
    LineFormat.IDENTITY_JSON: json_format(IDENTITY_JSON),
}
_TEXTS = (
    "method",
    "authority",
    "path",
    "user_agent",
    "forwarded_for",
    "request_id",
    "route",
    "detail",
    "upstream_failure",
    "cluster",
)
_ADDRESSES = ("downstream_remote", "downstream_local", "upstream_remote", "upstream_local")
_NASTY = (
    b'"quoted\\"',
    b"line\r\n[2026] \x1b[31m\x7f\x01\b\f\t",
    "grüße 世界 🙂 \xa0\x85\xad\u200b\u2028\u202e\u2066\ufeff".encode(),
    b"\xff\xfe\xc0\xaf\xe2\x82A\xed\xa0\x80\xf0\x80\x80\x80\xf4\x90\x80\x80\xc3",
)


@pytest.fixture
def tags() -> TagTable[Tagged]:
    table: TagTable[Tagged] = TagTable()
    for name in ("outbound|80||a.test", 'odd "näme"\n', "x" * 1500):
        cluster = Cluster(f"v/{name}", name)
        table.assign(name, ClusterTag(cluster, ClusterUse("v", name)))
    table.assign("port", InboundPort(80, Protocol.HTTP, None, "inbound|80||"))
    table.assign("bare port", InboundPort(81, Protocol.TCP, None, ""))
    return table


def _fill(record: Any, chance: random.Random, tags: TagTable[Tagged]) -> None:
    record.start_us = chance.randrange(1, 1 << 52)
    record.duration_us = chance.choice((0, 999, chance.randrange(1 << 40)))
    record.upstream_us = chance.choice((0, 1, chance.randrange(1 << 40)))
    record.bytes_in = chance.choice((0, chance.randrange(1 << 64)))
    record.bytes_out = chance.randrange(1 << 64)
    record.cluster_tag = chance.randrange(len(tags) + 3)
    record.flags = chance.choice((0, 2, chance.randrange(1 << 20)))
    record.status = chance.choice((0, 200, 65535))
    value = tags.resolve(record.cluster_tag)
    record.inbound = isinstance(value, InboundPort) or (value is None and chance.randrange(2))
    record.protocol = chance.choice(list(WireProtocol))
    record.http_minor = chance.randrange(2)
    record.bypassed = chance.randrange(2)
    record.rtt_us, record.retransmits = chance.randrange(1 << 32), chance.randrange(9)
    for name in _ADDRESSES:
        mapped = chance.random() < 0.6
        address = (
            V4_PREFIX + chance.randbytes(4)
            if mapped
            else chance.choice((bytes(16), V4_PREFIX + bytes(4), chance.randbytes(16)))
        )
        ffi.memmove(getattr(record, name), address, 16)
        setattr(record, f"{name}_port", chance.choice((0, chance.randrange(65536))))
    for name in _TEXTS:
        field = getattr(record, name)
        text = chance.choice((b"", b"plain text", *_NASTY, chance.randbytes(400)))
        cut = text.replace(b"\0", b"")[: len(field) - 1]
        ffi.memmove(field, cut, len(cut))


@pytest.mark.parametrize("form", list(LineFormat))
def test_lines_are_those_of_the_python_formatter(form: LineFormat, tags: TagTable[Tagged]) -> None:
    chance = random.Random(7)
    reader = ReportReader(tags, TagTable())
    writer = LineWriter(tags)
    for _ in range(8):
        records = ffi.new("na_access_record[]", BATCH)
        for index in range(BATCH):
            _fill(records[index], chance, tags)
        expected = "".join(_PYTHON[form](reader._record(ffi.NULL, records[index])) for index in range(BATCH))
        lines = writer.format(ffi.NULL, records, BATCH, form)
        assert lines.data == expected.encode()
        assert lines.count == BATCH == lines.data.count(b"\n")


def test_more_than_fits_the_buffer_is_written_in_turns(tags: TagTable[Tagged]) -> None:
    records = ffi.new("na_access_record[]", BATCH)
    for index in range(BATCH):
        for name in _TEXTS:
            ffi.memmove(getattr(records[index], name), b"\x01" * (len(getattr(records[index], name)) - 1), 20)
        ffi.memmove(records[index].path, b"\x01" * 255, 255)
        records[index].cluster_tag = 3
    lines = LineWriter(tags).format(ffi.NULL, records, BATCH, LineFormat.JSON)
    assert len(lines.data) > 2 * 256 * 1024
    assert lines.data.count(b"\n") == BATCH


def test_an_unknown_format_is_refused() -> None:
    used = ffi.new("size_t *")
    records = ffi.new("na_access_record[]", 1)
    assert lib.na_access_format(ffi.NULL, records, 1, 5, ffi.NULL, 0, ffi.new("char[]", 9), 9, used) == -22
