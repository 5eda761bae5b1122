"""The sysctls of a namespace that capture by eBPF needs, and their return to what they were.

The agent connects to applications in the name of their clients, and marks these connections. The
application's end must carry the mark too, for its answers to find back (routing.py):

- `tcp_fwmark_accept`: what is accepted has the mark of its SYN. A listener with a mark of its own does not
  get it.
- `fwmark_reflect`: so has the reset of a closed port.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import CapabilityError, NetnsError

_ROOT: Final = Path("/proc/sys/net")
# Each with the flag (struct na_workload_entry) that tells that it was off before.
_WANTED: Final = {
    0x100: "ipv4/tcp_fwmark_accept",
    0x200: "ipv4/fwmark_reflect",
    0x400: "ipv6/fwmark_reflect",
}


def require_writable_sysctls() -> None:
    """CapabilityError where sysctls of namespaces cannot be set, as in a container that is not privileged."""
    for name in _WANTED.values():
        path = _ROOT / name
        if path.exists() and not os.access(path, os.W_OK):
            raise CapabilityError(f"{path} cannot be written to; the agent's container must be privileged")


def sysctls_off(namespace: NetworkNamespace) -> int:
    """Flags of those that are off now. Blocks."""

    def read() -> int:
        return sum(flag for flag, name in _WANTED.items() if _read(_ROOT / name) == "0")

    return namespace.run(read)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:  # a kernel without IPv6
        return ""


def write_sysctls(namespace: NetworkNamespace, flags: int, value: int) -> None:
    """Set those in `flags`. NetnsError if /proc/sys is read-only here. Blocks."""

    def write() -> None:
        for flag, name in _WANTED.items():
            if flags & flag:
                (_ROOT / name).write_text(str(value))

    try:
        namespace.run(write)
    except OSError as error:
        raise NetnsError(
            f"cannot set {error.filename} in the workload's namespace: {error.strerror}; the agent's container "
            "must be privileged, or use --capture nft"
        ) from error
