"""BPF objects of this package in the kernel: loaded, attached by links, pinned; and their maps.

The mechanism only. What is attached where, and what the maps mean, is ebpf_node.py's and ebpf_capture.py's.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.errors import BpfError, BpfMapFullError

OBJECTS: Final = Path(__file__).parent / "_native"
_LOG_LINES: Final = 12
_PROGRAM_PREFIXES: Final = (
    "agent_", "datagram_", "direct_", "dns_", "inbound_", "outbound_", "refuse_raw", "shared_"
)  # fmt: skip
_CHUNK: Final = 1024
"""Elements of a map that are read at once."""
_DATAGRAM: Final = struct.pack("=QII56x", 0, socket.AF_INET, socket.IPPROTO_UDP)
"""struct bpf_sk_lookup, of what inbound_lookup leaves alone at once."""
_EMPTY_RUNS: Final = 100_000
_HINTS: Final = {
    errno.EPERM: "; needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root",
    errno.E2BIG: "; 64 programs are attached there already (BPF_CGROUP_MAX_PROGS), or the map is full",
    errno.EBUSY: "; another program is attached there alone (without `multi` or a link)",
}


def bpf_error(what: str, code: int) -> BpfError:
    """The error of a call that returned `code` (-errno): `what` failed, with what libbpf and the verifier
    said at last."""
    text = ffi.string(lib.na_bpf_error()).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()][-_LOG_LINES:]
    message = f"cannot {what}: {os.strerror(-code)}{_HINTS.get(-code, '')}"
    return BpfError("\n  ".join([message, *lines]))


@dataclass(frozen=True, slots=True)
class MapUsage:
    """What a map takes and how full it is."""

    name: str
    memory: int
    """Bytes of kernel memory, as the kernel accounts them; before Linux 6.4 it estimates."""
    entries: int | None = None
    limit: int | None = None
    """None, as `entries`, where there is nothing that fills up."""
    full: int = 0
    """How many entries were refused since the agent started because it was full."""


def _check(code: int, what: str) -> int:
    if code < 0:
        raise bpf_error(what, code)
    return code


def _slices(array: Any, size: int, count: int) -> Iterator[bytes]:
    packed = bytes(ffi.buffer(array, size * count))
    return (packed[at : at + size] for at in range(0, size * count, size))


class BpfMap:
    """A map by its descriptor, with keys and values as bytes."""

    __slots__ = ("_fd", "_key_size", "_value_size", "name")

    def __init__(self, fd: int, name: str, key_size: int, value_size: int) -> None:
        """Take over `fd`. `value_size` is what user space reads: for per-CPU maps that of all CPUs."""
        self.name = name
        self._fd = fd
        self._key_size = key_size
        self._value_size = value_size

    @property
    def fd(self) -> int:
        """The descriptor; stays this object's."""
        return self._fd

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return self._key_size

    @property
    def value_size(self) -> int:
        """Bytes of a value."""
        return self._value_size

    def __setitem__(self, key: bytes, value: bytes) -> None:
        assert (len(key), len(value)) == (self._key_size, self._value_size)
        code = lib.na_bpf_map_update(self._fd, key, value)
        if code == -errno.E2BIG:
            raise BpfMapFullError(str(bpf_error(f"write to BPF map {self.name}", code)))
        _check(code, f"write to BPF map {self.name}")

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None if it is not there."""
        value = ffi.new("char[]", self._value_size)
        code = lib.na_bpf_map_lookup(self._fd, key, value)
        if code == -errno.ENOENT:
            return None
        _check(code, f"read BPF map {self.name}")
        return bytes(ffi.buffer(value))

    def discard(self, key: bytes) -> None:
        """Delete a key, if it is there."""
        code = lib.na_bpf_map_delete(self._fd, key)
        if code != -errno.ENOENT:
            _check(code, f"delete a key of BPF map {self.name}")

    def __iter__(self) -> Iterator[bytes]:
        """The keys. One that is deleted meanwhile makes the listing begin anew, so keys may come twice."""
        following = ffi.new("char[]", self._key_size)
        key = ffi.NULL
        while (code := lib.na_bpf_map_next(self._fd, key, following)) == 0:
            yield bytes(ffi.buffer(following))
            key = ffi.new("char[]", bytes(ffi.buffer(following)))
        if code != -errno.ENOENT:
            raise bpf_error(f"list BPF map {self.name}", code)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """The elements of a hash map, many with each call of the kernel. Those that come and go meanwhile may be
        missed."""
        keys, values = (ffi.new("char[]", size * _CHUNK) for size in (self._key_size, self._value_size))
        position = ffi.new("uint64_t *")
        more = True
        while more:
            count = _check(
                lib.na_bpf_map_read(self._fd, position, keys, values, _CHUNK), f"read BPF map {self.name}"
            )
            yield from zip(
                _slices(keys, self._key_size, count), _slices(values, self._value_size, count), strict=True
            )
            more = position[0] != 0

    def written(self) -> Iterator[bytes]:
        """Those values of an array (BPF_F_MMAPABLE) that are not all zeros, without a call of the kernel for each."""
        size = self.memory_and_limit()[1] * self._value_size
        zeros, step = bytes(self._value_size), _CHUNK * self._value_size
        with mmap.mmap(self._fd, size, prot=mmap.PROT_READ) as memory:
            for at in range(0, size, step):
                packed = memory[at : at + step]
                if any(packed):
                    values = (packed[i : i + len(zeros)] for i in range(0, len(packed), len(zeros)))
                    yield from (each for each in values if each != zeros)

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries in one call where the kernel can; BpfError tells how many were when not all."""
        keys, values = b"".join(entries.keys()), b"".join(entries.values())
        count = len(entries)
        done = lib.na_bpf_map_update_batch(self._fd, keys, values, count, self._key_size, self._value_size)
        if done != count:
            reason = ffi.string(lib.na_bpf_error()).decode(errors="replace")
            raise BpfError(f"BPF map {self.name} took {max(done, 0)} of {count} entries: {reason}")

    def memory_and_limit(self) -> tuple[int, int]:
        """Bytes of kernel memory and the most entries, from /proc/self/fdinfo (proc(5))."""
        lines = Path(f"/proc/self/fdinfo/{self._fd}").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(found["memlock"]), int(found["max_entries"])

    def count(self) -> int:
        """How many keys a hash map holds, in a few calls of the kernel."""
        code = lib.na_bpf_map_count(self._fd, self._key_size, self._value_size)
        return _check(code, f"count the keys of BPF map {self.name}")

    def fileno(self) -> int:
        """The descriptor, which stays the map's."""
        return self._fd

    def close(self) -> None:
        """Let go of the descriptor; may be called again."""
        fd, self._fd = self._fd, -1  # before it is closed: another thread may close, too
        if fd >= 0:
            os.close(fd)


class BpfLink:
    """An attachment. It ends with the descriptor unless it is pinned."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take over `fd`."""
        self._fd = fd

    def pin(self, path: Path) -> None:
        """Keep the attachment in force by a pin, from which it ends with unlinking."""
        _check(lib.na_bpf_pin(self._fd, os.fsencode(path)), f"pin a BPF link at {path}")

    def close(self) -> None:
        """Let go of the descriptor; may be called again."""
        fd, self._fd = self._fd, -1  # before it is closed: another thread may close, too
        if fd >= 0:
            os.close(fd)


class BpfObject:
    """An object file in the kernel: its maps made, its programs checked. Usable as a context manager."""

    def __init__(
        self,
        name: str,
        shared: Mapping[str, Path] | None = None,
        folder: Path = OBJECTS,
        *,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        """Load `name` from `folder`. Maps in `shared` are taken from a pin, or pinned there when they are new; new
        ones are made for as many entries as `limits` says.

        BpfError names the object, and the program with the verifier's last lines.
        """
        self.name = name
        path = folder / f"{name}.bpf.o"
        slot = ffi.new("na_bpf **")
        _check(lib.na_bpf_open(os.fsencode(path), slot), f"open BPF object {path}")
        self._object: Any = slot[0]
        try:
            for map_name, entries in (limits or {}).items():
                code = lib.na_bpf_limit_map(self._object, map_name.encode(), entries)
                _check(code, f"give map {map_name} of BPF object {name} room for {entries} entries")
            for map_name, pin in (shared or {}).items():
                code = lib.na_bpf_share_map(self._object, map_name.encode(), os.fsencode(pin))
                _check(code, f"share map {map_name} of BPF object {name} at {pin}")
            _check(lib.na_bpf_load(self._object), f"load BPF object {name}")
        except BpfError:
            self.close()
            raise

    def map(self, name: str, key_size: int, value_size: int) -> BpfMap:
        """One of its maps, with a descriptor of its own that outlives the object."""
        fd = _check(lib.na_bpf_map(self._object, name.encode()), f"find map {name} in {self.name}")
        return BpfMap(os.dup(fd), name, key_size, value_size)

    def attach(self, program: str, target: int) -> BpfLink:
        """Attach a program to what the descriptor `target` is: a cgroup's directory or a network namespace."""
        code = lib.na_bpf_attach(self._object, program.encode(), target)
        return BpfLink(_check(code, f"attach BPF program {program} of {self.name}"))

    def attach_netfilter(self, program: str, family: int, hook: int, priorities: Iterable[int]) -> BpfLink:
        """Attach a program to a hook (NF_INET_*) for a family (NFPROTO_*) of the calling thread's network namespace, by
        the first of the priorities that no other program has there."""
        code = -errno.EBUSY
        for priority in priorities:
            code = lib.na_bpf_attach_netfilter(self._object, program.encode(), family, hook, priority)
            if code != -errno.EBUSY:
                break
        return BpfLink(_check(code, f"attach BPF program {program} of {self.name}"))

    def attach_pinned(self, program: str, target: int, pin: Path) -> None:
        """Attach a program and pin the link. Where one is pinned already, which must be to the same target, its
        program is replaced: there is no moment without."""
        fd = lib.na_bpf_get(os.fsencode(pin))
        if fd >= 0:
            try:
                code = lib.na_bpf_replace(self._object, program.encode(), fd)
            finally:
                os.close(fd)
            _check(code, f"replace BPF program {program} of {self.name} at {pin}")
            return
        if fd != -errno.ENOENT:
            raise bpf_error(f"get the BPF link pinned at {pin}", fd)
        link = self.attach(program, target)
        try:
            link.pin(pin)
        finally:
            link.close()

    def iterate(self, program: str, over: BpfMap) -> bytes:
        """Run an iterator program over the elements of a map; what it has written."""
        fd = lib.na_bpf_iterate(self._object, program.encode(), over.fd)
        with os.fdopen(_check(fd, f"iterate over BPF map {over.name} by {program}"), "rb", 0) as iterator:
            return iterator.readall()

    def attempt(
        self, program: str, context: bytes = b"", packet: bytes = b"", *, times: int = 1
    ) -> tuple[int, bytes]:
        """Run a program with nothing attached (BPF_PROG_TEST_RUN): its verdict, and the context as it is then.
        BpfError where its type or the kernel cannot."""
        given, verdict = ffi.new("char[]", max(1, len(context))), ffi.new("uint32_t *")
        ffi.memmove(given, context, len(context))
        sizes = len(packet), len(context)
        code = lib.na_bpf_try(
            self._object, program.encode(), packet, sizes[0], given, sizes[1], times, verdict
        )
        _check(code, f"try BPF program {program} of {self.name}")
        return verdict[0], bytes(ffi.buffer(given))[: sizes[1]]

    def close(self) -> None:
        """Unload what is neither attached nor pinned; may be called again."""
        if self._object is not None:
            lib.na_bpf_close(self._object)
            self._object = None

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def pinned_map(pin: Path, key_size: int, value_size: int) -> BpfMap | None:
    """A map that is pinned, None if it is not there. BpfMap tells of the sizes."""
    fd = lib.na_bpf_get(os.fsencode(pin))
    if fd == -errno.ENOENT:
        return None
    return BpfMap(_check(fd, f"get the BPF map pinned at {pin}"), pin.name, key_size, value_size)


def pinned_map_of_any_size(pin: Path) -> BpfMap | None:
    """The same, of another version: with the sizes that it has."""
    found = pinned_map(pin, 0, 0)
    if found is None:
        return None
    lines = Path(f"/proc/self/fdinfo/{found.fd}").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    return BpfMap(found.fd, found.name, int(sizes["key_size"]), int(sizes["value_size"]))


def detach_pinned(pin: Path) -> None:
    """End a pinned attachment before this returns, and unpin it; nothing happens if it is not there. Unlinking alone
    ends it some time later."""
    fd = lib.na_bpf_get(os.fsencode(pin))
    if fd == -errno.ENOENT:
        return
    _check(fd, f"get the BPF link pinned at {pin}")
    try:
        code = lib.na_bpf_detach(fd)
    finally:
        os.close(fd)
    _check(code, f"detach the BPF link pinned at {pin}")
    pin.unlink(missing_ok=True)


def object_names() -> Iterable[str]:
    """The objects of this package."""
    return sorted(path.name.removesuffix(".bpf.o") for path in OBJECTS.glob("*.bpf.o"))


def possible_cpus() -> int:
    """How many CPUs a per-CPU value has room for."""
    return _check(lib.na_bpf_cpus(), "count the possible CPUs")


class ProgramTimes:
    """How long the programs of all agents on this machine run. The kernel counts while the `with` block lasts, which
    costs each run some time, part of which it counts, too (Linux 5.8): empty_run()."""

    _fd = -1

    def __enter__(self) -> ProgramTimes:
        self._fd = _check(lib.na_bpf_stats_begin(), "have the kernel count how long BPF programs run")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def empty_run(self) -> float:
        """Nanoseconds that are counted for a run of a program that does next to nothing, from many in a row; BpfError
        before Linux 5.14. Programs that run elsewhere meanwhile must be few."""
        with BpfObject("inbound") as programs:
            before = self.read()
            programs.attempt("inbound_lookup", _DATAGRAM, times=_EMPTY_RUNS)
            after = self.read()
        return (after[0] - before[0]) / (after[1] - before[1])

    def read(self) -> tuple[int, int]:
        """Nanoseconds and runs up to now, of programs that are still loaded."""
        names = [ffi.new("char[]", name.encode()) for name in _PROGRAM_PREFIXES]
        ns, runs = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        code = lib.na_bpf_run_time(ffi.new("char *[]", names), len(names), ns, runs)
        _check(code, "read how long BPF programs run")
        return ns[0], runs[0]
