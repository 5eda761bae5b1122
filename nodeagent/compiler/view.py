"""Puts the pieces of a view together: what is complete becomes a View, what is missing is named.

Make before break: a destination or virtual host whose parts have not all arrived stays as it was in the
previous View, or stays out. The rule for "arrived" is that the server has answered, be it that there is no
such thing. What stays keeps its clusters and their endpoints, also those that the server has taken away: it does so
once it has sent the route that leads elsewhere, but does not know that this route waits for a cluster of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from nodeagent.compiler.cluster import missing_cluster
from nodeagent.compiler.pieces import (
    PASSTHROUGH,
    ClusterPiece,
    EndpointsPiece,
    HostPiece,
    ListenerPiece,
    Outcome,
    RoutePiece,
    Scope,
)
from nodeagent.snapshot.values import (
    Cluster,
    ClusterKind,
    Destination,
    DestinationKey,
    Endpoint,
    Protocol,
    RouteTable,
    ServiceRef,
    View,
    VirtualHost,
    WeightedCluster,
)

T = TypeVar("T")

LISTENERS: Final = "listeners"
ROUTES: Final = "routes"
HOSTS: Final = "hosts"
CLUSTERS: Final = "clusters"
ENDPOINTS: Final = "endpoints"


@dataclass(slots=True)
class Pieces:
    """The compiled resources of a view by kind and xDS name. `known` tells whether a name has been
    answered."""

    known: Callable[[str, str], bool]
    """(kind, name) -> whether the server has answered: it is there, or there is no such thing."""
    listeners: dict[str, ListenerPiece] = field(default_factory=dict)
    routes: dict[str, RoutePiece] = field(default_factory=dict)
    hosts: dict[str, HostPiece] = field(default_factory=dict)
    """By `<route configuration>/<host>` as asked for."""
    clusters: dict[str, ClusterPiece] = field(default_factory=dict)
    endpoints: dict[str, EndpointsPiece] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OwnCluster:
    """A cluster that no xDS resource tells of: it follows from what is known of workloads and services."""

    name: str
    """Among the xDS names of the view."""
    endpoints: tuple[Endpoint, ...]
    service: ServiceRef | None = None
    port: int = 0


@dataclass(frozen=True, slots=True)
class Want:
    """A destination that is wanted: which listeners may have it, in order of preference, and what to
    expect."""

    key: DestinationKey
    listeners: tuple[str, ...]
    host: str = ""
    """FQDN of the service, whose virtual host belongs to it."""
    cluster: str = ""
    """xDS name of the service's cluster for what is not HTTP/1."""
    routes: tuple[str, ...] = ()
    """Route configurations that its listener is likely to name; asked for at once to save a round trip."""
    own: OwnCluster | None = None
    """Where all connections go, whatever they speak; nothing is asked for then."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What a view is to hold. With `everything`, each listener that came is wanted, and no more is asked
    for."""

    destinations: Mapping[DestinationKey, Want] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    """`<route configuration>/<host>` that requests have asked for."""
    everything: bool = False
    catch_all: str = "virtualOutbound"
    clusters: frozenset[str] = frozenset()
    """xDS names of clusters that callouts ask."""
    held: frozenset[str] = frozenset()
    """Those of them that stay as they are until the successor of what asks them is in force."""


@dataclass(slots=True)
class Assembly:
    """The result: the view, and the xDS names by kind that it depends on."""

    view: View
    needs: dict[str, set[str]]
    incomplete: frozenset[DestinationKey]
    """Wanted destinations that have not all their parts yet."""
    pending: bool
    """Whether something that was looked for has not been answered."""


def assemble(scope: Scope, pieces: Pieces, wants: Wants, previous: View) -> Assembly:
    """Put a view together from pieces. Pure; equal parts of the previous view are taken over as they are."""
    return _Assembler(scope, pieces, wants, previous).run()


class _Assembler:
    def __init__(self, scope: Scope, pieces: Pieces, wants: Wants, previous: View) -> None:
        self._scope = scope
        self._pieces = pieces
        self._wants = wants
        self._previous = previous
        self._needs: dict[str, set[str]] = {
            kind: set() for kind in (LISTENERS, ROUTES, HOSTS, CLUSTERS, ENDPOINTS)
        }
        self._incomplete: set[DestinationKey] = set()
        self._tables: dict[str, RouteTable] = {}
        self._complete_tables: dict[str, bool] = {}
        self._inline: dict[str, RoutePiece] = {}
        self._used: dict[str, str] = {}  # snapshot's cluster name -> xDS name
        self._own: dict[str, OwnCluster] = {}  # by the snapshot's name
        # By the snapshot's name: used by what waits for its successor.
        self._held = set(map(scope.name, wants.held))
        self._cluster_known: dict[str, bool] = {}
        self._vhds: dict[str, dict[str, HostPiece]] = _by_route(pieces.hosts)

    def run(self) -> Assembly:
        destinations = dict(self._destinations())
        for destination in destinations.values():
            self._use(share.cluster for share in destination.clusters)
        tables = {
            name: self._tables[name]
            for name in {d.table for d in destinations.values() if d.table is not None}
        }
        for table in tables.values():
            for host in table.virtual_hosts.values():
                self._use(_clusters_of(host))
        self._use(self._asked())
        clusters, endpoints = self._clusters()
        view = View(self._scope.view, clusters, endpoints, tables, destinations, self._refuse_unknown())
        if not self._wants.everything:
            self._needs[HOSTS] |= self._wants.hosts
            self._needs[LISTENERS].add(self._wants.catch_all)
            # Each route configuration ends in it; known beforehand, it costs the first connection no round
            # trip.
            self._needs[CLUSTERS].add(PASSTHROUGH)
        pending = bool(self._incomplete) or not all(self._cluster_known.values())
        return Assembly(_share(self._previous, view), self._needs, frozenset(self._incomplete), pending)

    # -- destinations --

    def _destinations(self) -> Iterator[tuple[DestinationKey, Destination]]:
        wants = self._everything() if self._wants.everything else self._wants.destinations.values()
        for want in wants:
            destination = self._destination(want)
            if destination is None:
                self._incomplete.add(want.key)
                destination = self._previous.destinations.get(want.key)
                if destination is not None:
                    self._keep(destination)
            if destination is not None:
                yield want.key, _same(self._previous.destinations.get(want.key), destination)

    def _everything(self) -> Iterator[Want]:
        for listener in self._pieces.listeners.values():
            for outcome in listener.outcomes:
                yield Want((outcome.address, outcome.port), (listener.name,))
        yield from self._wants.destinations.values()

    def _destination(self, want: Want) -> Destination | None:
        """The meaning of a wanted destination; None while it is not complete."""
        if want.own is not None:
            return self._to_own(want, want.own)
        self._speculate(want)
        if not all(self._pieces.known(LISTENERS, name) for name in want.listeners):
            return None
        listener, outcome = self._outcome(want)
        if outcome is None:
            return self._without_listener(want)
        address, port = want.key
        shares = self._shares(want, outcome)
        if shares is None:
            return None
        if outcome.route is None:
            return Destination(address, port, Protocol.TCP, None, shares, listener)
        if not self._table(outcome) or not self._host_known(want, outcome.route):
            return None
        table = self._scope.name(outcome.route)
        return Destination(address, port, outcome.protocol, table, shares, listener)

    def _to_own(self, want: Want, own: OwnCluster) -> Destination:
        name = self._scope.name(own.name)
        self._own[name] = own
        return Destination(*want.key, Protocol.TCP, None, (WeightedCluster(name),), own.name)

    def _without_listener(self, want: Want) -> Destination | None:
        """No listener takes it: the service's cluster if there is one, else on to where it was going."""
        address, port = want.key
        if want.cluster and not self._known_cluster(want.cluster):
            return None
        shares = (WeightedCluster(self._scope.name(want.cluster)),) if self._has(want.cluster) else ()
        return Destination(address, port, Protocol.TCP, None, shares)

    def _speculate(self, want: Want) -> None:
        self._needs[LISTENERS].update(want.listeners)
        self._needs[ROUTES].update(want.routes)
        if want.host:
            self._needs[HOSTS].update(f"{route}/{want.host}" for route in want.routes)
        if want.cluster:
            self._needs[CLUSTERS].add(want.cluster)
            self._needs[ENDPOINTS].add(want.cluster)

    def _outcome(self, want: Want) -> tuple[str, Outcome | None]:
        address, port = want.key
        for name in want.listeners:
            listener = self._pieces.listeners.get(name)
            for outcome in listener.outcomes if listener is not None else ():
                if outcome.port == port and outcome.address == address:
                    return name, outcome
        for name in want.listeners:
            listener = self._pieces.listeners.get(name)
            for outcome in listener.outcomes if listener is not None else ():
                if outcome.port == port and outcome.address is None:
                    return name, outcome
        return "", None

    def _shares(self, want: Want, outcome: Outcome) -> tuple[WeightedCluster, ...] | None:
        """Where TCP goes. A listener for any address cannot know the service, but the destination may."""
        names = outcome.clusters
        if want.cluster and outcome.address is None and want.key[0] is not None:
            if not self._known_cluster(want.cluster):
                return None
            if self._has(want.cluster):
                return (WeightedCluster(self._scope.name(want.cluster)),)
        if not self._all_known(names):
            return None
        return outcome.shares

    def _host_known(self, want: Want, route: str) -> bool:
        """Whether the virtual host of the wanted service has been answered, where hosts come by
        themselves."""
        piece = self._pieces.routes.get(route)
        if piece is None or not piece.on_demand or not want.host:
            return True
        name = f"{route}/{want.host}"
        self._needs[HOSTS].add(name)
        if not self._pieces.known(HOSTS, name):
            return False
        host = self._pieces.hosts.get(name)
        return host is None or host.value.name in self._tables[self._scope.name(route)].virtual_hosts

    def _keep(self, destination: Destination) -> None:
        """Keep a previous destination while its successor is not complete, with the table that it uses."""
        self._held.update(share.cluster for share in destination.clusters)
        if destination.table is not None and destination.table not in self._tables:
            self._keep_table(self._previous.tables[destination.table])

    def _keep_table(self, table: RouteTable) -> None:
        self._tables[table.name] = table
        for host in table.virtual_hosts.values():
            self._held.update(_clusters_of(host))

    # -- tables --

    def _table(self, outcome: Outcome) -> bool:
        """Make the route table of an outcome; False while it is not complete and there was none before."""
        assert outcome.route is not None
        name = self._scope.name(outcome.route)
        if name in self._complete_tables:
            return self._complete_tables[name]
        if outcome.inline is None:
            self._needs[ROUTES].add(outcome.route)
        ready = outcome.inline is not None or self._pieces.known(ROUTES, outcome.route)
        before = self._previous.tables.get(name)
        if ready:
            piece = outcome.inline or self._pieces.routes.get(outcome.route) or RoutePiece(outcome.route, ())
            table, whole = self._make_table(piece, before)
            # A table that was there may change in part; a new one appears whole.
            ready = whole or before is not None
            self._tables[name] = _same(before, table)
        elif before is not None:
            self._keep_table(before)
            ready = True
        self._complete_tables[name] = ready
        return ready

    def _make_table(self, piece: RoutePiece, before: RouteTable | None) -> tuple[RouteTable, bool]:
        hosts: dict[str, VirtualHost] = {}
        domains: set[str] = set()
        whole = True
        separate = self._vhds.get(piece.name, {}) if piece.on_demand else {}
        separate_names = {host.value.name for host in separate.values()}
        for host in (*separate.values(), *piece.hosts):
            value, complete = self._host(host, before)
            # Hosts that come by themselves are waited for one by one (NA_EVENT_HOST).
            whole = whole and (complete or host.value.name in separate_names)
            if value is not None and value.name not in hosts:
                hosts[value.name] = _without(value, domains)
                domains.update(domain.lower() for domain in value.domains)
        unknown = self._unknown_hosts(piece.name) if piece.on_demand else frozenset()
        table = RouteTable(self._scope.name(piece.name), piece.name, hosts, piece.on_demand, unknown)
        return table, whole

    def _host(self, host: HostPiece, before: RouteTable | None) -> tuple[VirtualHost | None, bool]:
        """(the virtual host to serve, whether it is the one received)."""
        if self._all_known(host.clusters):
            return host.value, True
        kept = before.virtual_hosts.get(host.value.name) if before is not None else None
        if kept is not None:
            self._held.update(_clusters_of(kept))
        return kept, False

    def _unknown_hosts(self, route: str) -> frozenset[str]:
        prefix = f"{route}/"
        return frozenset(
            name.removeprefix(prefix)
            for name in self._wants.hosts
            if name.startswith(prefix) and name not in self._pieces.hosts and self._pieces.known(HOSTS, name)
        )

    # -- clusters --

    def _asked(self) -> Iterator[str]:
        """The clusters of callouts, as far as they are known."""
        for xds_name in self._wants.clusters:
            name = self._scope.name(xds_name)
            if self._known_cluster(xds_name) or name in self._previous.clusters:
                yield name

    def _has(self, name: str) -> bool:
        return name in self._pieces.clusters

    def _all_known(self, names: Iterable[str]) -> bool:
        # All of them are looked at, also after one that is missing: looking is what gets a name asked for.
        return not [name for name in names if not self._known_cluster(name)]

    def _known_cluster(self, name: str) -> bool:
        """Whether a cluster is there with its endpoints, or known not to be."""
        if name not in self._cluster_known:
            self._cluster_known[name] = self._find_cluster(name)
        return self._cluster_known[name]

    def _find_cluster(self, name: str) -> bool:
        self._needs[CLUSTERS].add(name)
        piece = self._pieces.clusters.get(name)
        if piece is None:
            return self._pieces.known(CLUSTERS, name)
        if piece.eds_name is None:
            return True
        self._needs[ENDPOINTS].add(piece.eds_name)
        return self._pieces.known(ENDPOINTS, piece.eds_name)

    def _use(self, names: Iterable[str]) -> None:
        prefix = len(self._scope.view) + 1
        for name in names:
            self._used[name] = name[prefix:]

    def _clusters(self) -> tuple[dict[str, Cluster], dict[str, tuple[Endpoint, ...]]]:
        clusters: dict[str, Cluster] = {}
        endpoints: dict[str, tuple[Endpoint, ...]] = {}
        for name, xds_name in self._used.items():
            if name in self._own:
                own = self._own[name]
                clusters[name] = Cluster(name, own.name, service=own.service, port=own.port)
                endpoints[name] = own.endpoints
                continue
            known = self._known_cluster(xds_name)
            piece = self._pieces.clusters.get(xds_name)
            if self._is_held(name, piece) or (piece is None and not known):
                clusters[name] = self._previous.clusters[name]
                if name in self._previous.endpoints:
                    endpoints[name] = self._previous.endpoints[name]
            elif piece is None:
                missing = missing_cluster(xds_name, self._scope)
                clusters[name] = _same(self._previous.clusters.get(name), missing)
            else:
                clusters[name] = piece.value
                if piece.value.kind is ClusterKind.ENDPOINTS:
                    endpoints[name] = self._endpoints(name, piece)
        return clusters, endpoints

    def _is_held(self, name: str, piece: ClusterPiece | None) -> bool:
        """Whether a cluster that lost its resource, or its load assignment, is to stay as it was."""
        if name not in self._held or name not in self._previous.clusters:
            return False
        return piece is None or (piece.eds_name is not None and piece.eds_name not in self._pieces.endpoints)

    def _endpoints(self, name: str, piece: ClusterPiece) -> tuple[Endpoint, ...]:
        by_waypoint = self._scope.waypoint_of(piece.value)
        if by_waypoint is not None:
            return by_waypoint
        if piece.eds_name is None:
            return piece.endpoints
        assigned = self._pieces.endpoints.get(piece.eds_name)
        if assigned is not None:
            return (*assigned.endpoints, *self._scope.beyond(piece.value))
        if self._pieces.known(ENDPOINTS, piece.eds_name):
            return self._scope.beyond(piece.value)
        return self._previous.endpoints.get(name, ())

    def _refuse_unknown(self) -> bool:
        listener = self._pieces.listeners.get(self._wants.catch_all)
        if listener is not None:
            return bool(listener.refuse_unknown)
        return (
            False if self._pieces.known(LISTENERS, self._wants.catch_all) else self._previous.refuse_unknown
        )


def replace_endpoints(view: View, scope: Scope, pieces: Pieces, names: Iterable[str]) -> View | None:
    """The view with new load assignments of clusters that it has: the short way for the most frequent change.

    None if a name is not simply that of a cluster in the view, so that the view must be assembled anew.
    """
    endpoints = dict(view.endpoints)
    for eds_name in names:
        name = scope.name(eds_name)
        piece, assigned = pieces.clusters.get(eds_name), pieces.endpoints.get(eds_name)
        if piece is None or piece.eds_name != eds_name or assigned is None or name not in endpoints:
            return None
        if scope.waypoint_of(piece.value) is None:
            endpoints[name] = (*assigned.endpoints, *scope.beyond(piece.value))
    return replace(view, endpoints=endpoints)


def _by_route(hosts: Mapping[str, HostPiece]) -> dict[str, dict[str, HostPiece]]:
    """Virtual hosts that came by themselves, by route configuration; one that was asked for by several
    names is there once."""
    result: dict[str, dict[str, HostPiece]] = {}
    for name, piece in hosts.items():
        result.setdefault(name.rpartition("/")[0], {}).setdefault(piece.value.name, piece)
    return result


def _clusters_of(host: VirtualHost) -> Iterator[str]:
    for route in host.routes:
        shares = getattr(route.action, "clusters", ())
        for share in shares:
            yield share.cluster


def _without(host: VirtualHost, taken: set[str]) -> VirtualHost:
    """The virtual host without domains that an earlier one has; a domain can lead to one place only."""
    kept = tuple(domain for domain in host.domains if domain.lower() not in taken)
    return host if len(kept) == len(host.domains) else replace(host, domains=kept)


def _same(before: T | None, now: T) -> T:
    """The previous object, if it is equal: what is shared costs nothing further down."""
    return before if before is not None and before == now else now


def _share(before: View, now: View) -> View:
    parts = {
        name: getattr(before, name)
        for name in ("clusters", "endpoints", "tables", "destinations")
        if getattr(before, name) == getattr(now, name)
    }
    shared = replace(now, **parts) if parts else now
    return before if len(parts) == 4 and before.refuse_unknown == now.refuse_unknown else shared
