"""What agents with another ABI have left, which an agent of this one must know when it takes a workload on.

Layouts may differ, but for what every ABI keeps (bpf/include/nodeagent_abi.h): the beginning of a workload's entry, up
to its flags, and the keys of the connections past the engine.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import Final

from nodeagent.dataplane import sock_diag
from nodeagent.dataplane.bpf import BpfMap, pinned_map_of_any_size
from nodeagent.dataplane.bypass_layout import ENDS_SIZE, Ends
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.sock_diag import UNFINISHED, DiagSocket
from nodeagent.errors import CapabilityError, NetnsError

logger = logging.getLogger(__name__)

_COOKIE: Final = struct.Struct("=Q")
_ENTRY_BEGINS: Final = struct.Struct("=QII")
"""agent_cgroup, agent_level, flags."""
_ROOT: Final = Path("/proc/sys/net")
_SYSCTLS: Final = {
    0x100: "ipv4/tcp_fwmark_accept",
    0x200: "ipv4/fwmark_reflect",
    0x400: "ipv6/fwmark_reflect",
}
"""That agents up to ABI 3 set, by the flag that says that it was 0 before."""


def workloads_of(version: Path) -> BpfMap | None:
    """The workloads that agents of a version have captured, by the cookie; None if there are none, or not so."""
    found = pinned_map_of_any_size(version / "maps" / "workloads")
    if found is not None and (found.key_size != _COOKIE.size or found.value_size < _ENTRY_BEGINS.size):
        found.close()
        return None
    return found


def restore_sysctls(version: Path, cookie: int, namespace: NetworkNamespace) -> None:
    """Set the sysctls of a namespace that agents of a version have set back to 0, before it is taken from them. Blocks;
    what cannot be is logged."""
    workloads = workloads_of(version)
    if workloads is None:
        return
    entry = workloads.get(_COOKIE.pack(cookie))
    workloads.close()
    flags = _ENTRY_BEGINS.unpack_from(entry)[2] if entry is not None else 0
    names = [name for flag, name in _SYSCTLS.items() if flags & flag]
    try:
        if names:
            namespace.run(partial(_reset, names))
    except (OSError, NetnsError) as error:
        logger.error("sysctls that an agent of another version has set stay: %s", error)


def _reset(names: Iterable[str]) -> None:
    for name in names:
        (_ROOT / name).write_text("0")


def end_flows_of(version: Path, namespaces: Iterable[NetworkNamespace]) -> None:
    """End the connections that agents of a version have let past the engine and that have an end in these namespaces:
    nobody would judge them any more. Blocks; what cannot be ended is logged."""
    ends = set(_ends_of(version))
    ended = 0
    for namespace in namespaces if ends else ():
        try:
            ended += namespace.run(partial(_destroy, ends))
        except (CapabilityError, NetnsError) as error:
            logger.error("connections that an earlier agent let past the engine live on: %s", error)
    if ended:
        logger.info("ended %d connections that an earlier agent let past the engine", ended)


def _ends_of(version: Path) -> Iterator[sock_diag.Ends]:
    """As sockets see them, at both ends."""
    flows = pinned_map_of_any_size(version / "maps" / "bypassed")
    if flows is None:
        return
    try:
        for each in map(Ends.unpack, flows if flows.key_size == ENDS_SIZE else ()):
            here, there = (each.source, each.source_port), (each.destination, each.destination_port)
            yield sock_diag.Ends(*here, *there)
            yield sock_diag.Ends(*there, *here)
    finally:
        flows.close()


def _destroy(ends: Set[sock_diag.Ends]) -> int:
    with DiagSocket() as diag:
        return sum(diag.destroy(each) for each in diag.connections(UNFINISHED) if each.ends in ends)
