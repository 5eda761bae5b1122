"""Every name that a lab gives to something outside of its processes: paths, namespaces, cgroups, nft tables.

`down` finds what a lab left by these names alone, so nothing may be made under any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LABS: Final = Path("/run/nodeagent/lab")
NETNS: Final = Path("/run/netns")
BPFFS: Final = Path("/sys/fs/bpf")
NETNS_PREFIX: Final = "na."
CGROUP_PREFIX: Final = "nodeagent.lab."
# The service proxy's table in each node's namespace.
NFT_TABLE: Final = "nodeagent-lab"


@dataclass(frozen=True, slots=True)
class LabNames:
    """The names of one lab. Lab, node, namespace and pod names hold no dots, so these never collide."""

    lab: str

    @property
    def root(self) -> Path:
        """Folder of all state; its existence says that the lab is up (or has left something)."""
        return LABS / self.lab

    @property
    def lab_file(self) -> Path:
        """The lab file as it was when the lab came up."""
        return self.root / "lab.yaml"

    @property
    def config(self) -> Path:
        """Folder that the control plane watches: one file an object."""
        return self.root / "config"

    @property
    def virtual_ips(self) -> Path:
        """Which service has which virtual addresses."""
        return self.root / "virtual-ips.json"

    @property
    def supervisor_socket(self) -> Path:
        """Socket on which the verbs talk to the supervisor."""
        return self.root / "supervisor.sock"

    @property
    def supervisor_arguments(self) -> tuple[str, ...]:
        """What the interpreter is started with to become the supervisor; `down` knows it by them."""
        return ("-m", "nodeagent.lab.supervisor", self.lab)

    @property
    def logs(self) -> Path:
        """Folder of the processes' output."""
        return self.root / "logs"

    @property
    def controlplane(self) -> Path:
        """Folder of the control plane's sockets."""
        return self.root / "controlplane"

    @property
    def identity(self) -> Path:
        """Folder of the CA, the trust bundle and the nodes' tokens, in labs with identities."""
        return self.root / "identity"

    @property
    def fabric_netns(self) -> str:
        """Namespace with the bridge between nodes, the DNS server and the control plane."""
        return f"{NETNS_PREFIX}{self.lab}"

    @property
    def cgroup(self) -> str:
        """Cgroup (v2, below the mount's root) of all the lab's processes."""
        return f"{CGROUP_PREFIX}{self.lab}"

    @property
    def pins(self) -> Path:
        """Folder of what the agents pin when they capture by eBPF; a bpf filesystem takes no dots."""
        return BPFFS / f"nodeagent-lab-{self.lab}"

    def node_pins(self, node: str) -> Path:
        """The same of one node's agent."""
        return self.pins / node

    def node(self, node: str) -> Path:
        """Folder of a node's agent: admin.sock, zds.sock, access.log, state/."""
        return self.root / "node" / node

    def pod(self, namespace: str, pod: str) -> Path:
        """Folder of a pod's own /etc files."""
        return self.root / "pod" / f"{namespace}.{pod}"

    def log(self, name: str) -> Path:
        """Log of a process, such as `controlplane`, `agent.node-a`, `pod.default.sleep`."""
        return self.logs / f"{name}.log"

    def node_netns(self, node: str) -> str:
        """Namespace of a node."""
        return f"{NETNS_PREFIX}{self.lab}.{node}"

    def pod_netns(self, namespace: str, pod: str) -> str:
        """Namespace of a pod."""
        return f"{NETNS_PREFIX}{self.lab}.{namespace}.{pod}"

    def owns_netns(self, name: str) -> bool:
        """Tell whether a named network namespace is one of this lab's."""
        return name == self.fabric_netns or name.startswith(f"{self.fabric_netns}.")

    def agent_cgroup(self, node: str) -> str:
        """Cgroup of a node's agent and nothing else: nft knows the agent by it."""
        return f"{self.cgroup}/{node}.agent"

    def pod_cgroup(self, namespace: str, pod: str) -> str:
        """Cgroup of a pod; its sandbox, main and exec'd processes have one each below it."""
        return f"{self.cgroup}/pod.{namespace}.{pod}"


def netns_path(name: str) -> Path:
    """Path of a named network namespace."""
    return NETNS / name
