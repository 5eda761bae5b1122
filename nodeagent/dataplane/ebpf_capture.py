"""Capture of one workload's traffic by eBPF: connect() outbound, listener lookup inbound; no NAT, no conntrack.

The same three states as capture.py's. Besides the programs a namespace has policy routing (routing.py), sysctls
for the way back (sysctls.py), and a ruleset that translates nothing: it refuses what connect() does not see, raw
sockets above all, and leads what comes from behind the workload to the agent (ruleset.py).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import BpfMap, BpfObject, detach_pinned
from nodeagent.dataplane.bpffs import lock_folder, make_folder
from nodeagent.dataplane.bypass_end import end_flows
from nodeagent.dataplane.bypass_maps import HERE
from nodeagent.dataplane.datagrams import lookup_link
from nodeagent.dataplane.ebpf_node import (
    DNS,
    INBOUND_MAPS,
    LISTENERS,
    OPEN,
    RELEASED,
    EbpfNode,
    WorkloadEntry,
    flags_of,
    inbound_link,
    netns_cookie,
    pinned_flows,
    pinned_workloads,
    unload,
)
from nodeagent.dataplane.ebpf_shared import SharedNamespaces
from nodeagent.dataplane.listeners import bind_listener, duplicate, open_failed, open_listeners
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.nft import apply_ruleset, is_in_force, remove_ruleset
from nodeagent.dataplane.raw_guard import detach_raw_guard, is_raw_guarded
from nodeagent.dataplane.routing import apply_routing, read_addresses, read_devices, remove_routing
from nodeagent.dataplane.ruleset import INBOUND_PORT, OUTBOUND_PORT, CaptureRules
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.dataplane.sysctls import sysctls_off, write_sysctls
from nodeagent.errors import DataplaneError, NetnsError
from nodeagent.snapshot.address import widen_address

_OUTBOUND_KEY: Final = 0  # NA_LISTENER_KEY_OUTBOUND
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
        self._lock = threading.Lock()

    @property
    def cookie(self) -> int:
        """By which programs know the namespace."""
        return self._cookie

    def apply(self) -> None:
        """Capture. DataplaneError if the kernel refuses; what was in force before is then still so."""
        with self._lock:
            apply_routing(self._namespace, forwarded=True)
            flags = self._flags() | sysctls_off(self._namespace)
            write_sysctls(self._namespace, flags, 1)
            self._node.put(self._node.workloads, self._key, self._entry(flags))
            self._attach(flags)
            # Last: should another ruleset capture here until now, nothing gets past in between.
            apply_ruleset(self._namespace, self._ruleset(flags))
            self._node.take_over(self._cookie)

    def _ruleset(self, flags: int) -> CaptureRules:
        return replace(self._rules, open=bool(flags & OPEN), past=self._node.raw_guard is None)

    def _attach(self, flags: int) -> None:
        program = _OPEN_PROGRAM if flags & OPEN else _PROGRAM
        with _inbound_object(self._node, self._cookie) as inbound:
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
        """What is captured, which sysctls an earlier apply() has set, and whether it is open."""
        entry = self._node.workloads.get(self._key)
        earlier = flags_of(entry) & ~(RELEASED | DNS | OPEN) if entry is not None else 0
        return earlier | (DNS if self._rules.dns else 0) | (OPEN if self._open else 0)

    def _entry(self, flags: int) -> bytes:
        addresses = tuple(widen_address(raw) for raw in read_addresses(self._namespace))
        return WorkloadEntry(self._node.group_id, self._node.group_level, flags, addresses).pack()

    def release(self) -> None:
        """Stop capturing new connections; those that are captured go on."""
        with self._lock:
            apply_ruleset(self._namespace, self._ruleset(self._flags()).released())
            self._node.put(self._node.workloads, self._key, self._entry(self._flags() | RELEASED))
            detach_pinned(lookup_link(self._folder))
            detach_pinned(inbound_link(self._folder))
            detach_raw_guard(self._folder)

    def remove(self) -> None:
        """Leave nothing behind. Connections that are still captured are cut off."""
        with self._lock:
            flags = self._flags()
            self._node.forget(self._cookie)
            write_sysctls(self._namespace, flags, 0)
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
    ruleset and routing. Their sysctls return to what they were, and what has passed the engine ends. CapabilityError
    while an agent captures so."""
    lock = lock_folder(pins, 0)
    namespaces = list(namespaces)
    flows = pinned_flows(pins)
    if flows is not None:
        end_flows(flows, namespaces)
        flows.close()
    workloads = pinned_workloads(pins)
    if workloads is not None:
        for namespace in namespaces:
            entry = workloads.get(struct.pack("=Q", netns_cookie(namespace)))
            if entry is not None:
                write_sysctls(namespace, flags_of(entry), 0)
        workloads.close()
    unload(pins)
    os.close(lock)


def _inbound_object(node: EbpfNode, cookie: int) -> BpfObject:
    """The programs of a namespace, with the maps that it has already."""
    folder = node.namespace_folder(cookie)
    make_folder(folder)
    own = {name: folder / name for name in (LISTENERS, HERE)}
    return BpfObject("inbound", node.map_pins(INBOUND_MAPS) | own)


class EbpfListeners:
    """Opens the listeners of captured workloads (an Opener), and lets inbound_lookup know them.

    A new listener takes the place of the one before at once, also where an earlier agent has capture in
    place; when it closes, the kernel takes it out.
    """

    def __init__(self, node: EbpfNode, shared: SharedNamespaces) -> None:
        self._node = node
        self._shared = shared

    def __call__(self, namespace: NetworkNamespace | None, port: int, workers: int) -> list[int]:
        """As open_listeners(). Inbound there is a socket for each device: one that comes later gets no
        connections, they are refused."""
        if isinstance(namespace, NamespaceShare):
            return self._shared.of(namespace).open(namespace.share, port, workers)
        if namespace is None or port not in (OUTBOUND_PORT, INBOUND_PORT):
            return open_listeners(namespace, port, workers)
        opened: list[tuple[int, socket.socket]] = []
        try:
            opened = namespace.run(lambda: _bind(namespace, port))
            self._announce(netns_cookie(namespace), opened)
        except OSError as error:
            raise open_failed(port, error) from error
        except DataplaneError:
            for _, listener in opened:
                listener.close()
            raise
        return [fd for _, listener in opened for fd in duplicate(listener, port, workers)]

    def _announce(self, cookie: int, opened: list[tuple[int, socket.socket]]) -> None:
        with _inbound_object(self._node, cookie) as inbound:
            listeners: BpfMap = inbound.map(LISTENERS, 4, 8)
        try:
            for key, listener in opened:
                self._node.put(listeners, struct.pack("=I", key), struct.pack("=Q", listener.fileno()))
        finally:
            listeners.close()


def _bind(namespace: NetworkNamespace, port: int) -> list[tuple[int, socket.socket]]:
    """The sockets by their keys in the map of listeners, made in the calling thread's namespace."""
    if port == OUTBOUND_PORT:
        return [(_OUTBOUND_KEY, bind_listener(port, transparent=True))]
    devices = read_devices(namespace)
    if not devices:
        raise NetnsError("the workload's namespace has no device with an address besides loopback")
    opened: list[tuple[int, socket.socket]] = []
    try:
        for device in devices:
            opened.append((device.index, bind_listener(port, device=device.name)))
    except OSError:
        for _, listener in opened:
            listener.close()
        raise
    return opened
