"""What is in force and what is known, as rows of the admin API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nodeagent.admin.state import (
    ClusterRow,
    ConnectionRow,
    EndpointRow,
    ListenerRow,
    RouteRow,
    ServicePortRow,
    ServiceRow,
    WorkloadRow,
)
from nodeagent.compiler.workloads import ServiceEntry, WorkloadEntry, WorkloadIndex
from nodeagent.dataplane.report import Connection
from nodeagent.snapshot.address import format_address, format_endpoint
from nodeagent.snapshot.matches import MatchFlags, MatchKind, NamedMatch, PathMatch
from nodeagent.snapshot.values import (
    NEVER,
    Action,
    Cluster,
    ClusterKind,
    Destination,
    Endpoint,
    Forward,
    Inbound,
    Redirect,
    Respond,
    Route,
    RouteTable,
    Tunnel,
    View,
    VirtualHost,
    WeightedCluster,
    WorkloadRef,
)

_TYPES = {
    ClusterKind.ENDPOINTS: "EDS",
    ClusterKind.ORIGINAL_DST: "ORIGINAL_DST",
    ClusterKind.BLACKHOLE: "STATIC",
}
_SIGNS = {
    MatchKind.EXACT: "=",
    MatchKind.PREFIX: "=prefix:",
    MatchKind.REGEX: "=regex:",
    MatchKind.SUFFIX: "=suffix:",
    MatchKind.CONTAINS: "=contains:",
    MatchKind.PRESENT: "",
    MatchKind.PATH_PREFIX: "=prefix:",
}


def workload_row(entry: WorkloadEntry, is_local: bool) -> WorkloadRow:
    """A workload of the mesh."""
    ref = entry.ref
    return WorkloadRow(
        name=ref.name,
        namespace=ref.namespace,
        uid=ref.uid,
        addresses=tuple(map(format_address, entry.addresses)),
        node=ref.node,
        service_account=ref.service_account,
        protocol="HBONE" if entry.hbone else "MTLS" if entry.mtls else "TCP",
        status="HEALTHY" if entry.healthy else "UNHEALTHY",
        services=tuple(name for name, _ in entry.services),
        waypoint=str(entry.waypoint or ""),
        workload_type=ref.workload_type,
        workload_name=ref.workload_name,
        canonical_name=ref.canonical_name,
        canonical_revision=ref.canonical_revision,
        cluster_id=ref.cluster,
        locality=entry.locality,
        trust_domain=ref.trust_domain,
        local=is_local,
    )


def service_rows(index: WorkloadIndex) -> Iterator[ServiceRow]:
    """The services of the mesh."""
    for entry, members, healthy in index.services():
        yield _service_row(entry, members, healthy)


def _service_row(entry: ServiceEntry, members: int, healthy: int) -> ServiceRow:
    names = {None: "", True: "HTTP", False: "TCP"}
    return ServiceRow(
        name=entry.ref.name,
        namespace=entry.ref.namespace,
        hostname=entry.ref.host,
        addresses=tuple(map(format_address, entry.addresses)),
        ports=tuple(
            ServicePortRow(port.port, port.target_port, protocol=names[port.http]) for port in entry.ports
        ),
        endpoints=members,
        healthy=healthy,
        waypoint=str(entry.waypoint or ""),
    )


# -- routes --


def route_rows(view: View) -> Iterator[RouteRow]:
    """The routes of a view."""
    for table in view.tables.values():
        for host in table.virtual_hosts.values():
            for route in host.routes:
                yield _route_row(view, table, host, route)


def _route_row(view: View, table: RouteTable, host: VirtualHost, route: Route) -> RouteRow:
    action = route.action
    shares = action.clusters if isinstance(action, Forward) else ()
    clusters = [view.clusters[share.cluster] for share in shares]
    timeout = action.timeout_ms if isinstance(action, Forward) and action.timeout_ms != NEVER else None
    service = next((cluster.service for cluster in clusters if cluster.service is not None), None)
    return RouteRow(
        view=view.name,
        name=table.xds_name,
        virtual_host=host.name,
        domains=host.domains,
        match=describe_match(route),
        action=describe_action(view, action),
        route=route.name,
        namespace=service.namespace if service is not None else "",
        clusters=tuple(cluster.xds_name for cluster in clusters),
        timeout_ms=timeout,
    )


def describe_match(route: Route) -> str:
    """A route's match in a line."""
    parts = [_describe_path(route.path)]
    parts.extend(f"header({_describe_named(match)})" for match in route.headers)
    parts.extend(f"query({_describe_named(match)})" for match in route.query)
    return " ".join(parts)


def _describe_path(path: PathMatch | None) -> str:
    if path is None:
        return "/*"
    marks = {MatchKind.PREFIX: "*", MatchKind.PATH_PREFIX: "/*"}
    text = f"regex:{path.value}" if path.kind is MatchKind.REGEX else path.value + marks.get(path.kind, "")
    return f"{text} (ignoring case)" if path.flags & MatchFlags.IGNORE_CASE else text


def _describe_named(match: NamedMatch) -> str:
    negation = "!" if match.flags & MatchFlags.INVERT else ""
    return f"{negation}{match.name}{_SIGNS[match.kind]}{match.value}"


def describe_action(view: View, action: Action) -> str:
    """A route's action in a line."""
    if isinstance(action, Redirect):
        target = action.path or action.prefix or ""
        return f"redirect {action.code} {action.scheme or ''}://{action.authority or ''}{target}"
    if isinstance(action, Respond):
        return f"answer {action.status}"
    return _describe_shares(view, action.clusters)


def _describe_shares(view: View, shares: Iterable[WeightedCluster]) -> str:
    shares = tuple(shares)
    names = [view.clusters[share.cluster].xds_name for share in shares]
    if len(shares) < 2:
        return ", ".join(names)
    total = sum(share.weight for share in shares) or 1
    return ", ".join(
        f"{name} {100 * share.weight / total:.3g}%" for name, share in zip(names, shares, strict=True)
    )


# -- clusters and endpoints --


def cluster_rows(view: View) -> Iterator[ClusterRow]:
    """The clusters of a view."""
    for cluster in view.clusters.values():
        endpoints = view.endpoints.get(cluster.name, ())
        yield ClusterRow(
            view=view.name,
            name=cluster.xds_name,
            fqdn=cluster.service.host if cluster.service is not None else cluster.xds_name,
            port=cluster.port,
            subset=cluster.subset,
            direction="outbound" if cluster.xds_name.startswith("outbound|") else "",
            type=_TYPES[cluster.kind],
            namespace=cluster.service.namespace if cluster.service is not None else "",
            lb=cluster.lb.name if cluster.kind is ClusterKind.ENDPOINTS else "",
            endpoints=len(endpoints),
            healthy=sum(endpoint.healthy for endpoint in endpoints),
        )


def endpoint_rows(view: View) -> Iterator[EndpointRow]:
    """The endpoints of a view's clusters."""
    for name, endpoints in view.endpoints.items():
        cluster = view.clusters[name]
        for endpoint in endpoints:
            yield _endpoint_row(view, cluster, endpoint)


def _endpoint_row(view: View, cluster: Cluster, endpoint: Endpoint) -> EndpointRow:
    workload = endpoint.workload
    return EndpointRow(
        view=view.name,
        cluster=cluster.xds_name,
        address=format_address(endpoint.address),
        port=endpoint.port,
        status="HEALTHY" if endpoint.healthy else "UNHEALTHY",
        weight=endpoint.weight,
        priority=endpoint.priority,
        workload=(workload.name or workload.workload_name) if workload is not None else "",
        namespace=workload.namespace if workload is not None else "",
        tunnel=endpoint.tunnel.identities if endpoint.tunnel is not None else (),
        via=_via(endpoint.tunnel),
    )


def _via(tunnel: Tunnel | None) -> str:
    if tunnel is None or not any(tunnel.address):
        return ""
    address = format_address(tunnel.address)
    return f"[{address}]:{tunnel.port}" if ":" in address else f"{address}:{tunnel.port}"


# -- listeners and connections --


def destination_rows(view: View) -> Iterator[ListenerRow]:
    """What a view makes of connections."""
    for destination in view.destinations.values():
        yield ListenerRow(
            view=view.name,
            address="*" if destination.address is None else format_address(destination.address),
            port=destination.port,
            direction="OUTBOUND",
            protocol=destination.protocol.name,
            destination=_describe_destination(view, destination),
            name=destination.xds_name,
        )


def _describe_destination(view: View, destination: Destination) -> str:
    if destination.table is not None:
        return f"Route: {view.tables[destination.table].xds_name}"
    if destination.clusters:
        return f"Cluster: {_describe_shares(view, destination.clusters)}"
    return "PassthroughCluster"


def inbound_rows(view: str, pod: str, namespace: str, inbound: Inbound) -> Iterator[ListenerRow]:
    """What a workload's ports speak; port 0 stands for all others."""
    for port in inbound.ports:
        yield ListenerRow(
            view=view,
            address="*",
            port=port.port,
            direction="INBOUND",
            protocol=port.protocol.name,
            destination=f"Cluster: {port.xds_name}",
            name=pod,
            namespace=namespace,
        )
    yield ListenerRow(
        view=view,
        address="*",
        port=0,
        direction="INBOUND",
        protocol=inbound.fallback.name,
        destination="InboundPassthroughCluster",
        name=pod,
        namespace=namespace,
    )


def connection_row(connection: Connection, workload: WorkloadRef | None) -> ConnectionRow:
    """A live connection."""
    return ConnectionRow(
        id=connection.id,
        name=workload.name if workload is not None else connection.workload,
        namespace=workload.namespace if workload is not None else "",
        direction="INBOUND" if connection.inbound else "OUTBOUND",
        protocol=connection.protocol.name,
        state=connection.state.name.lower(),
        remote=format_endpoint(*connection.remote),
        local=format_endpoint(*connection.local),
        age_ms=connection.age_ms,
        bytes_in=connection.bytes_in,
        bytes_out=connection.bytes_out,
        cluster=connection.cluster,
        worker=connection.worker,
        principal=connection.principal,
    )
