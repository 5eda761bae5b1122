"""What changed between two snapshots, in the order in which the engine's builder must be told.

Parts that are the same object are skipped without a look inside, and parts that are equal are not changes.
Sets come before removals of what they replace a use of, so that a reference never points at nothing within
one commit; the one exception is noted at `virtual_hosts_removed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from nodeagent.errors import CompileError
from nodeagent.snapshot.values import (
    Cluster,
    ClusterKind,
    Destination,
    DestinationKey,
    Endpoint,
    Forward,
    Hints,
    Inbound,
    Protocol,
    RouteTable,
    Snapshot,
    View,
    VirtualHost,
)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class Changes:
    """Differences, a list per builder call, named after it; to be applied in the order of the fields."""

    views: list[View] = field(default_factory=list)
    """New, or with another refuse_unknown; only the view itself, its content is in the other lists."""
    clusters: list[Cluster] = field(default_factory=list)
    endpoints: list[tuple[str, tuple[Endpoint, ...]]] = field(default_factory=list)
    tables: list[RouteTable] = field(default_factory=list)
    """New, or with another on_demand; only the table itself."""
    virtual_hosts_removed: list[tuple[str, str]] = field(default_factory=list)
    """(table, virtual host); also those that are set again below with other domains, since a domain may move
    from one virtual host to another."""
    virtual_hosts: list[tuple[str, VirtualHost]] = field(default_factory=list)
    hosts_unknown: list[tuple[str, str, bool]] = field(default_factory=list)
    """(table, host, whether it is unknown now)."""
    destinations: list[tuple[str, Destination]] = field(default_factory=list)
    destinations_removed: list[tuple[str, DestinationKey]] = field(default_factory=list)
    inbound: list[tuple[str, Inbound]] = field(default_factory=list)
    inbound_removed: list[str] = field(default_factory=list)
    """The engine forgets these with the workload; there is no builder call."""
    hints: Hints | None = None
    names: list[tuple[str, tuple[bytes, ...]]] = field(default_factory=list)
    """(name, addresses); none: it is not known any more."""
    tables_removed: list[str] = field(default_factory=list)
    clusters_removed: list[str] = field(default_factory=list)
    views_removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.hints is not None or any(
            (
                self.views,
                self.clusters,
                self.endpoints,
                self.tables,
                self.virtual_hosts_removed,
                self.virtual_hosts,
                self.hosts_unknown,
                self.destinations,
                self.destinations_removed,
                self.inbound,
                self.inbound_removed,
                self.names,
                self.tables_removed,
                self.clusters_removed,
                self.views_removed,
            )
        )


def diff(old: Snapshot, new: Snapshot) -> Changes:
    """What turns `old` into `new`. The cost is that of the parts that are not shared."""
    changes = Changes()
    for name, before, view in _changed(old.views, new.views):
        _diff_view(changes, before or View(name), view, created=before is None)
    for name in _gone(old.views, new.views):
        _remove_view(changes, old.views[name])
    changes.inbound = [(uid, inbound) for uid, _, inbound in _changed(old.inbound, new.inbound)]
    changes.inbound_removed = list(_gone(old.inbound, new.inbound))
    if new.hints is not old.hints and new.hints != old.hints:
        changes.hints = new.hints
    changes.names = [(name, addresses) for name, _, addresses in _changed(old.names, new.names)]
    changes.names.extend((name, ()) for name in _gone(old.names, new.names))
    return changes


def _changed(old: Mapping[K, V], new: Mapping[K, V]) -> Iterator[tuple[K, V | None, V]]:
    """(key, old value or None, new value) of what is new or differs."""
    if old is new:
        return
    for key, value in new.items():
        before = old.get(key)
        if before is not value and before != value:
            yield key, before, value


def _gone(old: Mapping[K, V], new: Mapping[K, V]) -> Iterator[K]:
    if old is not new:
        yield from (key for key in old if key not in new)


def _diff_view(changes: Changes, old: View, new: View, *, created: bool) -> None:
    if created or old.refuse_unknown != new.refuse_unknown:
        changes.views.append(new)
    changed_clusters = [cluster for _, _, cluster in _changed(old.clusters, new.clusters)]
    changes.clusters.extend(changed_clusters)
    changes.clusters_removed.extend(_gone(old.clusters, new.clusters))
    changes.endpoints.extend((name, new_set) for name, _, new_set in _changed(old.endpoints, new.endpoints))
    emptied = (name for name in _gone(old.endpoints, new.endpoints) if _takes_endpoints(new, name))
    changes.endpoints.extend((name, ()) for name in emptied)
    for _, before, table in _changed(old.tables, new.tables):
        _diff_table(changes, before, table)
    changes.tables_removed.extend(_gone(old.tables, new.tables))
    changes.destinations.extend(
        (new.name, destination) for _, _, destination in _changed(old.destinations, new.destinations)
    )
    changes.destinations_removed.extend((new.name, key) for key in _gone(old.destinations, new.destinations))


def _takes_endpoints(view: View, name: str) -> bool:
    cluster = view.clusters.get(name)
    return cluster is not None and cluster.kind is ClusterKind.ENDPOINTS


def _diff_table(changes: Changes, old: RouteTable | None, new: RouteTable) -> None:
    if old is None or old.on_demand != new.on_demand:
        changes.tables.append(new)
    before = old or RouteTable(new.name, new.xds_name)
    for name, was, host in _changed(before.virtual_hosts, new.virtual_hosts):
        if was is not None and was.domains != host.domains:
            changes.virtual_hosts_removed.append((new.name, name))
        changes.virtual_hosts.append((new.name, host))
    changes.virtual_hosts_removed.extend(
        (new.name, name) for name in _gone(before.virtual_hosts, new.virtual_hosts)
    )
    if before.unknown_hosts is not new.unknown_hosts:
        found = before.unknown_hosts - new.unknown_hosts
        missing = new.unknown_hosts - before.unknown_hosts
        changes.hosts_unknown.extend((new.name, host, False) for host in sorted(found))
        changes.hosts_unknown.extend((new.name, host, True) for host in sorted(missing))


def _remove_view(changes: Changes, view: View) -> None:
    changes.destinations_removed.extend((view.name, key) for key in view.destinations)
    changes.tables_removed.extend(view.tables)
    changes.clusters_removed.extend(view.clusters)
    changes.views_removed.append(view.name)


# -- consistency: what the engine would refuse, found before it is asked --


def check_consistent(snapshot: Snapshot, since: Snapshot | None = None) -> None:
    """Raise CompileError if something refers to what is not there, naming both.

    `since` is a snapshot known to be consistent: parts shared with it are not looked at again.
    """
    before = since.views if since is not None else {}
    for name, view in snapshot.views.items():
        old = before.get(name)
        if old is view:
            continue
        if name != view.name:
            raise CompileError(f"view {view.name!r} is filed under {name!r}")
        _check_view(view, old)
    for uid, inbound in snapshot.inbound.items():
        if since is None or since.inbound.get(uid) is not inbound:
            _check_inbound(uid, inbound)


def _check_view(view: View, old: View | None) -> None:
    """Look at what is new in the view, and at everything if something that may be referred to went away."""
    kept = old if old is not None and not _lost(old, view) else View(view.name)
    for name, endpoints in view.endpoints.items():
        if kept.endpoints.get(name) is not endpoints:
            _check_endpoints(view, name, endpoints)
    for name, table in view.tables.items():
        if kept.tables.get(name) is not table:
            _check_table(view, table, kept.tables.get(name))
    if kept.destinations is not view.destinations:
        for key, destination in view.destinations.items():
            if kept.destinations.get(key) is not destination:
                _check_destination(view, key, destination)


def _lost(old: View, new: View) -> bool:
    clusters = old.clusters is not new.clusters and any(
        name not in new.clusters or new.clusters[name].kind is not cluster.kind
        for name, cluster in old.clusters.items()
    )
    return clusters or (old.tables is not new.tables and any(name not in new.tables for name in old.tables))


def _check_endpoints(view: View, name: str, endpoints: tuple[Endpoint, ...]) -> None:
    if not _takes_endpoints(view, name):
        raise CompileError(f"view {view.name}: endpoints for {name!r}, which is no cluster of endpoints")
    for endpoint in endpoints:
        if len(endpoint.address) != 16 or not 0 < endpoint.port < 65536 or endpoint.weight < 1:
            raise CompileError(f"view {view.name}: cluster {name}: endpoint {endpoint} is malformed")
        if endpoint.tunnel is not None and not endpoint.tunnel.identities:
            raise CompileError(
                f"view {view.name}: cluster {name}: the tunnel to {endpoint} names no identity that may answer"
            )


def _check_table(view: View, table: RouteTable, old: RouteTable | None) -> None:
    owners: dict[str, str] = {}
    for name, host in table.virtual_hosts.items():
        for domain in host.domains:
            other = owners.setdefault(domain.lower(), name)
            if other != name:
                raise CompileError(
                    f"view {view.name}: route table {table.xds_name}: domain {domain!r} is in both {other!r} "
                    f"and {name!r}"
                )
        if old is None or old.virtual_hosts.get(name) is not host:
            _check_virtual_host(view, table, host)


def _check_virtual_host(view: View, table: RouteTable, host: VirtualHost) -> None:
    for route in host.routes:
        action = route.action
        if not isinstance(action, Forward):
            continue
        if not action.clusters:
            raise CompileError(f"view {view.name}: route {route.name!r} of {host.name!r} forwards to nothing")
        for share in action.clusters:
            if share.cluster not in view.clusters:
                raise CompileError(
                    f"view {view.name}: route {route.name!r} of {table.xds_name}/{host.name} names cluster "
                    f"{share.cluster!r}, which is not there"
                )


def _check_destination(view: View, key: DestinationKey, destination: Destination) -> None:
    where = f"view {view.name}: destination {destination.xds_name or key}"
    if key != destination.key:
        raise CompileError(f"{where} is filed under {key}")
    if destination.protocol is Protocol.TCP and destination.table is not None:
        raise CompileError(f"{where} speaks TCP and has route table {destination.table!r}")
    if destination.protocol is not Protocol.TCP and destination.table not in view.tables:
        raise CompileError(f"{where} names route table {destination.table!r}, which is not there")
    for share in destination.clusters:
        if share.cluster not in view.clusters:
            raise CompileError(f"{where} names cluster {share.cluster!r}, which is not there")


def _check_inbound(uid: str, inbound: Inbound) -> None:
    ports = [port.port for port in inbound.ports]
    if len(ports) != len(set(ports)):
        raise CompileError(f"inbound ports of {uid} are listed twice: {sorted(ports)}")
    if any(not 0 < port < 65536 for port in ports):
        raise CompileError(f"inbound ports of {uid} are out of range: {sorted(ports)}")
