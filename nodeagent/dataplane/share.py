"""A workload that shares its network namespace with others: the processes of a cgroup, and the ports that they serve.

So are the services of a virtual machine, and pods in their host's network.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from nodeagent.dataplane.cgroup import Cgroup, describe, find_mount
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.errors import CapabilityError


@dataclass(frozen=True, slots=True)
class Share:
    """What of a namespace is a workload's. `cgroup` is a path in the hierarchy (`system.slice/nginx.service`), which
    need not be there; with it all below it is meant, except what is a workload itself."""

    uid: str
    cgroup: str
    ports: tuple[int, ...] = ()
    """What arrives for these goes to the agent; other ports of the machine are left alone."""
    addresses: tuple[bytes, ...] = ()
    """At which the ports are the workload's, 16 bytes each; none: at all of the namespace."""

    @property
    def owner(self) -> int:
        """The uid as BPF maps have it; the same for every agent."""
        return int.from_bytes(sha256(self.uid.encode()).digest()[:8], "little") | 1

    def group(self) -> Cgroup:
        """Where its cgroup is, or would be; CapabilityError if it is the root, which holds everyone."""
        group = describe(find_mount(Path("/proc/mounts").read_text()), self.cgroup)
        if group.level < 1:
            raise CapabilityError(f"{self.uid}: the root cgroup holds everyone, and is no workload")
        return group


class NamespaceShare(NetworkNamespace):
    """A namespace, and what of it a workload has."""

    __slots__ = ("share",)

    def __init__(self, fd: int, share: Share) -> None:
        """Take over `fd`."""
        super().__init__(fd)
        self.share = share

    @classmethod
    def of_own(cls, share: Share) -> NamespaceShare:
        """A share of the agent's own namespace. NetnsError if /proc is not there."""
        return cls(NetworkNamespace.open("/proc/thread-self/ns/net").detach(), share)
