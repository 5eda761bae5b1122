"""Real networks for tests: namespaces with veths on a bridge, processes inside them, cgroups. Always cleaned
up.

    from harness import Network, require, scratch_cgroup

    def test_reaches_the_server() -> None:
        require("root", "nft", "curl")
        with Network("reach") as network:
            client, server = network.add("client"), network.add("server")
            with server.start(["nc", "-lk", "8080"]) as nc:
                nc.wait_for_port(8080)
                assert client.exec(["nc", "-z", server.v4, "8080"]).returncode == 0

- `Network(name)` makes a namespace with a bridge in it, nothing in the host's. `add()` makes a namespace with
  `eth0` on that bridge, an address of each family (`.v4`, `.v6`) and, if asked, a default route. All are
  called `nt-<pid>-<network>-<name>`, so that tests that run at the same time do not collide.
- `Namespace.run(f)` calls a Python function inside; sockets made there stay in the namespace. `.exec()` runs
  a command to its end, `.start()` starts one in the background.
- `scratch_cgroup()` makes an empty cgroup version 2 to put processes in.
- `require()` names what a test needs. What is missing skips the test, or fails it where `CI` is set.

Leaving a `with` block kills what was started (by pid, and waits), removes namespaces and groups, also after
an error.
"""

from harness.cgroups import ScratchCgroup, scratch_cgroup
from harness.netns import Namespace, Network
from harness.processes import Process
from harness.requirements import require

__all__ = ["Namespace", "Network", "Process", "ScratchCgroup", "require", "scratch_cgroup"]
