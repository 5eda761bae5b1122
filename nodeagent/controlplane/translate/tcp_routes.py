"""VirtualService tcp routes to filter chains, for one client and one port."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from envoy.config.core.v3 import address_pb2

from nodeagent.controlplane.istio.rules import source_matches
from nodeagent.controlplane.istio.values import TcpMatch, TcpRoute, WeightedDestination
from nodeagent.controlplane.translate import connections
from nodeagent.controlplane.translate.http_routes import destination_cluster
from nodeagent.controlplane.view import View
from nodeagent.model import names
from nodeagent.model.names import ClusterName
from nodeagent.model.service import Service


def tcp_chains(view: View, service: Service, port: int) -> list[connections.FilterChain]:
    """Filter chains for a port of a service; the last one takes every destination address."""
    found: list[connections.FilterChain] = []
    for rule in view.world.rules.virtual_services_for(service.host, view.namespace):
        for match, route in _applying(view, rule.tcp, port):
            chain = _chain(view, route.destinations, port)
            found.append(chain)
            if match is None or not match.subnets:
                return found
            _only_to(chain, match.subnets)
        if found:
            break
    found.append(_chain_to(str(ClusterName(names.OUTBOUND, port, "", service.host))))
    return found


def _applying(view: View, routes: Sequence[TcpRoute], port: int) -> list[tuple[TcpMatch | None, TcpRoute]]:
    labels = dict(view.perspective.labels)
    found: list[tuple[TcpMatch | None, TcpRoute]] = []
    for route in routes:
        if not route.matches:
            found.append((None, route))
        for match in route.matches:
            if source_matches(match.source, port, view.namespace, labels):
                found.append((match, route))
    return found


def _chain(view: View, shares: Sequence[WeightedDestination], port: int) -> connections.FilterChain:
    weighted = [share for share in shares if share.weight] or list(shares)[:1]
    clusters = [(destination_cluster(view, share.destination, port), share.weight) for share in weighted]
    return connections.FilterChain(filters=[connections.tcp_filter(clusters[0][0], clusters)])


def _chain_to(cluster: str) -> connections.FilterChain:
    return connections.FilterChain(filters=[connections.tcp_filter(cluster, [(cluster, 1)])])


def _only_to(chain: connections.FilterChain, subnets: Sequence[str]) -> None:
    for text in subnets:
        network = ipaddress.ip_network(text)
        prefix = address_pb2.CidrRange(address_prefix=str(network.network_address))
        prefix.prefix_len.value = network.prefixlen
        chain.filter_chain_match.prefix_ranges.append(prefix)
