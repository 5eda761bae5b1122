"""Replays the difference of two snapshots as calls of the engine's builder, and publishes it as one
change."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.inbound import guard_inbound
from nodeagent.dataplane.tags import TagTable
from nodeagent.dataplane.virtual_host import c_string, make_virtual_host
from nodeagent.errors import EngineError
from nodeagent.snapshot.diff import Changes
from nodeagent.snapshot.values import (
    Cluster,
    ClusterUse,
    Destination,
    DestinationKey,
    DestinationUse,
    Endpoint,
    Hints,
    Inbound,
    InboundPort,
    RouteTable,
    Tunnel,
    VirtualHost,
    VirtualHostUse,
)

_ENDPOINT: Final = struct.Struct("=16sHBBII")
assert ffi.sizeof("na_endpoint") == _ENDPOINT.size, "na_endpoint is not laid out as this module packs it"


@dataclass(frozen=True, slots=True)
class ClusterTag:
    """What a cluster's number stands for."""

    cluster: Cluster
    use: ClusterUse


Tagged = ClusterTag | Endpoint | DestinationUse | VirtualHostUse | RouteTable | InboundPort


@dataclass(frozen=True, slots=True)
class Rejection:
    """A part of a snapshot that the engine cannot use. The virtual host of that name that was in force before stays;
    the port of a workload whose guards cannot be made refuses (`virtual_host` is the port then)."""

    table: str
    virtual_host: str
    message: str
    kind: str = "route table"
    """What `table` is the name of."""


def view_of(name: str, xds_name: str) -> str:
    """The view in a Cluster.name or RouteTable.name, `<view>/<xDS name>`."""
    return name[: -len(xds_name) - 1]


class ChangeWriter:
    """One change under construction: write(), commit(), and abort() in any case.

    Numbers of what goes are released when the change is in force, and numbers given out are taken back when
    it does not come to that.
    """

    def __init__(self, engine: Any, tags: TagTable[Tagged]) -> None:
        self._engine = engine
        self._tags = tags
        self._fresh: list[Hashable] = []
        self._released: list[Hashable] = []
        self._replaced: list[tuple[Hashable, frozenset[Hashable]]] = []
        self.rejections: list[Rejection] = []
        """What the engine cannot use; complete after write()."""
        slot = ffi.new("na_builder **")
        if (code := lib.na_builder_new(engine, slot)) < 0:
            raise EngineError(f"the engine takes no changes: {os.strerror(-code)}")
        self._builder = slot[0]

    def write(
        self, changes: Changes, workloads: Mapping[str, int], views: Mapping[str, str], *, keep: bool = True
    ) -> None:
        """Make the calls. `workloads` has the engine's ids of the workloads that it knows, `views` the view
        of each route table. `keep`: a virtual host that cannot be made leaves the one of its name in force,
        else it goes.
        """
        for view in changes.views:
            code = lib.na_builder_view(self._builder, c_string(view.name), view.refuse_unknown)
            self._check(code, f"view {view.name}")
        for cluster in changes.clusters:
            self._cluster(cluster)
        for name, endpoints in changes.endpoints:
            self._endpoints(name, endpoints)
        for table in changes.tables:
            self._table(table)
        self._virtual_hosts(changes, views, keep)
        for view_name, destination in changes.destinations:
            self._destination(view_name, destination)
        for view_name, key in changes.destinations_removed:
            self._remove_destination(view_name, key)
        for uid, inbound in changes.inbound:
            if uid in workloads:
                self._inbound(uid, workloads[uid], inbound)
        if changes.hints is not None:
            self._hints(changes.hints)
        for name, addresses in changes.names:
            self._name(name, addresses)
        self._removals(changes)

    def _removals(self, changes: Changes) -> None:
        for name in changes.tables_removed:
            self._removed(lib.na_builder_table_remove(self._builder, c_string(name)), f"route table {name}")
            self._released.append(("table", name))
        for name in changes.clusters_removed:
            self._removed(lib.na_builder_cluster_remove(self._builder, c_string(name)), f"cluster {name}")
            self._released.append(("cluster", name))
        for name in changes.views_removed:
            self._removed(lib.na_builder_view_remove(self._builder, c_string(name)), f"view {name}")

    def commit(self) -> None:
        """Publish. EngineError, with nothing changed, if the engine finds the whole inconsistent."""
        builder, self._builder = self._builder, None
        if lib.na_builder_commit(builder) < 0:
            self._take_back()
            raise EngineError(
                f"the engine refused the change: {ffi.string(lib.na_engine_error(self._engine)).decode()}"
            )
        for parent, kept in self._replaced:
            self._released.extend(self._tags.children(parent) - kept)
        for key in self._released:
            self._tags.release(key)

    def abort(self) -> None:
        """Drop the change; may follow commit(), after which it does nothing."""
        if self._builder is not None:
            lib.na_builder_abort(self._builder)
            self._builder = None
            self._take_back()

    def _take_back(self) -> None:
        for key in self._fresh:
            self._tags.release(key)

    def _check(self, code: int, what: str) -> None:
        if code < 0:
            reason = ffi.string(lib.na_builder_error(self._builder)).decode(errors="replace")
            raise EngineError(f"the engine refused {what}: {reason or f'error {-code}'}")

    def _removed(self, code: int, what: str) -> None:
        """As _check, for a removal: what is not there is removed."""
        if code != -errno.ENOENT:
            self._check(code, f"the removal of {what}")

    def _tag(self, key: Hashable, value: Tagged, parent: Hashable = None) -> int:
        tag, is_new = self._tags.assign(key, value, parent)
        if is_new:
            self._fresh.append(key)
        return tag

    # -- clusters --

    def _cluster(self, cluster: Cluster) -> None:
        use = ClusterUse(view_of(cluster.name, cluster.xds_name), cluster.name)
        config = ffi.new(
            "na_cluster_config *",
            {
                "tag": self._tag(("cluster", cluster.name), ClusterTag(cluster, use)),
                "kind": int(cluster.kind),
                "lb": int(cluster.lb),
                "connect_timeout_ms": cluster.connect_timeout_ms,
                "idle_timeout_ms": cluster.idle_timeout_ms,
                "max_connections": cluster.max_connections,
                "max_requests": cluster.max_requests,
                "max_pending": cluster.max_pending,
                "max_requests_per_connection": cluster.max_requests_per_connection,
            },
        )
        self._check(
            lib.na_builder_cluster(self._builder, c_string(cluster.name), config), f"cluster {cluster.name}"
        )

    def _endpoints(self, name: str, endpoints: tuple[Endpoint, ...]) -> None:
        keys: set[Hashable] = set()
        packed = bytearray()
        for endpoint in endpoints:
            # Not by address alone: another pod may come to have it.
            key = ("endpoint", name, endpoint.address, endpoint.port, endpoint.workload)
            keys.add(key)
            tag = self._tag(key, endpoint, ("cluster", name))
            packed += _ENDPOINT.pack(
                endpoint.address, endpoint.port, endpoint.healthy, endpoint.priority, endpoint.weight, tag
            )
        self._replaced.append((("cluster", name), frozenset(keys)))
        array = ffi.from_buffer("na_endpoint[]", packed)
        tunnels = list(
            dict.fromkeys(endpoint.tunnel for endpoint in endpoints if endpoint.tunnel is not None)
        )
        if tunnels:
            code = self._tunnelled_endpoints(name, array, endpoints, tunnels)
        else:
            code = lib.na_builder_endpoints(self._builder, c_string(name), array, len(endpoints))
        self._check(code, f"the endpoints of cluster {name}")

    def _tunnelled_endpoints(
        self, name: str, array: Any, endpoints: tuple[Endpoint, ...], tunnels: list[Tunnel]
    ) -> int:
        numbers = {tunnel: number for number, tunnel in enumerate(tunnels, 1)}
        via = [0 if endpoint.tunnel is None else numbers[endpoint.tunnel] for endpoint in endpoints]
        # Kept in a name: a struct does not keep what its pointers lead to.
        texts = [
            [
                ffi.new("char[]", c_string(text))
                for text in (
                    " ".join(tunnel.identities),
                    tunnel.authority,
                    " ".join(tunnel.inner),
                    tunnel.network,
                )
            ]
            for tunnel in tunnels
        ]
        configs = [
            {
                "address": tunnel.address,
                "port": tunnel.port,
                "kind": int(tunnel.kind),
                "identities": identities,
                "authority": authority,
                "inner": inner,
                "network": network,
            }
            for tunnel, (identities, authority, inner, network) in zip(tunnels, texts, strict=True)
        ]
        return int(
            lib.na_builder_tunnelled_endpoints(
                self._builder,
                c_string(name),
                array,
                len(endpoints),
                ffi.new("uint32_t[]", via),
                ffi.new("na_tunnel_config[]", configs),
                len(tunnels),
            )
        )

    # -- route tables --

    def _table(self, table: RouteTable) -> None:
        tag = self._tag(("table", table.name), table)
        self._check(
            lib.na_builder_table(self._builder, c_string(table.name), tag, table.on_demand),
            f"route table {table.name}",
        )

    def _virtual_hosts(self, changes: Changes, views: Mapping[str, str], keep: bool) -> None:
        made = [
            (table, host.name, self._make(views[table], table, host)) for table, host in changes.virtual_hosts
        ]
        refused = {(table, name) for table, name, vhost in made if vhost is None}
        # A domain may move from one virtual host to another, so the removals come first.
        for table, name in changes.virtual_hosts_removed:
            if not keep or (table, name) not in refused:
                self._remove_virtual_host(table, name)
        for table, name, vhost in made:
            if vhost is not None:
                # Taken by the builder, also on error.
                ffi.gc(vhost, None)
                code = lib.na_builder_vhost(self._builder, c_string(table), vhost)
                self._check(code, f"virtual host {name} of route table {table}")
            elif not keep:
                self._remove_virtual_host(table, name)
        again = {(table, name) for table, name, _ in made}
        self._released.extend(
            ("virtual host", *key) for key in changes.virtual_hosts_removed if key not in again
        )
        for table, host, unknown in changes.hosts_unknown:
            code = lib.na_builder_host_unknown(self._builder, c_string(table), c_string(host), unknown)
            self._check(code, f"host {host} of route table {table}")

    def _make(self, view: str, table: str, host: VirtualHost) -> Any:
        """The na_vhost; None, and a rejection, if it cannot be made."""
        use = VirtualHostUse(view, table, host.name)
        tag = self._tag(("virtual host", table, host.name), use, ("table", table))
        try:
            return make_virtual_host(host, tag)
        except EngineError as error:
            self.rejections.append(Rejection(table, host.name, str(error)))
            return None

    def _remove_virtual_host(self, table: str, name: str) -> None:
        code = lib.na_builder_vhost_remove(self._builder, c_string(table), c_string(name))
        self._removed(code, f"virtual host {name} from route table {table}")

    # -- destinations --

    def _destination(self, view: str, destination: Destination) -> None:
        names = [ffi.new("char[]", c_string(share.cluster)) for share in destination.clusters]
        table = ffi.NULL if destination.table is None else ffi.new("char[]", c_string(destination.table))
        config = ffi.new(
            "na_destination_config *",
            {
                "tag": self._tag(
                    ("destination", view, destination.key), DestinationUse(view, destination.key)
                ),
                "protocol": int(destination.protocol),
                "table": table,
            },
        )
        code = lib.na_builder_destination(
            self._builder,
            c_string(view),
            ffi.NULL if destination.address is None else destination.address,
            destination.port,
            config,
            ffi.new("char *[]", names),
            ffi.new("uint32_t[]", [share.weight for share in destination.clusters]),
            len(names),
        )
        self._check(code, f"destination {destination.xds_name or destination.key} of view {view}")

    def _remove_destination(self, view: str, key: DestinationKey) -> None:
        address, port = key
        code = lib.na_builder_destination_remove(
            self._builder, c_string(view), ffi.NULL if address is None else address, port
        )
        self._removed(code, f"destination {key} from view {view}")
        self._released.append(("destination", view, key))

    # -- inbound and hints --

    def _inbound(self, uid: str, workload: int, inbound: Inbound) -> None:
        parent = ("inbound", uid)
        made = guard_inbound(inbound)
        self.rejections.extend(Rejection(uid, where, why, "workload") for where, why in made.problems)
        ports = [
            {
                "port": port.port,
                "protocol": int(protocol),
                "tag": self._tag((*parent, port.port), port, parent),
                "guards": guards,
            }
            for port, protocol, guards in made.ports
        ]
        self._replaced.append((parent, frozenset((*parent, port.port) for port in inbound.ports)))
        # Kept in a name: a struct does not keep what its pointers lead to.
        hosts = [ffi.new("char[]", c_string(name.host)) for name in inbound.names]
        names = ffi.new(
            "na_inbound_name[]",
            [(host, name.port, name.target) for host, name in zip(hosts, inbound.names, strict=True)],
        )
        config = ffi.new(
            "na_inbound_config *",
            {
                "fallback": int(made.fallback),
                "fallback_guards": made.fallback_guards,
                "every": made.every,
                "names": names,
                "n_names": len(names),
                "tunnel": int(inbound.tunnel is not None),
                "tunnel_port": inbound.tunnel.port if inbound.tunnel is not None else 0,
            },
        )
        code = lib.na_builder_guarded_inbound(
            self._builder,
            workload,
            ffi.new("na_inbound_port[]", ports),
            len(ports),
            config,
            ffi.new("na_guards *[]", made.handles),
            len(made.handles),
        )
        self._check(code, f"the inbound configuration of {uid}")

    def _hints(self, hints: Hints) -> None:
        packed = b"".join(sorted(hints.addresses))
        code = lib.na_builder_hints(
            self._builder,
            ffi.from_buffer("uint8_t[]", packed),
            len(hints.addresses),
            ffi.new("uint16_t[]", sorted(hints.ports)),
            len(hints.ports),
        )
        self._check(code, "the hints")
        self._check(lib.na_builder_answered(self._builder, hints.answered), "the hints")

    def _name(self, name: str, addresses: tuple[bytes, ...]) -> None:
        packed = ffi.from_buffer("uint8_t[]", b"".join(addresses))
        code = lib.na_builder_dns(self._builder, c_string(name), packed, len(addresses))
        self._check(code, f"the DNS name {name}")
