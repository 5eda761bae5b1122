"""The lab file: which nodes and pods a lab has, and which configuration it starts with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeagent.config.yaml_fields import Field, is_dns_label, suggestion
from nodeagent.errors import ConfigError

MAX_NODES: Final = 200
MAX_PODS_PER_NODE: Final = 250
# Both are part of the paths of unix sockets, which the kernel holds to 107 bytes.
MAX_LAB_NAME: Final = 30
MAX_NODE_NAME: Final = 40
MAX_CERT_LIFETIME: Final = 90 * 86400
# Names that `lab logs` and `lab stop` use for the lab's own processes.
RESERVED_NODE_NAMES: Final = frozenset({"controlplane", "supervisor"})

# Kubernetes: apimachinery validation IsQualifiedName and IsValidLabelValue.
_LABEL_NAME: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)")
_LABEL_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_POD_FIELDS: Final = {
    "name", "namespace", "node", "serviceAccount", "labels", "command", "env", "ports", "mesh", "restart",
    "hostNetwork",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Options of `nodeagent run` that a lab's agents are given."""

    capture: str = "auto"
    bypass: str = "on"
    udp: str = "on"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node: a network namespace with an agent."""

    name: str


@dataclass(frozen=True, slots=True)
class PodPort:
    """A named port of a pod, for Services whose targetPort is a name."""

    name: str
    container_port: int
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A pod: a network namespace on a node, and the command that runs in it (none: it only exists)."""

    name: str
    namespace: str
    node: str
    service_account: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PodPort, ...] = ()
    mesh: bool = True
    restart: bool = True
    host_network: bool = False
    """A service of the node, in the node's own network: `ports` are those at which the mesh reaches it."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class IdentitySpec:
    """That workloads have certificates, and agents and control plane speak over TLS."""

    cert_lifetime: int = 86400
    """Seconds."""


@dataclass(frozen=True, slots=True)
class LabFile:
    """A lab file, checked. `config` are absolute paths of files and folders."""

    nodes: tuple[NodeSpec, ...]
    pods: tuple[PodSpec, ...]
    config: tuple[Path, ...]
    identity: IdentitySpec | None = IdentitySpec()
    """None: no certificates, and all in plain text."""


def check_capture(lab: LabFile, options: AgentOptions) -> None:
    """Raise ConfigError if agents with these options could never take on a pod of the lab."""
    shared = [pod.key for pod in lab.pods if pod.mesh and pod.host_network]
    if options.capture == "nft" and shared:
        raise ConfigError(
            f"pod {shared[0]} has hostNetwork, which needs capture by eBPF: "
            "leave out --capture nft, or set the pod's `mesh: false`"
        )


def load_lab_file(path: Path) -> LabFile:
    """Read and check a lab file; errors name file, line and field."""
    members = Field.document(path).mapping({"nodes", "pods", "config", "identity"})
    if "nodes" not in members:
        raise ConfigError(
            f"{path}: nodes: missing; a lab needs at least one, such as `nodes: [{{name: node-a}}]`"
        )
    nodes = _nodes(members["nodes"])
    pods = _pods(members["pods"], nodes) if "pods" in members else ()
    config = members["config"].items() if "config" in members else []
    folders = tuple((path.parent / item.string()).resolve() for item in config)
    identity = _identity(members["identity"]) if "identity" in members else IdentitySpec()
    return LabFile(nodes, pods, folders, identity)


def check_lab_name(name: str) -> str:
    """Return a lab's name when it can be part of namespace and cgroup names."""
    if not is_dns_label(name) or len(name) > MAX_LAB_NAME:
        raise ConfigError(f"--name {name!r}: use at most {MAX_LAB_NAME} lower case letters, digits and '-'")
    return name


def parse_label_error(key: str, value: str) -> str | None:
    """Return what is wrong with a label by the rules of Kubernetes, or None."""
    prefix, slash, name = key.rpartition("/")
    if slash and not _LABEL_PREFIX.fullmatch(prefix):
        return f"label {key!r}: the part before '/' must be a DNS name"
    if not _LABEL_NAME.fullmatch(name):
        return f"label {key!r}: a key is at most 63 letters, digits, '-', '_' and '.'"
    if not _LABEL_VALUE.fullmatch(value):
        return f"label {key!r}: value {value!r} is not at most 63 letters, digits, '-', '_' and '.'"
    return None


def _identity(field_: Field) -> IdentitySpec | None:
    """`true`, `false`, or a mapping for `true` with settings."""
    if not field_.is_mapping():
        return IdentitySpec() if field_.boolean() else None
    fields = field_.mapping({"certLifetime"})
    if "certLifetime" in fields:
        return IdentitySpec(fields["certLifetime"].seconds(2, MAX_CERT_LIFETIME))
    return IdentitySpec()


def _nodes(members: Field) -> tuple[NodeSpec, ...]:
    nodes: dict[str, NodeSpec] = {}
    for item in members.items():
        fields = item.mapping({"name"})
        name = _required(item, fields, "name").dns_label()
        if name in nodes:
            raise fields["name"].error(f"a second node named {name}")
        if len(name) > MAX_NODE_NAME:
            raise fields["name"].error(f"{name} is longer than {MAX_NODE_NAME} characters")
        if name in RESERVED_NODE_NAMES:
            raise fields["name"].error(f"{name} is the name of a process of the lab; choose another")
        nodes[name] = NodeSpec(name)
    if not nodes:
        raise members.error("a lab needs at least one node")
    if len(nodes) > MAX_NODES:
        raise members.error(f"{len(nodes)} nodes; a lab holds at most {MAX_NODES}")
    return tuple(nodes.values())


def _pods(members: Field, nodes: tuple[NodeSpec, ...]) -> tuple[PodSpec, ...]:
    names = {node.name for node in nodes}
    pods: dict[str, PodSpec] = {}
    per_node = dict.fromkeys(names, 0)
    for item in members.items():
        pod = _pod(item, names)
        if pod.key in pods:
            raise item.mapping()["name"].error(f"a second pod named {pod.key}")
        per_node[pod.node] += 1
        if per_node[pod.node] > MAX_PODS_PER_NODE:
            raise item.error(f"more than {MAX_PODS_PER_NODE} pods on node {pod.node}")
        _check_host_ports(item, pod, pods.values())
        pods[pod.key] = pod
    return tuple(pods.values())


def _check_host_ports(item: Field, pod: PodSpec, others: Iterable[PodSpec]) -> None:
    """An error if another pod in the same node's network has a port of this one."""
    for other in others:
        if pod.host_network and other.host_network and pod.node == other.node:
            mine = {(port.protocol, port.container_port) for port in pod.ports}
            for port in other.ports:
                if (port.protocol, port.container_port) in mine:
                    raise item.error(
                        f"port {port.container_port} of node {pod.node} is {other.key}'s already"
                    )


def _pod(item: Field, nodes: set[str]) -> PodSpec:
    fields = item.mapping(_POD_FIELDS)
    node = _required(item, fields, "node")
    if node.string() not in nodes:
        raise node.error(f"there is no node {node.string()!r}{suggestion(node.string(), nodes)}")
    return PodSpec(
        name=_required(item, fields, "name").dns_label(),
        namespace=fields["namespace"].dns_label() if "namespace" in fields else "default",
        node=node.string(),
        service_account=fields["serviceAccount"].dns_label() if "serviceAccount" in fields else "default",
        labels=_labels(fields["labels"]) if "labels" in fields else {},
        command=_command(fields["command"]) if "command" in fields else (),
        env=_env(fields["env"]) if "env" in fields else {},
        ports=_ports(fields["ports"]) if "ports" in fields else (),
        mesh=fields["mesh"].boolean() if "mesh" in fields else True,
        host_network=fields["hostNetwork"].boolean() if "hostNetwork" in fields else False,
        restart=fields["restart"].choice("always", "never") == "always" if "restart" in fields else True,
    )


def _required(item: Field, fields: dict[str, Field], name: str) -> Field:
    if name not in fields:
        raise item.error(f"{name} is missing")
    return fields[name]


def _labels(field_: Field) -> dict[str, str]:
    labels = field_.string_map()
    for key, value in labels.items():
        if problem := parse_label_error(key, value):
            raise field_.mapping()[key].error(problem)
    return labels


def _command(field_: Field) -> tuple[str, ...]:
    command = tuple(item.string() for item in field_.items())
    if not command:
        raise field_.error("an empty command; leave the field out for a pod that only exists")
    return command


def _env(field_: Field) -> dict[str, str]:
    variables = field_.string_map()
    for name in variables:
        if not _ENV_NAME.fullmatch(name):
            raise field_.mapping()[name].error(f"{name!r} cannot be the name of an environment variable")
    return variables


def _ports(field_: Field) -> tuple[PodPort, ...]:
    ports: dict[str, PodPort] = {}
    for item in field_.items():
        fields = item.mapping({"name", "containerPort", "protocol"})
        name = _required(item, fields, "name").dns_label()
        if name in ports:
            raise fields["name"].error(f"a second port named {name}")
        ports[name] = PodPort(
            name=name,
            container_port=_required(item, fields, "containerPort").port(),
            protocol=fields["protocol"].choice("TCP", "UDP") if "protocol" in fields else "TCP",
        )
    return tuple(ports.values())
