"""Outbound listeners: what a connection to an address and port means."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, Final

from nodeagent.compiler.chain import Chain, Transport, Unusable, read_chain
from nodeagent.compiler.pieces import BLACKHOLE, ListenerPiece, Outcome, Scope
from nodeagent.compiler.report import Report
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import Protocol

VIRTUAL_OUTBOUND: Final = "virtualOutbound"
_INBOUND: Final = 1  # core.TrafficDirection
_ANY: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104  # a pattern, not a bind


def compile_listener(message: Any, scope: Scope) -> ListenerPiece:
    """A listener as a piece; ValueError says what is wrong with it. Inbound ones have no outcomes here."""
    report = Report()
    if message.HasField("api_listener"):
        raise ValueError("api_listener is for clients without a proxy; an address is needed here")
    if int(message.traffic_direction) == _INBOUND:
        return ListenerPiece(message.name)
    chains = list(_usable_chains(message, scope, report))
    if message.name == VIRTUAL_OUTBOUND or message.use_original_dst.value:
        return ListenerPiece(message.name, (), _refuses(chains), report.warnings)
    outcomes: dict[tuple[bytes | None, int], Outcome] = {}
    for address, port in _binds(message):
        for outcome in _outcomes(address, port, chains, report):
            outcomes.setdefault((outcome.address, outcome.port), outcome)
    if not outcomes and not report.warnings:
        raise ValueError("there is no filter chain that takes connections")
    return ListenerPiece(message.name, tuple(outcomes.values()), None, report.warnings)


def _usable_chains(message: Any, scope: Scope, report: Report) -> Iterator[Chain]:
    """The chains in order, the default one last; outbound guards are the peer's business, so they only
    warn."""
    chains = list(message.filter_chains)
    if message.HasField("default_filter_chain"):
        chains.append(message.default_filter_chain)
    for index, raw in enumerate(chains):
        place = report.at(f"filter chain {raw.name or index}")
        try:
            chain = read_chain(raw, scope, place)
        except Unusable as error:
            place.warn(str(error))
            continue
        for guard in chain.guarding.filters:
            place.warn(f"filter {guard} is not supported yet and has no effect")
        if chain.guarding.slashes:
            place.warn(
                "slashes in paths are read as sent: they are merged and decoded for inbound requests only"
            )
        yield chain


def _refuses(chains: Iterable[Chain]) -> bool:
    """Whether the catch-all leads into the black hole (outboundTrafficPolicy REGISTRY_ONLY)."""
    plain = [chain for chain in chains if chain.transport is not Transport.TLS]
    last = [chain for chain in plain if not chain.is_http and not chain.port]
    return bool(last) and last[-1].clusters == {BLACKHOLE}


def _binds(message: Any) -> Iterator[tuple[bytes | None, int]]:
    addresses = [message.address, *(extra.address for extra in message.additional_addresses)]
    for address in addresses:
        if address.WhichOneof("address") != "socket_address":
            kind = address.WhichOneof("address") or "missing"
            raise ValueError(f"address is a {kind}, not a socket address")
        socket_address = address.socket_address
        if not 0 < socket_address.port_value < 65536:
            raise ValueError(f"port {socket_address.port_value} is out of range")
        text = socket_address.address
        yield (None if text in _ANY else parse_address(text)), socket_address.port_value


def _outcomes(bind: bytes | None, port: int, chains: list[Chain], report: Report) -> Iterator[Outcome]:
    """What connections to the bind mean; chains for single addresses of an any-address bind give more."""
    mine = [chain for chain in chains if chain.port in (0, port)]
    for address in dict.fromkeys((bind, *_single_addresses(bind, mine))):
        outcome = _choose(address, port, [chain for chain in mine if _takes(chain, address, report)], report)
        if outcome is not None:
            yield outcome


def _single_addresses(bind: bytes | None, chains: Iterable[Chain]) -> Iterator[bytes]:
    if bind is not None:
        return
    for chain in chains:
        for prefix, length in chain.prefixes:
            network = ipaddress.ip_network(f"{prefix}/{length}", strict=False)
            if network.num_addresses == 1:
                yield parse_address(str(network.network_address))


def _takes(chain: Chain, address: bytes | None, report: Report) -> bool:
    if not chain.prefixes:
        return True
    networks = [ipaddress.ip_network(f"{prefix}/{length}", strict=False) for prefix, length in chain.prefixes]
    if address is None:
        wide = [str(network) for network in networks if network.num_addresses > 1 and network.prefixlen]
        if wide:
            report.warn(f"prefix_ranges {', '.join(wide)} of any address are not supported yet")
        return any(network.prefixlen == 0 for network in networks)
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return any((mapped or ip) in network for network in networks)


def _choose(address: bytes | None, port: int, chains: list[Chain], report: Report) -> Outcome | None:
    """The first chain for what is HTTP and the first for what is not. Chains for single ranges come before
    those for any, as Envoy prefers the longest prefix."""
    plain = [chain for chain in chains if chain.transport is not Transport.TLS]
    plain.sort(key=lambda chain: not chain.prefixes)
    if len(plain) < len(chains):
        report.warn("filter chains for TLS are not supported yet; TLS goes the way of other TCP")
    http = next((chain for chain in plain if chain.is_http), None)
    tcp = next((chain for chain in plain if not chain.is_http), None)
    if http is None and tcp is None:
        return None
    shares = tcp.shares if tcp is not None else ()
    clusters = tcp.clusters if tcp is not None else frozenset()
    if http is None:
        return Outcome(address, port, Protocol.TCP, None, None, shares, clusters)
    detect = tcp is not None and http.http_only
    protocol = Protocol.DETECT if detect else Protocol.HTTP
    return Outcome(address, port, protocol, http.route, http.inline, shares, clusters)
