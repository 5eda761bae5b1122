"""From a lab file to addresses, links and routes: pure, and the same for the same file.

Nodes hang on one bridge in the fabric namespace. Pods hang on their node by routed veth pairs, as the ptp CNI
plugin does it: a host address in the pod, a host route on the node, the node's gateway address on each of its
ends. So all traffic of a pod passes its node's routing, where the service proxy translates it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from nodeagent.config.lab import IdentitySpec, LabFile, PodSpec
from nodeagent.lab.names import LabNames

NODE_NETWORK4: Final = IPv4Network("172.30.0.0/24")
NODE_NETWORK6: Final = IPv6Network("fd00:172:30::/64")
POD_NETWORK4: Final = IPv4Network("10.244.0.0/16")
POD_NETWORK6: Final = IPv6Network("fd00:10:244::/48")
SERVICE_NETWORK4: Final = IPv4Network("10.96.0.0/16")
SERVICE_NETWORK6: Final = IPv6Network("fd00:10:96::/112")
# The tenth address of the service network, where kubeadm puts the DNS service.
DNS4: Final = SERVICE_NETWORK4[10]
DNS6: Final = SERVICE_NETWORK6[10]
FABRIC4: Final = NODE_NETWORK4[1]
FABRIC6: Final = NODE_NETWORK6[1]

_FIRST_NODE: Final = 10  # host number of the first node
_FIRST_POD: Final = 2  # host number of a node's first pod; 1 is the gateway

# For every namespace of a lab: addresses usable at once, no surprise from what the host has set.
BASE_SYSCTLS: Final[dict[str, str]] = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
ROUTER_SYSCTLS: Final[dict[str, str]] = {
    **BASE_SYSCTLS,
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/default/forwarding": "1",
    # A router would tell pods of a shorter way to a neighbour on the same bridge; there is none for them.
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node's namespace and addresses; `number` is the N of its pod networks, from 1."""

    name: str
    number: int
    netns: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    pods4: IPv4Network
    pods6: IPv6Network

    @property
    def gateway4(self) -> IPv4Address:
        """The address that the node's pods use as their router."""
        return self.pods4[1]

    @property
    def gateway6(self) -> IPv6Address:
        """The address that the node's pods use as their IPv6 router."""
        return self.pods6[1]


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod's namespace, its addresses, and the node's end of its link; "": it is in the node's network."""

    spec: PodSpec
    netns: str
    link: str
    ipv4: IPv4Address
    ipv6: IPv6Address


@dataclass(frozen=True, slots=True)
class NamespacePlan:
    """One network namespace to make: its name, its sysctls, and then the lines of its `ip -batch`."""

    netns: str
    sysctls: dict[str, str]
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabPlan:
    """Everything of a lab that is decided before anything is made."""

    names: LabNames
    nodes: tuple[NodePlan, ...]
    pods: tuple[PodPlan, ...]
    identity: IdentitySpec | None = None
    """None: workloads get no certificates."""

    def pods_on(self, node: str) -> list[PodPlan]:
        """Return the pods of a node that have a network of their own, in the order of the file."""
        return [pod for pod in self.pods if pod.spec.node == node and pod.link]

    def namespaces(self) -> list[NamespacePlan]:
        """Return the namespaces in the order in which their commands can run: fabric, nodes, pods."""
        names = self.names
        plans = [NamespacePlan(names.fabric_netns, ROUTER_SYSCTLS, tuple(_fabric_commands(self)))]
        plans += [NamespacePlan(n.netns, ROUTER_SYSCTLS, tuple(_node_commands(self, n))) for n in self.nodes]
        nodes = {node.name: node for node in self.nodes}
        plans += [
            NamespacePlan(pod.netns, BASE_SYSCTLS, tuple(_pod_commands(pod, nodes[pod.spec.node])))
            for pod in self.pods
            if pod.link
        ]
        return plans


def plan_lab(names: LabNames, lab: LabFile) -> LabPlan:
    """Give every node and pod of a lab file its names and addresses, by its place in the file."""
    nodes = tuple(_plan_node(names, node.name, number) for number, node in enumerate(lab.nodes, start=1))
    by_name = {node.name: node for node in nodes}
    counts = dict.fromkeys(by_name, 0)
    pods = []
    for spec in lab.pods:
        node = by_name[spec.node]
        if spec.host_network:
            pods.append(PodPlan(spec, node.netns, "", node.ipv4, node.ipv6))
            continue
        pods.append(_plan_pod(names, spec, node, counts[spec.node]))
        counts[spec.node] += 1
    return LabPlan(names, nodes, tuple(pods), lab.identity)


def _plan_node(names: LabNames, name: str, number: int) -> NodePlan:
    return NodePlan(
        name=name,
        number=number,
        netns=names.node_netns(name),
        ipv4=NODE_NETWORK4[_FIRST_NODE + number],
        ipv6=NODE_NETWORK6[_FIRST_NODE + number],
        pods4=IPv4Network((int(POD_NETWORK4.network_address) + (number << 8), 24)),
        pods6=IPv6Network((int(POD_NETWORK6.network_address) + (number << 64), 64)),
    )


def _plan_pod(names: LabNames, spec: PodSpec, node: NodePlan, index: int) -> PodPlan:
    return PodPlan(
        spec=spec,
        netns=names.pod_netns(spec.namespace, spec.name),
        link=f"pod{index + _FIRST_POD}",
        ipv4=node.pods4[index + _FIRST_POD],
        ipv6=node.pods6[index + _FIRST_POD],
    )


def _fabric_commands(plan: LabPlan) -> list[str]:
    lines = [
        "link set lo up",
        "link add br0 type bridge",
        f"addr add {FABRIC4}/{NODE_NETWORK4.prefixlen} dev br0",
        f"addr add {FABRIC6}/{NODE_NETWORK6.prefixlen} dev br0 nodad",
        f"addr add {DNS4}/32 dev br0",
        f"addr add {DNS6}/128 dev br0 nodad",
        "link set br0 up",
    ]
    for node in plan.nodes:
        lines += [
            f"link add node{node.number} type veth peer name eth0 netns {node.netns}",
            f"link set node{node.number} master br0 up",
        ]
    return lines + [line for node in plan.nodes for line in _routes_to_pods(node)]


def _node_commands(plan: LabPlan, node: NodePlan) -> list[str]:
    lines = [
        "link set lo up",
        "link set eth0 up",
        f"addr add {node.ipv4}/{NODE_NETWORK4.prefixlen} dev eth0",
        f"addr add {node.ipv6}/{NODE_NETWORK6.prefixlen} dev eth0 nodad",
        f"route add default via {FABRIC4}",
        f"route add default via {FABRIC6} dev eth0",
    ]
    lines += [line for other in plan.nodes if other is not node for line in _routes_to_pods(other)]
    for pod in plan.pods_on(node.name):
        lines += [
            f"link add {pod.link} type veth peer name eth0 netns {pod.netns}",
            f"link set {pod.link} up",
            f"addr add {node.gateway4}/32 dev {pod.link}",
            f"addr add {node.gateway6}/128 dev {pod.link} nodad",
            f"route add {pod.ipv4}/32 dev {pod.link}",
            f"route add {pod.ipv6}/128 dev {pod.link}",
        ]
    return lines


def _routes_to_pods(node: NodePlan) -> list[str]:
    return [f"route add {node.pods4} via {node.ipv4}", f"route add {node.pods6} via {node.ipv6}"]


def _pod_commands(pod: PodPlan, node: NodePlan) -> list[str]:
    return [
        "link set lo up",
        "link set eth0 up",
        f"addr add {pod.ipv4}/32 dev eth0",
        f"addr add {pod.ipv6}/128 dev eth0 nodad",
        f"route add {node.gateway4} dev eth0 scope link",
        f"route add default via {node.gateway4} dev eth0",
        f"route add {node.gateway6} dev eth0",
        f"route add default via {node.gateway6} dev eth0",
    ]
