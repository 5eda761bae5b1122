"""Forgets UDP flows to endpoints that are gone.

A flow stays translated as it began for as long as its client sends. TCP notices a dead endpoint by itself; a UDP
client would talk to it for ever. kube-proxy removes such entries for the same reason.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from typing import Any, Final

from nodeagent.lab import netns
from nodeagent.lab.services import Address, Service

Endpoint = tuple[Address, int]
_UDP: Final = socket.IPPROTO_UDP


def udp_endpoints(services: Iterable[Service]) -> set[Endpoint]:
    """Return where the UDP ports of services lead to."""
    return {
        endpoint
        for service in services
        for leads_to in service.ports
        if leads_to.port.protocol == "UDP"
        for endpoint in leads_to.endpoints
    }


def forget(node_netns: str, gone: set[Endpoint]) -> int:
    """Remove the UDP flows of a node that are translated to endpoints; returns how many there were."""
    return netns.run_in(node_netns, lambda: sum(_forget_family(version, gone) for version in (4, 6)))


def _forget_family(version: int, gone: set[Endpoint]) -> int:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

    wanted = {(str(address), port) for address, port in gone if address.version == version}
    if not wanted:
        return 0
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    removed = 0
    with contextlib.closing(NFCTSocket(nfgen_family=family)) as conntrack:
        for flow, reply in list(_udp_flows(conntrack)):
            if (reply["saddr"], reply["sport"]) in wanted:
                with contextlib.suppress(OSError):  # it ended meanwhile
                    conntrack.entry("del", tuple_orig=NFCTAttrTuple(family=family, proto=_UDP, **flow))
                    removed += 1
    return removed


def _udp_flows(conntrack: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the UDP flows of the namespace: the client's direction, and the replies'."""
    for entry in conntrack.dump():
        flow, reply = (_tuple(entry.get_attr(name)) for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY"))
        if flow is not None and reply is not None:
            yield flow, reply


def _tuple(attributes: Any) -> dict[str, Any] | None:
    addresses, protocol = attributes.get_attr("CTA_TUPLE_IP"), attributes.get_attr("CTA_TUPLE_PROTO")
    if protocol.get_attr("CTA_PROTO_NUM") != _UDP:
        return None
    version = "V4" if addresses.get_attr("CTA_IP_V4_SRC") else "V6"
    return {
        "saddr": addresses.get_attr(f"CTA_IP_{version}_SRC"),
        "daddr": addresses.get_attr(f"CTA_IP_{version}_DST"),
        "sport": protocol.get_attr("CTA_PROTO_SRC_PORT"),
        "dport": protocol.get_attr("CTA_PROTO_DST_PORT"),
    }
