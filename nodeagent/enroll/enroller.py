"""What finds workloads tells what takes them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nodeagent.dataplane.netns import NetworkNamespace


@dataclass(frozen=True, slots=True)
class EnrolledPod:
    """A workload by its names. `uid` is opaque (the pod's UID in Kubernetes); the names are empty if whoever found
    it cannot tell them."""

    uid: str
    name: str
    namespace: str
    service_account: str
    fail_open: bool = False
    """It asks for its connections to pass while no agent runs."""


class Enroller(Protocol):
    """What takes workloads on and lets them go. Additions come one after the other from each who finds some; removals
    of other workloads may still be draining meanwhile."""

    async def add(self, pod: EnrolledPod, netns: NetworkNamespace) -> None:
        """Capture and serve the pod. From its return on `netns` is the enroller's, to be closed when the pod
        goes. Any NodeagentError refuses the pod (its text is shown), and so does a cancellation, which comes when
        it takes too long; either way nothing may be left behind."""

    async def remove(self, uid: str) -> None:
        """Restore plain networking and let connections drain. May take longer than the plugin waits."""

    def synced(self) -> None:
        """All workloads have been named by the one who says so, and those that it did not name are gone."""
