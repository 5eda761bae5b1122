"""Whether this machine can capture, and what it lacks: each need is tried, on a scratch cgroup and namespace.

Nothing is left behind, and nothing that runs is touched. What a probe finds is what the agent would find: it
loads the same programs and applies the same rulesets.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nodeagent.dataplane.bpf import BpfObject, object_names
from nodeagent.dataplane.bpffs import USUAL_MOUNT, find_bpffs
from nodeagent.dataplane.cgroup import Cgroup, describe, find_mount
from nodeagent.dataplane.ebpf_node import netns_cookie, root_of_cgroups
from nodeagent.dataplane.netns import NetworkNamespace, scratch_namespace
from nodeagent.dataplane.nft import apply_ruleset
from nodeagent.dataplane.raw_guard import RAW
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.dataplane.sock_diag import probe_destroy
from nodeagent.errors import CapabilityError, NodeagentError

_DESCRIPTORS: Final = 16_384
"""Two for each of the engine's 8,000 connections per worker."""
_HOOKS: Final = (
    "outbound_connect4",
    "outbound_connect6",
    "outbound_getpeername4",
    "outbound_getpeername6",
    "outbound_sockops",
    "agent_getsockopt",
)
_OPTIONAL: Final = ("direct", RAW)
"""Objects that capture does not need; they have probes of their own."""
MODES: Final = ("ebpf", "nft")
"""In the order in which `auto` prefers them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found. `modes` are those that cannot do without it."""

    name: str
    modes: tuple[str, ...]
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Scratch:
    """What probes may do as they like with."""

    group: Cgroup
    namespace: NetworkNamespace


def probe_machine() -> list[Finding]:
    """Try everything, in the order of need. Blocks for some hundred milliseconds."""
    findings = [_probe(name, modes, function) for name, modes, function in _BASIC]
    if all(finding.ok for finding in findings if "nft" in finding.modes):
        with _scratch() as scratch:
            findings += [_probe(name, modes, _bind(function, scratch)) for name, modes, function in _CAPTURE]
    return findings


def possible_modes(findings: list[Finding]) -> tuple[str, ...]:
    """The modes that lack nothing, the preferred one first."""
    tried = {mode for finding in findings for mode in finding.modes}
    lacking = {mode for finding in findings if not finding.ok for mode in finding.modes}
    complete = any(finding.name == "ruleset" for finding in findings)
    return tuple(mode for mode in MODES if complete and mode in tried - lacking)


def _bind(function: Callable[[Scratch], str], scratch: Scratch) -> Callable[[], str]:
    return lambda: function(scratch)


def _probe(name: str, modes: tuple[str, ...], function: Callable[[], str]) -> Finding:
    try:
        return Finding(name, modes, True, function())
    except (NodeagentError, OSError) as error:
        return Finding(name, modes, False, str(error))


@contextlib.contextmanager
def _scratch() -> Iterator[Scratch]:
    mount = find_mount(Path("/proc/mounts").read_text())
    group = describe(mount, f"/nodeagent-doctor-{os.getpid()}")
    group.directory.mkdir()
    try:
        with scratch_namespace() as namespace:
            yield Scratch(group, namespace)
    finally:
        group.directory.rmdir()


# -- what both modes need --------------------------------------------------------------------------------------


def _rights() -> str:
    if os.geteuid() != 0:
        raise CapabilityError("not root; the agent needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN")
    return f"root, Linux {os.uname().release}"


def _cgroups() -> str:
    mount = find_mount(Path("/proc/mounts").read_text())
    if not os.access(mount, os.W_OK):
        raise CapabilityError(f"cgroup version 2 at {mount} cannot be written to; mount it so (rw)")
    return str(mount)


def _namespaces() -> str:
    with scratch_namespace() as namespace:
        return f"entered one, net:[{namespace.inode}]"


def _descriptors() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= limit < _DESCRIPTORS:
        raise CapabilityError(
            f"at most {limit} descriptors, two for each connection; raise RLIMIT_NOFILE (LimitNOFILE=) to "
            f"{_DESCRIPTORS}"
        )
    return "unlimited" if limit < 0 else str(limit)


def _ruleset(scratch: Scratch) -> str:
    apply_ruleset(scratch.namespace, CaptureRules.for_agent(scratch.group, hbone=True))
    return "redirection, marks and the agent's cgroup"


# -- what ebpf needs besides -----------------------------------------------------------------------------------


def _root_group() -> str:
    return f"{root_of_cgroups()} is the root of the hierarchy"


def _bpffs() -> str:
    mounted = find_bpffs(Path("/proc/mounts").read_text())
    if mounted:
        return f"mounted at {mounted[0]}"
    if not USUAL_MOUNT.is_dir():
        raise CapabilityError(f"there is no {USUAL_MOUNT}; the kernel needs CONFIG_BPF_SYSCALL")
    return f"not mounted; the agent mounts it at {USUAL_MOUNT}"


def _guard(scratch: Scratch) -> str:
    rules = replace(CaptureRules.for_agent(scratch.group), steered=True, behind=True)
    apply_ruleset(scratch.namespace, rules)
    return "transparent proxying, and the agent's cgroup"


def _cookie(scratch: Scratch) -> str:
    return f"{netns_cookie(scratch.namespace):#x}"


def _objects(scratch: Scratch) -> str:
    names = [name for name in object_names() if name not in _OPTIONAL]
    for name in names:
        with BpfObject(name):
            pass
    return f"the verifier takes {', '.join(names)}"


def _attachments(scratch: Scratch) -> str:
    group = os.open(scratch.group.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with BpfObject("outbound") as outbound, BpfObject("inbound") as inbound:
            for program in _HOOKS:
                outbound.attach(program, group).close()
            inbound.attach("inbound_lookup", scratch.namespace.fd).close()
    finally:
        os.close(group)
    return "connect, getpeername, getsockopt and TCP events of a cgroup; listener lookup of a namespace"


def _revocation(scratch: Scratch) -> str:
    """What bypass (bypass.py) cannot do without."""
    probe_destroy(scratch.namespace)
    return "connections can be ended when policy changes (SOCK_DESTROY)"


def _raw_guard(scratch: Scratch) -> str:
    """What bypass cannot do without, either."""
    with BpfObject(RAW):
        return "raw sockets can be refused by a program (Linux 6.4)"


_BASIC: Final[tuple[tuple[str, tuple[str, ...], Callable[[], str]], ...]] = (
    ("rights", MODES, _rights),
    ("cgroups", MODES, _cgroups),
    ("network namespaces", MODES, _namespaces),
    ("descriptors", (), _descriptors),
    ("root of cgroups", ("ebpf",), _root_group),
    ("bpf filesystem", ("ebpf",), _bpffs),
)
_CAPTURE: Final[tuple[tuple[str, tuple[str, ...], Callable[[Scratch], str]], ...]] = (
    ("ruleset", ("nft",), _ruleset),
    ("guarding ruleset", ("ebpf",), _guard),
    ("namespace cookies", ("ebpf",), _cookie),
    ("BPF objects", ("ebpf",), _objects),
    ("BPF attachments", ("ebpf",), _attachments),
    ("revocation", (), _revocation),
    ("raw socket guard", (), _raw_guard),
)
