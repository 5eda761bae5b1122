"""Capture of one workload's traffic by eBPF: connect() outbound, listener lookup inbound; no NAT, no conntrack.

The same three states as capture.py's. Besides the programs a namespace has a route (routing.py), and a ruleset that
translates nothing: it refuses what connect() does not see where no program can, and has what comes from behind the
workload, if anything can, led to the agent (ruleset.py).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import BpfMap, BpfObject, detach_pinned
from nodeagent.dataplane.bpffs import lock_folder, make_folder
from nodeagent.dataplane.bypass_maps import HERE
from nodeagent.dataplane.datagrams import lookup_link
from nodeagent.dataplane.ebpf_node import (
    DNS,
    GUARDED,
    INBOUND_MAPS,
    LISTENERS,
    OPEN,
    RELEASED,
    EbpfNode,
    WorkloadEntry,
    flags_of,
    inbound_link,
    netns_cookie,
    unload,
)
from nodeagent.dataplane.ebpf_shared import SharedNamespaces
from nodeagent.dataplane.listeners import (
    bind_dns,
    bind_listener,
    duplicate,
    open_dns_sockets,
    open_failed,
    open_listeners,
)
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.nft import apply_ruleset, is_in_force, remove_ruleset
from nodeagent.dataplane.other_abi import end_flows_of, restore_sysctls
from nodeagent.dataplane.raw_guard import detach_raw_guard, is_raw_guarded
from nodeagent.dataplane.routing import (
    apply_steered_routing,
    may_send_through,
    read_addresses,
    read_devices,
    remove_routing,
)
from nodeagent.dataplane.ruleset import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, CaptureRules
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.errors import DataplaneError, NetnsError
from nodeagent.snapshot.address import widen_address

# bpf/include/nodeagent_abi.h: NA_LISTENER_KEY_*, NA_GUARD_*
_OUTBOUND_KEY: Final = 0
_HBONE_KEY: Final = 0x80000000
_DNS_KEYS: Final = {socket.AF_INET: 0x80000001, socket.AF_INET6: 0x80000002}
_GUARD_HBONE: Final = 1
_GUARD_DNS: Final = 2
_PROGRAM: Final = "inbound_lookup"
_OPEN_PROGRAM: Final = "inbound_lookup_open"


class EbpfCapture:
    """Owner of what capture puts into one namespace, which stays the caller's. Safe for several threads, as
    capture.Capture."""

    def __init__(self, node: EbpfNode, namespace: NetworkNamespace, rules: CaptureRules) -> None:
        """`rules` are steered ones (CaptureRules.steered)."""
        self._node = node
        self._namespace = namespace
        self._rules = rules
        self._cookie = netns_cookie(namespace)
        self._key = struct.pack("=Q", self._cookie)
        self._folder = node.namespace_folder(self._cookie)
        self._open = False
        self._behind = False
        self._watch: int | None = None
        self._lock = threading.Lock()

    @property
    def cookie(self) -> int:
        """By which programs know the namespace."""
        return self._cookie

    def apply(self) -> None:
        """Capture. DataplaneError if the kernel refuses; what was in force before is then still so."""
        with self._lock:
            self._watch_devices()
            self._behind = apply_steered_routing(self._namespace)
            flags = self._flags()
            self._node.put(self._node.workloads, self._key, self._entry(flags))
            self._attach(flags)
            # Last: should another ruleset capture here until now, nothing gets past in between.
            apply_ruleset(self._namespace, self._ruleset(flags))
            self._node.take_over(self._cookie, self._namespace)

    def _watch_devices(self) -> None:
        if self._watch is None:
            self._watch = self._node.devices.add(self._namespace, self._follow_devices)

    def _unwatch_devices(self) -> None:
        if self._watch is not None:
            self._node.devices.remove(self._watch)
            self._watch = None

    def _follow_devices(self) -> None:
        """Something may send through the namespace now, or nothing any more."""
        with self._lock:
            if self._watch is None:
                return
            before, self._behind = self._behind, may_send_through(self._namespace)
            # First: what routing delivers here, and the ruleset does not give to the agent, is refused.
            if before != self._behind:
                apply_ruleset(self._namespace, self._ruleset(self._flags()))
            apply_steered_routing(self._namespace)

    def _ruleset(self, flags: int) -> CaptureRules:
        return replace(
            self._rules, open=bool(flags & OPEN), past=self._node.raw_guard is None, behind=self._behind
        )

    def _attach(self, flags: int) -> None:
        program = _OPEN_PROGRAM if flags & OPEN else _PROGRAM
        guards = (_GUARD_HBONE if self._rules.hbone else 0) | (_GUARD_DNS if self._rules.dns else 0)
        with _inbound_object(self._node, self._cookie) as inbound:
            _guard_ports(inbound, guards)
            inbound.attach_pinned(program, self._namespace.fd, inbound_link(self._folder))
        if flags & OPEN:
            detach_raw_guard(self._folder)
        elif self._node.raw_guard is not None:
            self._node.raw_guard.attach(self._namespace, self._folder)

    def _is_attached(self, flags: int) -> bool:
        raw = self._node.raw_guard is None or bool(flags & OPEN) or is_raw_guarded(self._folder)
        return raw and inbound_link(self._folder).exists()

    def set_open(self, open_: bool) -> None:
        """Whether connections pass while the agent has no listener. It stays so by apply()."""
        with self._lock:
            changes, self._open = self._open != open_, open_
            if changes and self._node.workloads.get(self._key) is not None:
                flags = self._flags()
                self._node.put(self._node.workloads, self._key, self._entry(flags))
                self._attach(flags)
                apply_ruleset(self._namespace, self._ruleset(flags))

    def _flags(self) -> int:
        """What is captured, and whether it is open."""
        return (DNS if self._rules.dns else 0) | (OPEN if self._open else 0)

    def _entry(self, flags: int) -> bytes:
        addresses = tuple(widen_address(raw) for raw in read_addresses(self._namespace))
        return WorkloadEntry(self._node.group_id, self._node.group_level, flags, addresses).pack()

    def release(self) -> None:
        """Stop capturing new connections; those that are captured go on."""
        with self._lock:
            self._unwatch_devices()
            apply_ruleset(self._namespace, self._ruleset(self._flags()).released())
            self._node.put(self._node.workloads, self._key, self._entry(self._flags() | RELEASED))
            detach_pinned(lookup_link(self._folder))
            detach_pinned(inbound_link(self._folder))
            detach_raw_guard(self._folder)

    def remove(self) -> None:
        """Leave nothing behind. Connections that are still captured are cut off."""
        with self._lock:
            self._unwatch_devices()
            self._node.forget(self._cookie)
            remove_routing(self._namespace)
            remove_ruleset(self._namespace)

    def in_force(self) -> bool:
        """Whether the captured state is still there. A program in the pod cannot change the BPF part of it;
        one with CAP_NET_ADMIN could have changed the rest."""
        entry = self._node.workloads.get(self._key)
        flags = self._flags()
        captured = entry is not None and not flags_of(entry) & RELEASED and self._is_attached(flags)
        return captured and is_in_force(self._namespace, self._ruleset(flags))


def end_all(pins: Path, namespaces: Iterable[NetworkNamespace]) -> None:
    """End all capture by eBPF that is pinned below a folder: another mode has taken these namespaces over, with their
    ruleset and routing. What has passed the engine ends. CapabilityError while an agent captures so."""
    lock = lock_folder(pins, 0)
    namespaces = list(namespaces)
    for version in pins.glob("v*"):
        end_flows_of(version, namespaces)
        for namespace in namespaces:
            restore_sysctls(version, netns_cookie(namespace), namespace)
    unload(pins)
    os.close(lock)


def _inbound_object(node: EbpfNode, cookie: int) -> BpfObject:
    """The programs of a namespace, with the maps that it has already."""
    folder = node.namespace_folder(cookie)
    make_folder(folder)
    own = {name: folder / name for name in (LISTENERS, HERE, GUARDED)}
    return BpfObject("inbound", node.map_pins(INBOUND_MAPS) | own)


def _guard_ports(inbound: BpfObject, which: int) -> None:
    guarded = inbound.map(GUARDED, 4, 4)
    try:
        guarded[bytes(4)] = struct.pack("=I", which)
    finally:
        guarded.close()


_Keyed = list[tuple[int | None, socket.socket]]
"""Sockets by their keys in the map of listeners; None: not there."""


class EbpfListeners:
    """Opens the listeners of captured workloads (an Opener), and lets inbound_lookup know them.

    A new listener takes the place of the one before at once, also where an earlier agent has capture in
    place; when it closes, the kernel takes it out.
    """

    def __init__(self, node: EbpfNode, shared: SharedNamespaces, *, hbone: bool = False) -> None:
        """`hbone`: HBONE's port is the agent's."""
        self._node = node
        self._shared = shared
        self._ports = (OUTBOUND_PORT, INBOUND_PORT, *((HBONE_PORT,) if hbone else ()))

    def __call__(self, namespace: NetworkNamespace | None, port: int, workers: int) -> list[int]:
        """As open_listeners(). Inbound there is a socket for each device: one that comes later gets no
        connections, they are refused."""
        if isinstance(namespace, NamespaceShare):
            return self._shared.of(namespace).open(namespace.share, port, workers)
        if namespace is None or port not in self._ports:
            return open_listeners(namespace, port, workers)
        return self._open(namespace, port, workers, lambda: _bind(namespace, port))

    def open_dns(self, namespace: NetworkNamespace | None, port: int, workers: int) -> list[int]:
        """As open_dns_sockets()."""
        if namespace is None:
            return open_dns_sockets(namespace, port, workers)
        return self._open(
            namespace, port, workers, lambda: [(_dns_key(each), each) for each in bind_dns(port)]
        )

    def _open(
        self, namespace: NetworkNamespace, port: int, workers: int, bind: Callable[[], _Keyed]
    ) -> list[int]:
        opened: _Keyed = []
        try:
            opened = namespace.run(bind)
            self._announce(netns_cookie(namespace), opened)
        except OSError as error:
            raise open_failed(port, error) from error
        except DataplaneError:
            for _, listener in opened:
                listener.close()
            raise
        return [fd for _, listener in opened for fd in duplicate(listener, port, workers)]

    def _announce(self, cookie: int, opened: _Keyed) -> None:
        with _inbound_object(self._node, cookie) as inbound:
            listeners: BpfMap = inbound.map(LISTENERS, 4, 8)
        try:
            for key, listener in opened:
                if key is not None:
                    self._node.put(listeners, struct.pack("=I", key), struct.pack("=Q", listener.fileno()))
        finally:
            listeners.close()


def _dns_key(made: socket.socket) -> int | None:
    return _DNS_KEYS[made.family] if made.type is socket.SOCK_STREAM else None


def _bind(namespace: NetworkNamespace, port: int) -> _Keyed:
    """The sockets, made in the calling thread's namespace."""
    if port == OUTBOUND_PORT:
        return [(_OUTBOUND_KEY, bind_listener(port, transparent=True))]
    if port == HBONE_PORT:
        return [(_HBONE_KEY, bind_listener(port))]
    devices = read_devices(namespace)
    if not devices:
        raise NetnsError("the workload's namespace has no device with an address besides loopback")
    opened: _Keyed = []
    try:
        for device in devices:
            opened.append((device.index, bind_listener(port, device=device.name)))
    except OSError:
        for _, listener in opened:
            listener.close()
        raise
    return opened
