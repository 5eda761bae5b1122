"""The file source: folders and files of YAML and JSON, watched for changes.

A file that cannot be read keeps its last good objects in force. Of two files that hold one object, the one that had
it first keeps it. Folders are read recursively and in order of their paths; hidden entries are left out, as editors
and ConfigMap volumes use them for work in progress.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import watchfiles

from nodeagent.controlplane.report import Issue, Report, Severity
from nodeagent.controlplane.sources.base import Batch, ObjectKey, RawObject
from nodeagent.controlplane.sources.documents import DocumentError, read_json, read_yaml
from nodeagent.controlplane.sources.mesh_file import MeshFile
from nodeagent.controlplane.sources.objects import ObjectError, read_object
from nodeagent.errors import ConfigError

log = logging.getLogger(__name__)

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
MAX_FILE_BYTES: Final = 64 << 20
MAX_FILES: Final = 50_000
# Quiet time after which a burst of changes is taken, and the longest that a burst may hold it up.
SETTLE_MS: Final = 50
DEBOUNCE_MS: Final = 500
# A look without being told: inotify may overflow, and network file systems do not tell.
RESCAN_SECONDS: Final = 5.0
_READ_TRIES: Final = 5

Signature = tuple[int, int, int, int]


@dataclass(slots=True)
class _File:
    """What is known of one file."""

    signature: Signature
    folder: Path
    """Where it really is, links followed."""
    digest: str = ""
    loaded: float = 0.0
    objects: dict[ObjectKey, RawObject] = field(default_factory=dict)
    error: str = ""


class FileSource:
    """Reads `roots` (files or folders) and watches them. Not thread safe; reading happens in a worker thread."""

    def __init__(self, roots: Iterable[Path], report: Report, mesh_file: MeshFile | None = None) -> None:
        """`mesh_file` comes before what the roots hold."""
        self._mesh_file = mesh_file
        every = [mesh_file.path, *roots] if mesh_file is not None else roots
        self._roots = [root.absolute() for root in every]
        self._report = report
        self._files: dict[Path, _File] = {}
        # Files that hold an object, the one in force first.
        self._holders: dict[ObjectKey, list[Path]] = {}
        self._touched: set[ObjectKey] = set()
        self._first_seen: dict[ObjectKey, float] = {}
        self._sequence = 0
        self._closed = False
        # Of the watcher at work. watchfiles sets it itself when it is cancelled.
        self._stop = asyncio.Event()
        for root in self._roots:
            if not root.exists():
                option = "--mesh-config" if self._is_mesh_file(root) else "--config"
                raise ConfigError(f"{option} {root}: there is no such file or folder")

    def _is_mesh_file(self, path: Path) -> bool:
        return self._mesh_file is not None and path == self._mesh_file.path.absolute()

    async def load(self) -> Batch:
        """Read everything."""
        return await self._rescan()

    def close(self) -> None:
        """End watch()."""
        self._closed = True
        self._stop.set()

    async def watch(self) -> AsyncIterator[Batch]:
        """Changes, each batch settled for 50 ms."""
        while not self._closed:
            folders = self._watched()
            self._stop = asyncio.Event()
            told = asyncio.Event()
            # Look once for what changed before the watch began.
            told.set()
            watcher = asyncio.create_task(self._listen(folders, told))
            # One turn of the loop lets it begin: what changes from here on is told.
            await asyncio.sleep(0)
            try:
                while not watcher.done() and self._watched() == folders:
                    await told.wait()
                    told.clear()
                    batch = await self._rescan()
                    if batch.changed or batch.removed:
                        yield batch
            finally:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)

    async def _listen(self, folders: Iterable[Path], told: asyncio.Event) -> None:
        """Set `told` whenever something may have changed: a file system event, or time for a look."""
        try:
            async for _ in watchfiles.awatch(
                *folders,
                watch_filter=None,
                step=SETTLE_MS,
                debounce=DEBOUNCE_MS,
                stop_event=self._stop,
                rust_timeout=int(RESCAN_SECONDS * 1000),
                yield_on_timeout=True,
                ignore_permission_denied=True,
            ):
                told.set()
        except (OSError, RuntimeError) as error:
            log.warning("cannot watch %s, looking again in %g s: %s", self._roots, RESCAN_SECONDS, error)
            await asyncio.sleep(RESCAN_SECONDS)
        finally:
            told.set()

    def _watched(self) -> frozenset[Path]:
        """Folders to watch: the roots (a file's own folder), and where symbolic links lead out of them."""
        folders = {root if root.is_dir() else root.parent for root in self._roots}
        for folder in {file.folder for file in self._files.values()}:
            if not any(folder.is_relative_to(root) for root in folders):
                folders.add(folder)
        return frozenset(folder for folder in folders if folder.is_dir())

    async def _rescan(self) -> Batch:
        found = await asyncio.to_thread(lambda: dict(_scan(self._roots)))
        touched = [path for path, now in found.items() if self._stale(path, now)]
        contents = await asyncio.to_thread(lambda: [(path, _read(path)) for path in touched])
        changed: dict[ObjectKey, RawObject] = {}
        removed: set[ObjectKey] = set()
        for path in sorted(self._files.keys() - found.keys()):
            self._replace(path, {}, changed, removed)
            del self._files[path]
            self._report.replace(("file", path), ())
        for path, (signature, text, error) in contents:
            self._take(path, signature, text, error, changed, removed)
        self._report_duplicates()
        removed -= changed.keys()
        for key in removed:
            self._first_seen.pop(key, None)
        return Batch(tuple(changed.values()), tuple(sorted(removed)))

    def _stale(self, path: Path, now: Signature) -> bool:
        known = self._files.get(path)
        return known is None or known.signature != now

    def _take(
        self,
        path: Path,
        signature: Signature,
        data: bytes,
        error: str,
        changed: dict[ObjectKey, RawObject],
        removed: set[ObjectKey],
    ) -> None:
        """Put the contents of one file in force, or keep the last good ones and say why."""
        folder = path.resolve().parent
        file = self._files.setdefault(path, _File(signature, folder))
        file.signature, file.folder = signature, folder
        digest = hashlib.sha256(data).hexdigest()
        if not error and digest == file.digest:
            return
        issues: list[Issue] = []
        file.error = error
        if not error:
            file.digest = digest
            file.loaded = time.time()
            try:
                objects = self._parse(path, data, issues)
                self._replace(path, objects, changed, removed)
            except DocumentError as broken:
                file.error = f"{path}:{broken.line}: {broken}"
                issues = [
                    Issue(
                        Severity.ERROR, "broken-file", self._kept(file, str(broken)), f"{path}:{broken.line}"
                    )
                ]
        else:
            issues = [Issue(Severity.ERROR, "unreadable-file", self._kept(file, error), str(path))]
        self._report.replace(("file", path), issues)

    @staticmethod
    def _kept(file: _File, message: str) -> str:
        return (
            f"{message}; its {len(file.objects)} last good objects stay in force" if file.objects else message
        )

    def _parse(self, path: Path, data: bytes, issues: list[Issue]) -> dict[ObjectKey, RawObject]:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DocumentError(data[: error.start].count(b"\n") + 1, "not UTF-8 text") from error
        if self._mesh_file is not None and self._is_mesh_file(path):
            documents = self._mesh_file.documents(text)
        else:
            documents = read_json(text) if path.suffix == ".json" else read_yaml(text)
        objects: dict[ObjectKey, RawObject] = {}
        for document in documents:
            try:
                item = read_object(document, f"{path}:{document.line}", self._seen)
            except ObjectError as error:
                issues.append(error.issue)
                continue
            if item.key in objects:
                issues.append(_duplicate(item, objects[item.key].source))
            else:
                objects[item.key] = item
        return objects

    def _seen(self, key: ObjectKey) -> float:
        """When the object was first seen; later ones get later times, also within one second."""
        if key not in self._first_seen:
            self._sequence += 1
            self._first_seen[key] = time.time() + self._sequence * 1e-6
        return self._first_seen[key]

    def _replace(
        self,
        path: Path,
        objects: dict[ObjectKey, RawObject],
        changed: dict[ObjectKey, RawObject],
        removed: set[ObjectKey],
    ) -> None:
        """Make `objects` the contents of a file, and note what that changes for the mesh."""
        file = self._files[path]
        before, file.objects = file.objects, objects
        self._touched |= before.keys() | objects.keys()
        for key, item in objects.items():
            holders = self._holders.setdefault(key, [])
            if path not in holders:
                holders.append(path)
            if holders[0] == path and (before.get(key) != item or before[key].source != item.source):
                changed[key] = item
        for key in before.keys() - objects.keys():
            holders = self._holders[key]
            was_in_force = holders[0] == path
            holders.remove(path)
            if not holders:
                del self._holders[key]
                removed.add(key)
                changed.pop(key, None)
            elif was_in_force:
                changed[key] = self._files[holders[0]].objects[key]

    def _report_duplicates(self) -> None:
        """Report objects of the files just read that other files hold too; clear what is mended."""
        for key in self._touched:
            first, *others = self._holders.get(key, [Path()])
            source = self._files[first].objects[key].source if others else ""
            issues = [_duplicate(self._files[other].objects[key], source) for other in others]
            self._report.replace(("duplicate", key), issues)
        self._touched.clear()

    def describe(self) -> dict[str, Any]:
        """Files with their digest (SHA-256), time of loading, number of objects and error."""
        return {
            str(path): {
                "sha256": file.digest,
                "loaded": file.loaded,
                "objects": len(file.objects),
                "error": file.error or None,
            }
            for path, file in sorted(self._files.items())
        }


def _duplicate(item: RawObject, first: str) -> Issue:
    message = f"is defined twice; the one in {first} stays in force, remove one of them"
    return Issue(Severity.ERROR, "duplicate-object", message, item.source, str(item.key))


def _scan(roots: Iterable[Path]) -> Iterator[tuple[Path, Signature]]:
    """Configuration files under the roots with what tells a change of them."""
    count = 0
    for root in roots:
        for path in _walk(root) if root.is_dir() else (root,):
            try:
                status = path.stat()
            except OSError:
                continue
            count += 1
            if count > MAX_FILES:
                log.error("more than %d configuration files: those after %s are left out", MAX_FILES, path)
                return
            yield path, (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)


def _walk(root: Path) -> Iterator[Path]:
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix in SUFFIXES:
                yield path


def _read(path: Path) -> tuple[Signature, bytes, str]:
    """The bytes of a file that did not change meanwhile, its signature, and why it cannot be read."""
    signature: Signature = (0, 0, 0, 0)
    try:
        for attempt in range(_READ_TRIES):
            before = path.stat()
            signature = (before.st_mtime_ns, before.st_size, before.st_ino, before.st_dev)
            if not stat.S_ISREG(before.st_mode):
                return signature, b"", "is no regular file"  # reading a pipe might never end
            if before.st_size > MAX_FILE_BYTES:
                return signature, b"", f"larger than {MAX_FILE_BYTES >> 20} MiB; split it"
            data = path.read_bytes()
            after = path.stat()
            if (after.st_mtime_ns, after.st_size, after.st_ino) == signature[:3]:
                return signature, data, ""
            time.sleep(0.01 * (attempt + 1))
        return (0, 0, 0, 0), data, ""
    except OSError as error:
        return signature, b"", f"cannot be read: {error.strerror}"
