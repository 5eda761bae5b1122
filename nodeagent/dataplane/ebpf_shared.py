"""Capture in a namespace that workloads share: each is a cgroup, outbound, and the ports that it declares, inbound.

Connections of a cgroup's processes go to a port that the agent has for this workload alone (bpf/outbound.bpf.c);
connections to a declared port go to the workload's listener (bpf/shared.bpf.c). The namespace itself, which is the
machine's, is touched as little as can be: no routing, no sysctls, and a ruleset that refuses raw sockets of these
cgroups only.

A workload has a slot, and by it its ports and listeners. Slots outlive the agent with what is pinned, and are found
again by the workload's uid, so that nobody gets the connections of another.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.dataplane.bpf import BpfMap, BpfObject, MapUsage
from nodeagent.dataplane.bpffs import make_folder
from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.ebpf_node import (
    GROUP_LEVELS,
    LISTENERS,
    OPEN,
    OWN_ADDRESSES,
    PORTS,
    RELEASED,
    SHARED,
    EbpfNode,
    GroupEntry,
    WorkloadEntry,
    flags_of,
    inbound_link,
    netns_cookie,
    sources,
)
from nodeagent.dataplane.listeners import bind_listener, duplicate, open_failed
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.nft import apply_ruleset, is_in_force, remove_ruleset
from nodeagent.dataplane.routing import read_addresses
from nodeagent.dataplane.ruleset import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, CaptureRules
from nodeagent.dataplane.share import NamespaceShare, Share
from nodeagent.errors import BpfError, NetnsError, NftError
from nodeagent.snapshot.address import widen_address

logger = logging.getLogger(__name__)

# bpf/include/nodeagent_abi.h
WORKLOADS: Final = 128
PORT_BASE: Final = 15200
CLOSED: Final = 1
_KINDS: Final = {OUTBOUND_PORT: 0, INBOUND_PORT: 1, HBONE_PORT: 2}
"""enum na_shared_listener, by the port at which the engine believes to listen."""
_PORT_KEY: Final = struct.Struct("=16sH6x")
_PORT: Final = struct.Struct("=QII")
_ANY: Final = bytes(16)
_PROGRAM: Final = "shared_lookup"


def own_port(kind: int, slot: int) -> int:
    """Where the agent listens for a slot: NA_PORT_SHARED_*."""
    return PORT_BASE + kind * WORKLOADS + slot


@dataclass(frozen=True, slots=True)
class _Port:
    """struct na_shared_port."""

    owner: int
    listener: int
    flags: int = 0


@dataclass(slots=True)
class _Member:
    """A workload of the namespace."""

    share: Share
    slot: int
    hbone: bool = False
    applied: bool = False
    released: bool = False
    open: bool = False
    group: Cgroup | None = None
    """Where its cgroup was when it was last looked for."""

    def cgroup_id(self) -> int:
        """Of its cgroup as it is now; 0: there is none."""
        try:
            return self.group.directory.stat().st_ino if self.group is not None else 0
        except FileNotFoundError:
            return 0


class SharedNamespace:
    """What the workloads of one namespace have together. Safe for several threads."""

    def __init__(self, node: EbpfNode, namespace: NetworkNamespace, rules: CaptureRules) -> None:
        """Finds what an earlier agent has pinned. `rules` are of the agent; DataplaneError if the kernel refuses."""
        self.cookie = netns_cookie(namespace)
        self._node = node
        self._rules = rules
        self._namespace = NetworkNamespace.duplicate(namespace.fd)
        self._lock = threading.Lock()
        self._members: dict[int, _Member] = {}
        with self._object() as shared:
            self.ports: BpfMap = shared.map(PORTS, _PORT_KEY.size, _PORT.size)
        self._slots = {entry.owner: entry.slot for entry in node.groups(self.cookie).values()}
        """By owner, of this run and of an earlier one."""
        self._slots |= {port.owner: port.listener % WORKLOADS for _, port in self._all_ports()}

    def _object(self) -> BpfObject:
        folder = self._node.namespace_folder(self.cookie)
        make_folder(folder)
        pins = {
            "counters": self._node.map_pin("counters"),
            LISTENERS: folder / LISTENERS,
            PORTS: folder / PORTS,
        }
        return BpfObject("shared", pins)

    def _all_ports(self) -> Iterator[tuple[bytes, _Port]]:
        for key in list(self.ports):
            raw = self.ports.get(key)
            if raw is not None:
                yield key, _Port(*_PORT.unpack(raw))

    # -- listeners --

    def open(self, share: Share, port: int, workers: int) -> list[int]:
        """As an Opener. None for HBONE where another workload has it at the same address: a tunnel's server must say
        who it is before it is asked for a port."""
        kind = _KINDS[port]
        with self._lock:
            member = self._member(share)
            if kind == _KINDS[HBONE_PORT] and not self._may_have_tunnels(member):
                return []
            number = own_port(kind, member.slot)
            try:
                listener = self._namespace.run(lambda: bind_listener(number, transparent=True))
            except OSError as error:
                raise open_failed(number, error) from error
            try:
                self._announce(kind * WORKLOADS + member.slot, listener)
            except BpfError:
                listener.close()
                raise
        return duplicate(listener, number, workers)

    def _member(self, share: Share) -> _Member:
        member = self._members.get(share.owner)
        if member is None:
            member = self._members[share.owner] = _Member(share, self._free_slot(share))
        member.share = share  # what is its may be something else than before
        return member

    def _free_slot(self, share: Share) -> int:
        if share.owner not in self._slots:
            free = set(range(WORKLOADS)).difference(self._slots.values())
            if not free:
                raise NetnsError(f"{share.uid}: {WORKLOADS} workloads share the namespace already, the limit")
            self._slots[share.owner] = min(free)
        return self._slots[share.owner]

    def _may_have_tunnels(self, member: _Member) -> bool:
        wanted = set(member.share.addresses or [_ANY])
        for other in self._members.values():
            if (
                other is not member
                and other.applied
                and other.hbone
                and wanted & set(other.share.addresses or [_ANY])
            ):
                logger.warning(
                    "workload %s takes no HBONE: %s has port %d at the same address; give them addresses of their own",
                    member.share.uid, other.share.uid, HBONE_PORT,
                )  # fmt: skip
                member.hbone = False
                return False
        member.hbone = True
        return True

    def _announce(self, key: int, listener: socket.socket) -> None:
        with self._object() as shared:
            listeners = shared.map(LISTENERS, 4, 8)
        try:
            self._node.put(listeners, struct.pack("=I", key), struct.pack("=Q", listener.fileno()))
        finally:
            listeners.close()

    # -- states of capture.py --

    def apply(self, share: Share, *, open_: bool) -> None:
        """Capture; also after its cgroup came, went or was made anew. BpfError if a port is another workload's. `open_`
        as of set_open()."""
        with self._lock:
            member = self._member(share)
            self._check_ports(member)
            member.group = _existing(self._node, share)
            member.applied, member.released, member.open = True, False, open_
            # Its processes may be connecting already.
            self._put_namespace()
            self._put_group(member)
            self._put_ports(member)
            with self._object() as shared:
                shared.attach_pinned(
                    _PROGRAM, self._namespace.fd, inbound_link(self._node.namespace_folder(self.cookie))
                )
            self._put_ruleset()

    def set_open(self, share: Share, open_: bool) -> None:
        """Whether connections pass while the agent has no listener."""
        with self._lock:
            member = self._member(share)
            changes, member.open = member.open != open_, open_
            if changes and member.applied:
                self._put_ports(member)
                self._put_group(member)
                self._put_ruleset()

    def release(self, share: Share) -> None:
        """Capture no new connections."""
        with self._lock:
            member = self._member(share)
            member.released = True
            self._put_group(member)
            self._put_ports(member)
            self._put_ruleset()

    def remove(self, share: Share) -> bool:
        """Leave nothing of a workload behind; whether it was the last one, and nothing of the namespace is either."""
        with self._lock:
            self._members.pop(share.owner, None)
            self._slots.pop(share.owner, None)
            self._drop_entries(lambda owner: owner == share.owner)
            if any(each.applied for each in self._members.values()) or set(self._slots).difference(
                self._members
            ):
                self._put_namespace()
                self._put_ruleset()
                return False
            remove_ruleset(self._namespace)
            self.close()
            self._node.forget(self.cookie)
            return True

    def settle(self, keep: Collection[int]) -> int:
        """Forget workloads of an earlier agent that are not among these owners; returns how many they were."""
        with self._lock:
            gone = set(self._slots).difference(keep)
            self._drop_entries(gone.__contains__)
            for owner in gone:
                del self._slots[owner]
            return len(gone)

    def in_force(self, share: Share) -> bool:
        """Whether the captured state is there."""
        with self._lock:
            member = self._member(share)
            cgroup = member.cgroup_id()
            known = not cgroup or cgroup in self._node.groups(self.cookie)
            link = inbound_link(self._node.namespace_folder(self.cookie))
            return (
                member.applied and known and link.exists() and is_in_force(self._namespace, self._ruleset())
            )

    def close(self) -> None:
        """Let go; capture stays."""
        self.ports.close()
        self._namespace.close()

    # -- what is written --

    def _check_ports(self, member: _Member) -> None:
        for key in self._wanted_ports(member):
            raw = self.ports.get(key)
            if raw is None or _Port(*_PORT.unpack(raw)).owner in (member.share.owner, 0):
                continue
            other = self._members.get(_Port(*_PORT.unpack(raw)).owner)
            if other is not None:
                port = _PORT_KEY.unpack(key)[1]
                raise BpfError(
                    f"{member.share.uid}: port {port} is {other.share.uid}'s already, at the same address"
                )

    def _wanted_ports(self, member: _Member) -> dict[bytes, _Port]:
        share, slot = member.share, member.slot
        wanted = {
            _PORT_KEY.pack(_ANY, own_port(kind, slot)): _Port(
                share.owner, kind * WORKLOADS + slot, 0 if kind == _KINDS[OUTBOUND_PORT] else CLOSED
            )
            for kind in _KINDS.values()
        }
        if member.released:
            return wanted
        flags = OPEN if member.open else 0
        for address in share.addresses or (_ANY,):
            for port in share.ports:
                inbound = _KINDS[INBOUND_PORT] * WORKLOADS + slot
                wanted[_PORT_KEY.pack(address, port)] = _Port(share.owner, inbound, flags)
            if member.hbone:
                tunnels = _KINDS[HBONE_PORT] * WORKLOADS + slot
                wanted[_PORT_KEY.pack(address, HBONE_PORT)] = _Port(share.owner, tunnels)
        return wanted

    def _put_ports(self, member: _Member) -> None:
        wanted = self._wanted_ports(member)
        for key, port in wanted.items():
            self._node.put(self.ports, key, _PORT.pack(port.owner, port.listener, port.flags))
        for key, port in self._all_ports():
            if port.owner == member.share.owner and key not in wanted:
                self.ports.discard(key)

    def _put_group(self, member: _Member) -> None:
        """Under the id that its cgroup has now; one that is made anew has another."""
        cgroup = member.cgroup_id()
        if cgroup:
            flags = (OPEN if member.open else 0) | (RELEASED if member.released else 0)
            entry = GroupEntry(member.share.owner, member.slot, flags, *sources(member.share.addresses))
            self._node.put_group(self.cookie, cgroup, entry)
        for other, entry in self._node.groups(self.cookie).items():
            if entry.owner == member.share.owner and other != cgroup:
                self._node.drop_group(self.cookie, other)

    def _put_namespace(self) -> None:
        levels = sum({1 << group.level for group in self._groups()})
        addresses = [widen_address(raw) for raw in read_addresses(self._namespace)]
        own = tuple(address for address in addresses if address[:2] != b"\xfe\x80")[:OWN_ADDRESSES]
        entry = WorkloadEntry(self._node.group_id, self._node.group_level, SHARED, own, levels)
        self._node.put(self._node.workloads, struct.pack("=Q", self.cookie), entry.pack())

    def _groups(self) -> list[Cgroup]:
        return [member.group for member in self._members.values() if member.group is not None]

    def _ruleset(self) -> CaptureRules:
        guarded = [
            member.group
            for member in self._members.values()
            if member.group is not None
            and not (member.released or member.open)
            and member.group.directory.is_dir()
        ]
        return replace(self._rules, steered=True, groups=tuple(guarded))

    def _put_ruleset(self) -> None:
        try:
            apply_ruleset(self._namespace, self._ruleset())
        except NftError:
            # A cgroup may have gone in between; its rule would be for nobody.
            apply_ruleset(self._namespace, self._ruleset())

    def _drop_entries(self, concerns: Callable[[int], bool]) -> None:
        for cgroup, entry in self._node.groups(self.cookie).items():
            if concerns(entry.owner):
                self._node.drop_group(self.cookie, cgroup)
        for key, port in self._all_ports():
            if concerns(port.owner):
                self.ports.discard(key)


def _existing(node: EbpfNode, share: Share) -> Cgroup | None:
    """Its cgroup if it is there; BpfError if the programs could not tell it, or it is the agent's own."""
    group = share.group()
    if group.level > GROUP_LEVELS:
        raise BpfError(f"{share.uid}: cgroup {share.cgroup} is deeper than {GROUP_LEVELS} levels")
    try:
        cgroup = group.directory.stat().st_ino
    except FileNotFoundError:
        return None
    if cgroup == node.group_id:
        raise BpfError(f"{share.uid}: cgroup {share.cgroup} is the agent's own")
    return group


class SharedCapture:
    """Capture of one workload that shares its namespace (a CapturedWorkload)."""

    def __init__(self, namespaces: SharedNamespaces, namespace: NamespaceShare) -> None:
        self._namespaces = namespaces
        self._namespace = namespace
        self._open = False

    @property
    def cookie(self) -> int:
        """The namespace is not this workload's alone."""
        return 0

    def _shared(self) -> SharedNamespace:
        return self._namespaces.of(self._namespace)

    def apply(self) -> None:
        """Capture. DataplaneError if the kernel refuses."""
        self._shared().apply(self._namespace.share, open_=self._open)

    def set_open(self, open_: bool) -> None:
        """Whether connections pass while the agent has no listener. It stays so by apply()."""
        self._open = open_
        self._shared().set_open(self._namespace.share, open_)

    def release(self) -> None:
        """Capture no new connections."""
        self._shared().release(self._namespace.share)

    def remove(self) -> None:
        """Leave nothing behind."""
        self._namespaces.remove(self._namespace)

    def in_force(self) -> bool:
        """Whether what apply() did is still there."""
        return self._shared().in_force(self._namespace.share)


class SharedNamespaces:
    """All namespaces that workloads of this agent share."""

    def __init__(self, node: EbpfNode, rules: CaptureRules) -> None:
        self._node = node
        self._rules = rules
        self._lock = threading.Lock()
        self._namespaces: dict[int, SharedNamespace] = {}

    def of(self, namespace: NetworkNamespace) -> SharedNamespace:
        """The one behind a namespace."""
        with self._lock:
            found = self._namespaces.get(namespace.inode)
            if found is None:
                found = self._namespaces[namespace.inode] = SharedNamespace(
                    self._node, namespace, self._rules
                )
            return found

    def remove(self, namespace: NamespaceShare) -> None:
        """Leave nothing of a workload behind."""
        shared = self.of(namespace)
        with self._lock:
            if shared.remove(namespace.share):
                del self._namespaces[namespace.inode]

    def settle(self, shares: Collection[NamespaceShare]) -> int:
        """These are all workloads that there are; returns how many of an earlier agent are forgotten, of those in
        namespaces that are still shared. To be called before the others are forgotten."""
        if not shares:
            self._end_own()
        with self._lock:
            keep = {each.share.owner for each in shares}
            return sum(shared.settle(keep) for shared in self._namespaces.values())

    def _end_own(self) -> None:
        """Take away the ruleset that an earlier agent has left in this namespace, where it had workloads."""
        with NetworkNamespace.open("/proc/thread-self/ns/net") as own:
            entry = self._node.workloads.get(struct.pack("=Q", netns_cookie(own)))
            if entry is not None and flags_of(entry) & SHARED:
                remove_ruleset(own)

    def maps(self) -> list[MapUsage]:
        """What the ports take, if any namespace is shared."""
        with self._lock:
            ports = [shared.ports for shared in self._namespaces.values()]
            return [self._node.ports_usage(ports)] if ports else []

    def close(self) -> None:
        """Let go; capture stays."""
        with self._lock:
            for shared in self._namespaces.values():
                shared.close()
            self._namespaces.clear()
