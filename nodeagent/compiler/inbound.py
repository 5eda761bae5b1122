"""The inbound listener: what the ports of a workload speak, and what must not be let in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from nodeagent.compiler.chain import Chain, Transport, Unusable, read_chain
from nodeagent.compiler.pieces import BLACKHOLE, InboundPiece, Scope
from nodeagent.compiler.report import Report
from nodeagent.snapshot.policies import Rules
from nodeagent.snapshot.values import Inbound, InboundPort, Protocol, ServiceRef

VIRTUAL_INBOUND: Final = "virtualInbound"
_OWN_PORTS: Final = frozenset((15001, 15006, 15008))


def compile_inbound(message: Any, scope: Scope) -> InboundPiece:
    """The inbound listener as a piece. Whatever cannot be put in force and guards a port closes that port."""
    report = Report()
    by_port: dict[int, list[Chain]] = {}
    closed: set[int] = set()
    chains = list(message.filter_chains)
    if message.HasField("default_filter_chain"):
        chains.append(message.default_filter_chain)
    for index, raw in enumerate(chains):
        place = report.at(f"filter chain {raw.name or index}")
        port = raw.filter_chain_match.destination_port.value
        if port in _OWN_PORTS:
            continue
        by_port.setdefault(port, [])
        try:
            chain = read_chain(raw, scope, place)
        except Unusable as error:
            # Connections that it would have judged would reach a more general chain.
            place.warn(f"{error}; its port is closed")
            closed.add(port)
            continue
        for guard in chain.guards:
            place.warn(f"filter {guard} is not supported yet; what it guards is closed")
        if chain.transport is Transport.TLS or _covers_all(chain):
            by_port[port].append(chain)
        else:
            place.warn("filter_chain_match.prefix_ranges is not supported yet; its port is closed")
            closed.add(port)
    outcomes = {port: _protocol(found, port in closed) for port, found in by_port.items()}
    fallback, _ = outcomes.pop(0, (Protocol.REFUSE, ""))
    return InboundPiece(outcomes, fallback, report.warnings)


def _covers_all(chain: Chain) -> bool:
    return not chain.prefixes or any(length == 0 for _, length in chain.prefixes)


def _protocol(chains: Iterable[Chain], closed: bool) -> tuple[Protocol, str]:
    """What a port speaks by its chains, and the name of its cluster. Chains for TLS only mean that plain
    connections are not wanted (PeerAuthentication STRICT)."""
    plain = [chain for chain in chains if chain.transport is not Transport.TLS]
    http = next((chain for chain in plain if chain.is_http), None)
    tcp = next((chain for chain in plain if not chain.is_http), None)
    cluster = _cluster_name(http, tcp)
    if closed or any(chain.guards for chain in plain) or cluster == BLACKHOLE:
        return Protocol.REFUSE, cluster
    if http is None:
        return (Protocol.REFUSE if tcp is None else Protocol.TCP), cluster
    return (Protocol.DETECT if tcp is not None and http.http_only else Protocol.HTTP), cluster


def _cluster_name(http: Chain | None, tcp: Chain | None) -> str:
    if tcp is not None:
        return next(iter(sorted(tcp.clusters)), "")
    if http is not None and http.inline is not None:
        return next((name for host in http.inline.hosts for name in sorted(host.clusters)), "")
    return ""


def assemble_inbound(
    piece: InboundPiece, services: Iterable[tuple[int, ServiceRef]], every: tuple[Rules, ...] = ()
) -> Inbound:
    """The piece as the engine takes it, with the services that the workload's ports belong to, and what is asked of
    each connection by L4 policies."""
    owners: dict[int, ServiceRef] = {}
    for port, service in services:
        owners.setdefault(port, service)
    ports = tuple(
        InboundPort(port, protocol, owners.get(port), cluster)
        for port, (protocol, cluster) in sorted(piece.ports.items())
    )
    return Inbound(ports, piece.fallback, every=every)
