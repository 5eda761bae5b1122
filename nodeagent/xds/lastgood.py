"""The last good configuration on disk: what each stream held, for a start while no control plane answers.

One file a stream, written beside it, synced and renamed into place, so that a crash leaves the old or the
new one. Layout: a line `nodeagent last-good <format>`, a line with the SHA-256 of the rest, then
length-prefixed fields: the stream's name, and for each type its URL, the names known to be absent, and
(name, version, body) of each resource.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from nodeagent.xds.store import Resource, TypeState

logger = logging.getLogger(__name__)

SIZE_LIMIT: Final = 256 * 1024 * 1024
_MAGIC: Final = b"nodeagent last-good 1\n"
_SUFFIX: Final = ".lastgood"
_LENGTH: Final = struct.Struct("<I")
_PIECE: Final = 1000
"""Fields that are written together."""


@dataclass(slots=True)
class Held:
    """What a stream holds of one type."""

    resources: dict[str, Resource] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)


def capture(types: Mapping[str, TypeState]) -> dict[str, Held]:
    """What a stream holds now, apart from what may change: safe to write from another thread."""
    return {
        url: Held(dict(state.resources), state.absent - state.unanswered)
        for url, state in types.items()
        if state.resources or state.absent
    }


class LastGood:
    """The directory of last good configuration."""

    def __init__(self, directory: Path, limit: int = SIZE_LIMIT) -> None:
        self._directory = directory
        self._limit = limit

    def _path(self, stream: str) -> Path:
        return self._directory / (hashlib.sha256(stream.encode()).hexdigest()[:24] + _SUFFIX)

    def save(self, stream: str, held: Mapping[str, Held]) -> int:
        """Replace a stream's file, durably; returns its size in bytes. OSError when the disk refuses,
        ValueError when there is more than the limit (the old file stays)."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(stream)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                size = self._write(file, _encode(stream, held))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._sync_directory()
        return size

    def _write(self, file: IO[bytes], fields: Iterator[bytes]) -> int:
        """Write piece by piece: a copy of everything in memory would double what a large mesh costs."""
        digest, size = hashlib.sha256(), 0
        file.write(_MAGIC + digest.hexdigest().encode() + b"\n")
        while piece := b"".join(itertools.islice(fields, _PIECE)):
            size += len(piece)
            if size > self._limit:
                raise ValueError(f"the configuration is over the limit of {self._limit} bytes")
            digest.update(piece)
            file.write(piece)
        file.seek(len(_MAGIC))
        file.write(digest.hexdigest().encode())
        return size

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def load(self, stream: str) -> dict[str, Held]:
        """What was saved of a stream; empty if there is nothing, or nothing that can be trusted
        (reported)."""
        path = self._path(stream)
        try:
            if path.stat().st_size > self._limit + 4096:
                raise ValueError("it is over the size limit")
            return _decode(stream, path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("ignoring the last good configuration in %s: %s", path, error)
            return {}

    def forget(self, stream: str) -> None:
        """Drop a stream's file."""
        with contextlib.suppress(OSError):
            self._path(stream).unlink(missing_ok=True)

    def keep_only(self, streams: set[str]) -> None:
        """Drop the files of all other streams, and what crashes left."""
        keep = {self._path(stream) for stream in streams}
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                if path not in keep and path.suffix in (_SUFFIX, ".partial"):
                    path.unlink(missing_ok=True)


def _field(data: bytes) -> Iterator[bytes]:
    yield _LENGTH.pack(len(data))
    yield data


def _encode(stream: str, held: Mapping[str, Held]) -> Iterator[bytes]:
    yield from _field(stream.encode())
    for url, content in held.items():
        yield from _field(url.encode())
        yield _LENGTH.pack(len(content.absent))
        for name in content.absent:
            yield from _field(name.encode())
        yield _LENGTH.pack(len(content.resources))
        for name, (version, body) in content.resources.items():
            yield from _field(name.encode())
            yield from _field(version.encode())
            yield from _field(body)


class _Reader:
    """Takes length-prefixed fields off a checked blob."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._data)

    def number(self) -> int:
        (value,) = _LENGTH.unpack_from(self._data, self._at)
        self._at += _LENGTH.size
        return int(value)

    def blob(self) -> bytes:
        length = self.number()
        end = self._at + length
        if end > len(self._data):
            raise ValueError("it ends too early")
        data = self._data[self._at : end]
        self._at = end
        return data

    def text(self) -> str:
        return self.blob().decode()


def _decode(stream: str, data: bytes) -> dict[str, Held]:
    magic, digest, body = data[: len(_MAGIC)], data[len(_MAGIC) :][:64], data[len(_MAGIC) + 65 :]
    if magic != _MAGIC:
        raise ValueError("it is of another format")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("its checksum does not hold, it is damaged")
    reader = _Reader(body)
    try:
        if reader.text() != stream:
            raise ValueError("it belongs to another stream")
        held: dict[str, Held] = {}
        while not reader.done:
            content = held.setdefault(reader.text(), Held())
            content.absent = {reader.text() for _ in range(reader.number())}
            for _ in range(reader.number()):
                name, version = reader.text(), reader.text()
                content.resources[name] = Resource(version, reader.blob())
    except struct.error:
        raise ValueError("it ends too early") from None
    return held
