"""The inbound listener: what the ports of a workload speak, and who may come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from nodeagent.compiler.chain import Chain, Transport, Unusable, read_chain, read_mutual_chain
from nodeagent.compiler.pieces import BLACKHOLE, UNGUARDED, Guarding, InboundPiece, PortPiece, Scope
from nodeagent.compiler.report import Report
from nodeagent.compiler.tokens import RemoteKeys
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import (
    OPEN,
    Attribute,
    Guards,
    Not,
    Policy,
    RuleAction,
    Rules,
    SigningKey,
    TextCheck,
    Tokens,
)
from nodeagent.snapshot.values import Inbound, InboundPort, Protocol, ServiceRef

VIRTUAL_INBOUND: Final = "virtualInbound"
L4_ONLY: Final = InboundPiece(fallback=PortPiece(Protocol.TCP), l4_only=True)
"""In place of the listener, where the control plane has none."""
MUTUAL_TLS: Final = Rules(
    RuleAction.DENY,
    (Policy("mutual-tls-required", Not(TextCheck(Attribute.PRINCIPAL, MatchKind.PRESENT))),),
)
_OWN_PORTS: Final = frozenset((15001, 15006, 15008))
_REFUSED: Final = PortPiece(Protocol.REFUSE)

KeysOf = Callable[[RemoteKeys], tuple[SigningKey, ...]]


def compile_inbound(message: Any, scope: Scope) -> InboundPiece:
    """The inbound listener as a piece. Whatever cannot be put in force and guards a port closes that port."""
    report = Report()
    by_port: dict[int, list[tuple[Any, Report]]] = {}
    chains = list(message.filter_chains)
    if message.HasField("default_filter_chain"):
        chains.append(message.default_filter_chain)
    for index, raw in enumerate(chains):
        port = raw.filter_chain_match.destination_port.value
        if port not in _OWN_PORTS:
            by_port.setdefault(port, []).append((raw, report.at(f"filter chain {raw.name or index}")))
    ports = {port: _compile_port(found, scope) for port, found in by_port.items()}
    fallback = ports.pop(0, _REFUSED)
    return InboundPiece(ports, fallback, report.warnings)


def _compile_port(found: Iterable[tuple[Any, Report]], scope: Scope) -> PortPiece:
    """What the chains of a port make of it. Chains for TLS only mean that plain connections are not wanted
    (PeerAuthentication STRICT); who has shown a certificate to a tunnel is served as they say."""
    chains, closed = _read_all(read_chain, found, scope)
    plain = [chain for chain in chains if chain.transport is not Transport.TLS]
    if plain or closed:
        return _outcome(plain, closed)
    mutual, closed = _read_all(read_mutual_chain, found, scope)
    return _for_members(_outcome(mutual, closed)) if mutual or closed else _REFUSED


def _read_all(
    read: Callable[[Any, Scope, Report], Chain | None], found: Iterable[tuple[Any, Report]], scope: Scope
) -> tuple[list[Chain], bool]:
    """(what can be read of the chains, whether one of the others closes the port)."""
    chains: list[Chain] = []
    closed = False
    for raw, place in found:
        try:
            chain = read(raw, scope, place)
            if chain is not None:
                _check_covers_all(chain)
                chains.append(chain)
        except Unusable as error:
            # Connections that it would have judged would reach a more general chain.
            place.warn(f"{error}; its port is closed")
            closed = True
            continue
        for reason in chain.guarding.closed if chain is not None else ():
            place.warn(f"{reason}; what it guards is closed")
    return chains, closed


def _check_covers_all(chain: Chain) -> None:
    """Of a chain for TLS whose filters were not read it does not matter."""
    is_read = chain.is_http or bool(chain.shares)
    if is_read and chain.prefixes and all(length for _, length in chain.prefixes):
        raise Unusable("filter_chain_match.prefix_ranges is not supported yet")


def _outcome(chains: list[Chain], closed: bool) -> PortPiece:
    """What a port speaks by its chains, and what is asked there."""
    http = next((chain for chain in chains if chain.is_http), None)
    tcp = next((chain for chain in chains if not chain.is_http), None)
    guardings = tuple(chain.guarding for chain in (http, tcp) if chain is not None)
    cluster = _cluster_name(http, tcp)
    if closed or any(chain.guarding.closed for chain in chains) or cluster == BLACKHOLE:
        protocol = Protocol.REFUSE
    elif http is None:
        protocol = Protocol.REFUSE if tcp is None else Protocol.TCP
    else:
        protocol = Protocol.DETECT if tcp is not None and http.http_only else Protocol.HTTP
    return PortPiece(protocol, cluster, _joined(guardings))


def _joined(guardings: tuple[Guarding, ...]) -> Guarding:
    """What is asked of a port's requests by one chain, and of its other connections by another."""
    if len(guardings) < 2:
        return guardings[0] if guardings else UNGUARDED
    http, tcp = guardings
    return Guarding(
        tcp.connection,
        http.request,
        http.clusters | tcp.clusters,
        http.remote + tcp.remote,
        tuple(dict.fromkeys(http.filters + tcp.filters)),
        tuple(dict.fromkeys(http.closed + tcp.closed)),
        http.slashes,
    )


def _for_members(piece: PortPiece) -> PortPiece:
    """The same for those only who have shown a certificate of the mesh."""
    guarding = piece.guarding
    connection, request = (MUTUAL_TLS, *guarding.connection), (MUTUAL_TLS, *guarding.request)
    return replace(piece, guarding=replace(guarding, connection=connection, request=request))


def _cluster_name(http: Chain | None, tcp: Chain | None) -> str:
    if tcp is not None:
        return next(iter(sorted(tcp.clusters)), "")
    if http is not None and http.inline is not None:
        return next((name for host in http.inline.hosts for name in sorted(host.clusters)), "")
    return ""


def _no_keys(remote: RemoteKeys) -> tuple[SigningKey, ...]:
    return ()


def assemble_inbound(
    piece: InboundPiece,
    services: Iterable[tuple[int, ServiceRef]],
    every: tuple[Rules, ...] = (),
    keys_of: KeysOf = _no_keys,
) -> Inbound:
    """The piece as the engine takes it, with the services that the workload's ports belong to, what is asked of each
    connection by L4 policies, and the keys that were fetched."""
    owners: dict[int, ServiceRef] = {}
    for port, service in services:
        owners.setdefault(port, service)
    ports = tuple(
        InboundPort(port, each.protocol, owners.get(port), each.cluster, _guards(each.guarding, keys_of))
        for port, each in sorted(piece.ports.items())
    )
    return Inbound(ports, piece.fallback.protocol, _guards(piece.fallback.guarding, keys_of), every)


def _guards(guarding: Guarding, keys_of: KeysOf) -> Guards:
    if not (guarding.connection or guarding.request or guarding.slashes):
        return OPEN
    fetched = {name: keys_of(remote) for name, remote in guarding.remote}
    request = tuple(
        _with_keys(stage, fetched) if isinstance(stage, Tokens) else stage for stage in guarding.request
    )
    return Guards(guarding.connection, request, guarding.slashes)


def _with_keys(tokens: Tokens, fetched: Mapping[str, tuple[SigningKey, ...]]) -> Tokens:
    if not fetched:
        return tokens
    providers = tuple(
        replace(provider, keys=fetched[provider.name]) if provider.name in fetched else provider
        for provider in tokens.providers
    )
    return replace(tokens, providers=providers)
