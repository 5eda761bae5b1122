"""The BPF programs of a node's capture, shared by its workloads: attached once, pinned, and found again.

Below one folder on a bpf filesystem, in a folder by the version of the ABI:

    maps/           workloads, groups, destinations, original, counters, liveness; those of ebpf_dns.py and
                    bypass_maps.py
    links/          connect4 and the others, at the root of the cgroup hierarchy
    netns/COOKIE/   what one workload's namespace has (ebpf_capture.py)

Pins outlive the agent: capture stays, and without an agent's listeners it refuses. The next agent takes the
maps over and replaces the programs in their links, so that there is no moment without. What only the living
agent needs (its getsockopt hook) ends with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import (
    BpfLink,
    BpfMap,
    BpfObject,
    MapUsage,
    detach_pinned,
    pinned_map,
    possible_cpus,
)
from nodeagent.dataplane.bpffs import ensure_bpffs, lock_folder, make_folder, remove_pins
from nodeagent.dataplane.bypass_layout import ENDS_SIZE, Here
from nodeagent.dataplane.bypass_maps import (
    INBOUND,
    LASTING,
    NO_ROOM,
    PER_LIFE,
    BypassLimits,
    BypassMaps,
    end_life,
    name_namespace,
)
from nodeagent.dataplane.cgroup import Cgroup, find_mount
from nodeagent.dataplane.datagrams import SOCKET_MAPS, Datagrams, detach_datagrams, lookup_link
from nodeagent.dataplane.device_watch import DeviceWatch
from nodeagent.dataplane.ebpf_dns import EbpfDns, detach_dns
from nodeagent.dataplane.liveness import LIVENESS, Liveness
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.other_abi import end_flows_of, restore_sysctls, workloads_of
from nodeagent.dataplane.raw_guard import RawGuard, detach_raw_guard
from nodeagent.errors import BpfError, BpfMapFullError, CapabilityError

# bpf/include/nodeagent_abi.h
ABI: Final = 4
OWN_ADDRESSES: Final = 16
RELEASED: Final = 1
DNS: Final = 4
SHARED: Final = 8
OPEN: Final = 16
GROUP_LEVELS: Final = 16
COUNTERS: Final = (
    "captured",
    "no_storage",
    "no_flow",
    "steered",
    "no_listener",
    "bypassed",
    "denied",
    "no_bypass",
    "no_event",
    "raw",
    "withdrawn",
    "astray",
    "no_client",
)
_ENTRY: Final = struct.Struct("=QII16s16s256sI4x")
_GROUP_KEY: Final = struct.Struct("=QQ")
_GROUP: Final = struct.Struct("=QII16s16s")
_COOKIE: Final = struct.Struct("=Q")
_FLOW_SIZE: Final = 32
_DESTINATION_SIZE: Final = 24
_ORIGINAL_SIZE: Final = 40

SHARED_MAPS: Final = (
    "workloads",
    "groups",
    "original",
    "destinations",
    "clients",
    "calls",
    "counters",
    LIVENESS,
    *LASTING,
    *PER_LIFE,
)
INBOUND_MAPS: Final = ("calls", "counters", LIVENESS, *INBOUND)
"""Those that listener lookup in workloads' namespaces has, too."""
LISTENERS: Final = "listeners"
GUARDED: Final = "guarded"
PORTS: Final = "ports"
"""Of a namespace that workloads share."""
_HOOKS: Final = (
    "outbound_sockops",
    "outbound_getpeername4",
    "outbound_getpeername6",
    "outbound_connect4",
    "outbound_connect6",
)
"""Programs at the root, in the order in which they are attached: those that redirect come last."""
_AGENT_HOOKS: Final = (
    "agent_getsockopt",
    "agent_bind4",
    "agent_bind6",
    "agent_getsockname4",
    "agent_getsockname6",
)
"""Programs in the agent's own cgroup, which end with it."""
LOCK_SECONDS: Final = 6.0
"""How long a predecessor may take to drain and end."""
_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h, Linux 5.14
_ROOT_INODE: Final = 1  # of the hierarchy's real root; a cgroup namespace has another group there


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    """What the programs know of a workload: whose connections are the agent's (a cgroup by id and depth), and
    the workload's own addresses, 16 bytes each."""

    agent_cgroup: int
    agent_level: int
    flags: int = 0
    addresses: tuple[bytes, ...] = field(default=())
    group_levels: int = 0
    """Of a namespace that is shared: bit N for a workload that is a cgroup of level N."""

    def pack(self) -> bytes:
        """As struct na_workload_entry; BpfError if there are more than OWN_ADDRESSES."""
        if len(self.addresses) > OWN_ADDRESSES:
            raise BpfError(
                f"the workload has {len(self.addresses)} addresses, and capture by eBPF knows {OWN_ADDRESSES} at "
                "most; use --capture nft"
            )
        own = b"".join(self.addresses)
        head = (self.agent_cgroup, self.agent_level, self.flags)
        return _ENTRY.pack(*head, *sources(self.addresses), own, self.group_levels)


def sources(addresses: Iterable[bytes]) -> tuple[bytes, bytes]:
    """The addresses that captured connections come from, one of each family; zeros where there is none."""
    mapped: list[bytes] = []
    others: list[bytes] = []
    for address in addresses:
        (mapped if address.startswith(bytes(10) + b"\xff\xff") else others).append(address)
    source6 = next((address for address in others if address[:2] != b"\xfe\x80"), bytes(16))
    return mapped[0] if mapped else bytes(16), source6


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """What the programs know of a workload that is a cgroup (struct na_group)."""

    owner: int
    slot: int
    flags: int = 0
    source4: bytes = bytes(16)
    source6: bytes = bytes(16)

    def pack(self) -> bytes:
        """As struct na_group."""
        return _GROUP.pack(self.owner, self.slot, self.flags, self.source4, self.source6)

    @classmethod
    def unpack(cls, raw: bytes) -> GroupEntry:
        """Of struct na_group."""
        return cls(*_GROUP.unpack(raw))


def pinned_workloads(pins: Path) -> BpfMap | None:
    """The map of workloads that an agent of this version has pinned; None if there is none."""
    return pinned_map(pins / f"v{ABI}" / "maps" / "workloads", _COOKIE.size, _ENTRY.size)


def flags_of(entry: bytes) -> int:
    """The flags of a packed entry."""
    return int(_ENTRY.unpack(entry)[2])


def netns_cookie(namespace: NetworkNamespace) -> int:
    """What BPF programs know the namespace by; unique while the machine runs. Blocks."""

    def read() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            return int(_COOKIE.unpack(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])

    try:
        return namespace.run(read)
    except OSError as error:
        raise CapabilityError("the kernel has no netns cookies; they came with Linux 5.14") from error


def root_of_cgroups() -> Path:
    """The root of the hierarchy, which no process can leave; CapabilityError if it cannot be seen from here."""
    mount = find_mount(Path("/proc/mounts").read_text())
    if mount.stat().st_ino != _ROOT_INODE:
        raise CapabilityError(
            f"{mount} is not the root of the cgroup hierarchy but that of a cgroup namespace; give the agent's "
            "container the host's cgroups (hostPath /sys/fs/cgroup, and no cgroup namespace of its own)"
        )
    return mount


class EbpfNode:
    """The shared programs and maps of one agent; `pins` is its folder on a bpf filesystem.

    start() before anything else. Not for several threads at once, except what EbpfCapture calls: each
    workload's entry is a thread's own.
    """

    def __init__(
        self, pins: Path, group: Cgroup, *, dns: bool = False, limits: BypassLimits | None = None
    ) -> None:
        """`group` is the agent's, and not the root, which holds everyone. `dns`: name servers are captured, too.
        `limits` of what passes the engine are as usual where none are given."""
        assert group.level > 0
        self.folder = pins / f"v{ABI}"
        self.group_id = group.directory.stat().st_ino
        self.group_level = group.level
        self._pins = pins
        self._group = group
        self._limits = limits or BypassLimits()
        self._lock = -1
        self.dns = EbpfDns(self.folder) if dns else None
        self._hooks: list[BpfLink] = []
        self._workloads: BpfMap | None = None
        self._groups: BpfMap | None = None
        self._counters: BpfMap | None = None
        self._liveness: Liveness | None = None
        self._bypass: BypassMaps | None = None
        self.raw_guard: RawGuard | None = None
        self.devices = DeviceWatch()
        """Of captured namespaces."""
        self.bypass_lacks = ""
        """Why no connection may pass the engine on this machine; "" if they may."""
        self._unread: list[BpfMap] = []  # maps of which only the size is asked
        self._full: Counter[str] = Counter()
        self._full_lock = threading.Lock()

    def start(self) -> None:
        """Load, attach and pin, or take over what an earlier agent has pinned. Blocks for some milliseconds.

        CapabilityError or BpfError if this kernel or this container cannot; nothing new is attached then.
        """
        ensure_bpffs(self._pins)
        root = root_of_cgroups()
        self._lock = lock_folder(self._pins, LOCK_SECONDS)
        for name in ("maps", "links", "netns"):
            make_folder(self.folder / name)
        try:
            end_life(self.folder / "maps", self._limits)
            shared = self.map_pins(SHARED_MAPS)
            with BpfObject("outbound", shared, limits=self._limits.entries()) as outbound:
                for name, maps in (("inbound", INBOUND_MAPS), ("shared", ("counters",))):
                    with BpfObject(name, self.map_pins(maps)):
                        """Its programs are checked now: a workload must not be the first to find out."""
                self._open_maps(outbound)
                self._attach(outbound, root)
                self._liveness = Liveness(outbound)
        except BaseException:
            self.close()
            raise
        self._load_raw_guard()

    def _load_raw_guard(self) -> None:
        try:
            self.raw_guard = RawGuard(self.map_pins(("counters",)))
        except BpfError as error:
            self.bypass_lacks = f"raw sockets need a guard of Linux 6.4: {str(error).splitlines()[0]}"

    def map_pin(self, name: str) -> Path:
        """Where a shared map is pinned."""
        return self.folder / "maps" / name

    def map_pins(self, names: Iterable[str]) -> dict[str, Path]:
        """Shared maps and where they are pinned."""
        return {name: self.map_pin(name) for name in names}

    def _open_maps(self, outbound: BpfObject) -> None:
        self._workloads = outbound.map("workloads", _COOKIE.size, _ENTRY.size)
        self._groups = outbound.map("groups", _GROUP_KEY.size, _GROUP.size)
        self._counters = outbound.map("counters", 4, 8 * possible_cpus())
        self._unread = [
            outbound.map("destinations", _FLOW_SIZE, _DESTINATION_SIZE),
            outbound.map("calls", ENDS_SIZE, _DESTINATION_SIZE),
            outbound.map("original", 4, _ORIGINAL_SIZE),
            outbound.map("clients", 4, _DESTINATION_SIZE),
        ]
        self._bypass = BypassMaps.of(outbound)

    def _attach(self, outbound: BpfObject, root: Path) -> None:
        group = os.open(self._group.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._hooks = [outbound.attach(program, group) for program in _AGENT_HOOKS]
        finally:
            os.close(group)
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for program in _HOOKS:
                outbound.attach_pinned(program, top, self.folder / "links" / program)
            self._attach_dns(top)
        finally:
            os.close(top)

    def _attach_dns(self, top: int) -> None:
        if self.dns is None:
            detach_dns(self.folder)
            return
        group = os.open(self._group.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.dns.start(top, group)
        finally:
            os.close(group)

    # -- agents with another ABI --

    def _other_versions(self) -> list[Path]:
        """What they have pinned. It captures, and refuses for want of their listeners, what is not taken from them."""
        return [each for each in self._pins.glob("v*") if each != self.folder]

    def take_over(self, cookie: int, namespace: NetworkNamespace) -> None:
        """Take a namespace that these programs capture from those of other versions. What has passed the engine there
        ends, and sysctls return to what they were."""
        for version in self._other_versions():
            end_flows_of(version, (namespace,))
            restore_sysctls(version, cookie, namespace)
            workloads = workloads_of(version)
            if workloads is not None:
                workloads.discard(_COOKIE.pack(cookie))
                workloads.close()
            _remove_namespace(version / "netns" / f"{cookie:x}")

    # -- workloads --

    @property
    def workloads(self) -> BpfMap:
        """Cookie (8 bytes) to packed WorkloadEntry."""
        assert self._workloads is not None, "start() comes first"
        return self._workloads

    # -- workloads that are cgroups --

    def groups(self, cookie: int) -> dict[int, GroupEntry]:
        """Those of a namespace, by the id of the cgroup."""
        assert self._groups is not None, "start() comes first"
        found = {}
        for key in self._groups:
            namespace, cgroup = _GROUP_KEY.unpack(key)
            raw = self._groups.get(key) if namespace == cookie else None
            if raw is not None:
                found[cgroup] = GroupEntry.unpack(raw)
        return found

    def put_group(self, cookie: int, cgroup: int, entry: GroupEntry) -> None:
        """Let connections of a cgroup, in that namespace, be a workload's; BpfMapFullError if there is no room."""
        assert self._groups is not None, "start() comes first"
        self.put(self._groups, _GROUP_KEY.pack(cookie, cgroup), entry.pack())

    def drop_group(self, cookie: int, cgroup: int) -> None:
        """Let connections of a cgroup be nobody's."""
        assert self._groups is not None, "start() comes first"
        self._groups.discard(_GROUP_KEY.pack(cookie, cgroup))

    # -- what all have --

    def bypass_maps(self) -> BypassMaps:
        """The maps by which connections within the node pass the engine, empty after start()."""
        assert self._bypass is not None, "start() comes first"
        return self._bypass

    def datagrams(self) -> Datagrams:
        """Programs for UDP, which do nothing before they have been told something. BpfError if this kernel cannot."""
        shared = self.map_pins(("workloads", *SOCKET_MAPS))
        return Datagrams(self.folder, root_of_cgroups(), self.group_id, shared, self.count_full)

    def end_datagrams(self) -> None:
        """Leave UDP alone, whatever an earlier agent did."""
        detach_datagrams(self.folder)

    def name_namespace(self, cookie: int, life: int, workload: int) -> None:
        """Say which workload (the engine's number) a captured namespace is, in a life of the agent; before others are
        sent there past the engine."""
        name_namespace(self.namespace_folder(cookie), Here(life, workload))

    def put(self, where: BpfMap, key: bytes, value: bytes) -> None:
        """Write to a map; BpfMapFullError, which is counted, if it has no room."""
        try:
            where[key] = value
        except BpfMapFullError:
            self.count_full(where.name, 1)
            raise

    def count_full(self, name: str, entries: int) -> None:
        """Count entries that a map has no room for."""
        with self._full_lock:
            self._full[name] += entries

    def sweep(self, keep: Iterable[int]) -> int:
        """Forget the workloads that are not in `keep` (cookies), which went while no agent ran, and what agents with
        another ABI have captured; returns how many these workloads were."""
        kept = {_COOKIE.pack(cookie) for cookie in keep}
        gone = {key for key in self.workloads if key not in kept}
        for key in gone:
            self.forget(_COOKIE.unpack(key)[0])
        for entry in list((self.folder / "netns").iterdir()):
            if _COOKIE.pack(int(entry.name, 16)) not in kept:
                _remove_namespace(entry)
        for version in self._other_versions():
            _remove_version(version)
        return len(gone)

    def forget(self, cookie: int) -> None:
        """Take a workload out of capture, with what is pinned for its namespace."""
        self.workloads.discard(_COOKIE.pack(cookie))
        for cgroup in self.groups(cookie):
            self.drop_group(cookie, cgroup)
        _remove_namespace(self.namespace_folder(cookie))

    def namespace_folder(self, cookie: int) -> Path:
        """Where what a namespace has is pinned."""
        return self.folder / "netns" / f"{cookie:x}"

    def counters(self) -> dict[str, int]:
        """What the programs have counted since they were first loaded (enum na_bpf_counter)."""
        assert self._counters is not None, "start() comes first"
        found = {}
        for index, name in enumerate(COUNTERS):
            value = self._counters.get(struct.pack("=I", index)) or b""
            found[name] = sum(struct.unpack(f"={len(value) // 8}Q", value))
        return found

    def maps(self) -> list[MapUsage]:
        """What the maps take; those of listeners, one a workload, together."""
        assert self._counters is not None, "start() comes first"
        assert self._groups is not None
        destinations, calls, original, clients = self._unread
        bypass = self.bypass_maps()
        passing = self._limits != NO_ROOM
        full = (self.workloads, self._groups, destinations, calls, *(bypass.counted() if passing else ()))
        found = [self._usage(each, counted=True) for each in full]
        rest = (original, clients, self._counters, *((bypass.redirected, bypass.events) if passing else ()))
        found += [self._usage(each, counted=False) for each in rest]
        return [*found, self._listeners()]

    def _usage(self, each: BpfMap, *, counted: bool) -> MapUsage:
        memory, limit = each.memory_and_limit()
        if not counted:
            return MapUsage(each.name, memory)
        return MapUsage(each.name, memory, each.count(), limit, self._full[each.name])

    def _listeners(self) -> MapUsage:
        folders = list((self.folder / "netns").iterdir())
        shared = [folder for folder in folders if (folder / PORTS).exists()]
        memory = sum(_memory_of(folder / LISTENERS) for folder in shared)
        own = [folder for folder in folders if folder not in shared]
        # All are the same size: a workload that goes just now is no matter.
        memory += len(own) * _memory_of(own[0] / LISTENERS) if own else 0
        return MapUsage(LISTENERS, memory, full=self._full[LISTENERS])

    def ports_usage(self, maps: Iterable[BpfMap]) -> MapUsage:
        """What the maps of ports take, one of each shared namespace, together."""
        found = [self._usage(each, counted=True) for each in maps]
        memory, entries, limit = (
            sum(values)
            for values in zip(
                *((each.memory, each.entries or 0, each.limit or 0) for each in found), strict=True
            )
        )
        return MapUsage(PORTS, memory, entries, limit, self._full[PORTS])

    def close(self) -> None:
        """Let go. While workloads are enrolled capture stays, and refuses until an agent runs again; after
        the last one nothing stays."""
        self.devices.close()
        # Also when start() has failed: what an earlier agent captured stays so until another mode has taken it over.
        workloads = self._workloads or pinned_workloads(self._pins)
        idle = not self._other_versions() and (workloads is None or not any(True for _ in workloads))
        shared = (workloads, self._groups, self._counters, self._bypass, *self._unread)
        for each in (self.dns, self.raw_guard, self._liveness, *self._hooks, *shared):
            if each is not None:
                each.close()
        self._liveness = self.raw_guard = self._bypass = None
        self._hooks = []
        self._workloads = self._groups = self._counters = None
        self._unread = []
        if idle and self._lock >= 0:
            unload(self._pins)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _memory_of(pin: Path) -> int:
    """What a pinned map of listeners takes; 0 if it is not there."""
    listeners = pinned_map(pin, 4, 8)
    if listeners is None:
        return 0
    try:
        return listeners.memory_and_limit()[0]
    finally:
        listeners.close()


def inbound_link(folder: Path) -> Path:
    """Where a namespace's attachment is pinned."""
    return folder / "link"


def _remove_namespace(folder: Path) -> None:
    detach_pinned(lookup_link(folder))
    detach_pinned(inbound_link(folder))
    detach_raw_guard(folder)
    remove_pins(folder)


def _remove_version(folder: Path) -> None:
    # First what redirects: with its maps it would still find workloads.
    detach_datagrams(folder)
    detach_dns(folder)
    for name in reversed(_HOOKS):
        detach_pinned(folder / "links" / name)
    for entry in list((folder / "netns").glob("*")):
        _remove_namespace(entry)
    remove_pins(folder)


def unload(pins: Path) -> None:
    """End all capture that is pinned below a folder, and leave nothing of it; nothing happens if there is
    none. What else is pinned there is its owner's (direct.py)."""
    for version in pins.glob("v*"):
        _remove_version(version)
    with contextlib.suppress(OSError):
        pins.rmdir()
