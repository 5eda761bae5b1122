"""Capture of one workload's traffic: ruleset and policy routing of its namespace, as one thing with three
states.

    apply()    captured: new connections go to the agent's listeners, whether the agent lives or not
    release()  being let go: new connections are plain, captured ones go on
    remove()   as found

Each is idempotent and may follow any other. All block on the kernel for some milliseconds; from a coroutine
call them by asyncio.to_thread().
"""

from __future__ import annotations

import threading

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.nft import apply_ruleset, is_in_force, remove_ruleset
from nodeagent.dataplane.routing import apply_routing, remove_routing
from nodeagent.dataplane.ruleset import CaptureRules
from nodeagent.errors import CapabilityError


class Capture:
    """Owner of what capture puts into one namespace. The namespace stays the caller's, who closes it.

    Safe for several threads: a coroutine that is cancelled while apply() runs leaves its thread running, and
    the remove() that follows must be the later one.
    """

    def __init__(self, namespace: NetworkNamespace, rules: CaptureRules) -> None:
        self._namespace = namespace
        self._rules = rules
        self._lock = threading.Lock()

    def apply(self) -> None:
        """Capture. NftError or NetnsError if the kernel refuses; what was in force before is then still
        so."""
        # Routing first: by itself it does nothing, and the ruleset would be broken without it.
        with self._lock:
            apply_routing(self._namespace)
            apply_ruleset(self._namespace, self._rules)

    def release(self) -> None:
        """Stop capturing new connections."""
        with self._lock:
            apply_ruleset(self._namespace, self._rules.released())

    def remove(self) -> None:
        """Leave nothing behind. Connections that are still captured are cut off: release() and drain them
        first."""
        with self._lock:
            remove_ruleset(self._namespace)
            remove_routing(self._namespace)

    @property
    def cookie(self) -> int:
        """No program knows the namespace."""
        return 0

    def set_open(self, open_: bool) -> None:
        """CapabilityError: a ruleset does not know whether the agent lives."""
        if open_:
            raise CapabilityError(
                "fail mode open needs capture by eBPF; by nft connections are refused while no agent runs"
            )

    def in_force(self) -> bool:
        """Whether the captured state is still there; a program in the pod with CAP_NET_ADMIN could have
        changed it."""
        return is_in_force(self._namespace, self._rules)
