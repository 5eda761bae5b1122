"""Who the agent is towards the control plane: the xDS node of its stream of workloads, in ztunnel's form."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from typing import Final

from nodeagent import __version__
from nodeagent.config.agent import AgentConfig
from nodeagent.model.extensions import PARTS_FEATURE
from nodeagent.xds.types import Message

# Nobody's addresses (RFC 5737, RFC 3849): the way to them is the way to anywhere.
_ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")
_NAMESPACE: Final = "nodeagent-system"


def workload_node(config: AgentConfig) -> Message:
    """Return the node: named by POD_NAME, POD_NAMESPACE and INSTANCE_IP where a pod's environment has them, else
    after the cluster's node and by the address that leads to the control plane."""
    from envoy.config.core.v3 import base_pb2

    name = os.environ.get("POD_NAME") or f"nodeagent-{config.node}"
    namespace = os.environ.get("POD_NAMESPACE") or _NAMESPACE
    address = os.environ.get("INSTANCE_IP") or own_address(config.xds)
    node = base_pb2.Node(
        id=f"ztunnel~{address}~{name}.{namespace}~{namespace}.svc.{config.domain}",
        user_agent_name="nodeagent",
        user_agent_version=__version__,
        client_features=[PARTS_FEATURE],
    )
    node.metadata.update(
        {
            "NAME": name,
            "NAMESPACE": namespace,
            "INSTANCE_IPS": address,
            "NODE_NAME": config.node,
            "CLUSTER_ID": config.cluster_id,
        }
    )
    if config.network:
        node.metadata["NETWORK"] = config.network
    if account := os.environ.get("SERVICE_ACCOUNT"):
        node.metadata["SERVICE_ACCOUNT"] = account
    return node


def own_address(peer: str) -> str:
    """Return the address from which this machine reaches `peer` (`host:port`), or anywhere when it is named.

    Nothing is sent and no name resolved. 127.0.0.1 when there is no way out.
    """
    for target in (_literal(peer), *_ANYWHERE):
        if target and (address := _source_towards(target)):
            return address
    return "127.0.0.1"


def _literal(peer: str) -> str:
    host = peer.rpartition(":")[0].strip("[]")
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def _source_towards(target: str) -> str:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
