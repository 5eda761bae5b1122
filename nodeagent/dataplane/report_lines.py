"""Access records as lines of a log in one of Istio's default formats, written by the engine's library: a record
costs no Python of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.builder import ClusterTag, Tagged
from nodeagent.dataplane.report import LineFormat, Lines
from nodeagent.dataplane.tags import TagTable
from nodeagent.errors import EngineError
from nodeagent.snapshot.values import InboundPort

BATCH: Final = 256
"""Records taken out of the engine at once; 0.4 MB."""
_OUT_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Names:
    """An na_access_name array; `texts` owns what it points to."""

    array: Any
    count: int
    texts: tuple[Any, ...]


class LineWriter:
    """Turns na_access_record arrays into lines; keeps its buffers."""

    def __init__(self, tags: TagTable[Tagged]) -> None:
        self._tags = tags
        self._numbers = ffi.new("uint32_t[]", BATCH)
        self._out = ffi.new("char[]", _OUT_BYTES)
        self._used = ffi.new("size_t *")

    def format(self, engine: Any, records: Any, count: int, form: LineFormat) -> Lines:
        """The first `count` records of the engine, at most BATCH, as lines."""
        names = self._names(records, count)
        pieces = []
        done = 0
        while done < count:
            written = lib.na_access_format(
                engine,
                records + done,
                count - done,
                form,
                names.array,
                names.count,
                self._out,
                _OUT_BYTES,
                self._used,
            )
            if written <= 0:
                raise EngineError(f"the engine cannot format access records: error {-written}")
            pieces.append(ffi.buffer(self._out, self._used[0])[:])
            done += written
        return Lines(b"".join(pieces), count)

    def _names(self, records: Any, count: int) -> _Names:
        """What the cluster tags of the records stand for."""
        found = lib.na_access_tags(records, count, self._numbers)
        named = [
            (tag, ffi.new("char[]", name.encode(errors="replace")))
            for tag in ffi.unpack(self._numbers, found)
            if (name := self._name(tag)) is not None
        ]
        array = ffi.new("na_access_name[]", [{"tag": tag, "text": text} for tag, text in named])
        return _Names(array, len(named), tuple(text for _, text in named))

    def _name(self, tag: int) -> str | None:
        match self._tags.resolve(tag):
            case ClusterTag() as value:
                return value.cluster.xds_name
            case InboundPort() as port:
                return port.xds_name
        return None
