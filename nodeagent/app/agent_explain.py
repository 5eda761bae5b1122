"""Answers `nodeagent explain`: what the data path would do, by its own code and with no packet.

What is configured on demand is asked for first, as a connection would; the answer waits for it as one would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nodeagent.admin.explain import AccessExplanation, Asked, Line, RouteExplanation, Target
from nodeagent.app import agent_rows as rows
from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_enrolled import Enrolled
from nodeagent.app.agent_enrolment import Enrolment
from nodeagent.app.agent_ports import Bypass, Engine
from nodeagent.app.agent_view import ViewController
from nodeagent.compiler.dns import search_list
from nodeagent.compiler.workloads import ServiceEntry, WorkloadIndex
from nodeagent.config.agent import AgentConfig
from nodeagent.errors import EngineError, QueryError
from nodeagent.snapshot.address import format_address, format_endpoint, is_v4, parse_address
from nodeagent.snapshot.values import (
    Action,
    ClusterKind,
    Destination,
    Endpoint,
    Forward,
    Protocol,
    RouteTable,
    View,
    WorkloadRef,
)

if TYPE_CHECKING:
    from nodeagent.dataplane.route_choice import RouteChoice

ON_DEMAND_WAIT: Final = 2.0
"""Seconds, as in the data path (na_config.on_demand_timeout_ms)."""
_POLL: Final = 0.01
_HTTP_PORT: Final = 80


class Explainer:
    """Asks the parts of an agent on behalf of people."""

    def __init__(
        self,
        config: AgentConfig,
        index: WorkloadIndex,
        enrolment: Enrolment,
        configuration: Configuration,
        engine: Engine,
        bypass: Bypass | None = None,
    ) -> None:
        self._config = config
        self._index = index
        self._enrolment = enrolment
        self._configuration = configuration
        self._engine = engine
        self._bypass = bypass

    def _workload(self, name: str) -> Enrolled:
        for workload in self._enrolment:
            if f"{workload.pod.namespace}/{workload.pod.name}" == name and workload.state == "enrolled":
                return workload
        raise QueryError(f"workload {name} is not served by the agent of node {self._config.node}")

    # -- where it would go --

    async def route(self, asked: Asked) -> RouteExplanation:
        """Where a workload's request or connection would go; QueryError if the workload is not here."""
        workload = self._workload(asked.workload)
        if workload.view is None:
            raise QueryError(f"workload {asked.workload} has no configuration yet")
        service, address = self._resolve(asked.host, workload)
        if address is None:
            error = (
                f"{asked.host} is no service, workload or address of the mesh; where it leads is up to DNS"
            )
            return RouteExplanation((), error=error)
        destination = await self._destination(workload.view, address, asked.port)
        view = self._configuration.applied.views[workload.view.name]
        walk = _Walk(view, asked, address, self._index.workload_at)
        walk.say("service", _describe_service(service, address, asked.port))
        if destination is None:
            walk.without_destination()
        else:
            await self._follow(walk, workload.view, destination)
            if self._bypass is not None and destination.address is not None:
                for line in self._bypass.explain(workload.pod.uid, destination.key):
                    walk.say("bypass", line)
        own = (each for each in workload.addresses if is_v4(each) == is_v4(address))
        return RouteExplanation(
            tuple(walk.lines),
            source=format_address(next(own, workload.addresses[0])) if workload.addresses else "",
            principal=workload.identity,
            http=walk.http,
            authority=walk.authority,
            path=asked.path,
            targets=tuple(walk.targets),
            error=walk.error,
        )

    def _resolve(self, host: str, workload: Enrolled) -> tuple[ServiceEntry | None, bytes | None]:
        """The service that a name stands for in a pod's namespace, and an address; or the address itself."""
        try:
            return None, parse_address(host)
        except ValueError:
            pass
        domain = f"svc.{self._config.domain}"
        own = f"{host}.{workload.pod.namespace}.{domain}"
        for name in (own, f"{host}.{domain}", f"{host}.{self._config.domain}", host):
            service = self._index.service_of_host(name.rstrip("."))
            if service is not None:
                addresses = service.addresses or self._members(service)
                families = {is_v4(address) for address in workload.addresses}
                fitting = [address for address in addresses if is_v4(address) in families or not families]
                return service, next(iter(fitting or addresses), None)
        return self._answered(host, workload)

    def _answered(self, host: str, workload: Enrolled) -> tuple[ServiceEntry | None, bytes | None]:
        """The same for a name that the workload's questions to name servers are answered with, such as a
        ServiceEntry's."""
        if not self._config.captures_dns:
            return None, None
        search = search_list(workload.pod.namespace, self._config.domain)
        addresses = self._engine.explain_name(host.rstrip(".").lower(), search)
        families = {is_v4(address) for address in workload.addresses}
        fitting = [address for address in addresses if is_v4(address) in families]
        address = next(iter(fitting or addresses), None)
        return self._index.service(self._index.service_named_at(address)) if address else None, address

    def _members(self, service: ServiceEntry) -> tuple[bytes, ...]:
        """Of a headless service: its names are those of its pods."""
        members = self._index.members(f"{service.ref.namespace}/{service.ref.host}")
        return tuple(address for entry in members for address in entry.addresses)

    async def _destination(self, view: ViewController, address: bytes, port: int) -> Destination | None:
        def found() -> Destination | None:
            destinations = self._configuration.applied.views[view.name].destinations
            return destinations.get((address, port)) or destinations.get((None, port))

        hints = self._configuration.applied.hints
        if found() is None and (address in hints.addresses or port in hints.ports):
            view.need_destination(address, port)
            await _until(lambda: found() is not None)
        return found()

    async def _follow(self, walk: _Walk, view: ViewController, destination: Destination) -> None:
        walk.take(destination)
        if not walk.http or destination.table is None:
            walk.shares(destination)
            return
        await self._host(walk, view, destination.table)
        walk.view = self._configuration.applied.views[view.name]
        choice = self._choose(walk, destination.table)
        if choice is None:
            walk.error = f"no route for {walk.authority}{walk.asked.path}: it is answered 404"
            return
        walk.routed(choice.route, choice.cluster, destination)

    def _choose(self, walk: _Walk, table: str) -> RouteChoice | None:
        # Importing it loads the extension.
        from nodeagent.dataplane.route_choice import RouteQuestion

        asked = walk.asked
        question = RouteQuestion(asked.method or "GET", walk.authority, asked.path, asked.headers)
        try:
            return self._engine.explain_route(table, question)
        except EngineError as error:
            raise QueryError(str(error)) from error

    async def _host(self, walk: _Walk, view: ViewController, table: str) -> None:
        """Virtual hosts that come on demand are asked for by the name in the request."""
        host = walk.authority.lower()

        def is_known() -> bool:
            current = self._configuration.applied.views[view.name].tables.get(table)
            return current is None or _knows(current, host)

        if not is_known():
            view.need_host(table, host)
            await _until(is_known)

    # -- whether it may --

    def access(self, asked: Asked) -> AccessExplanation:
        """Whether the policies of a workload let something in; QueryError if it cannot be asked here."""
        workload = self._workload(asked.workload)
        # Importing it loads the extension.
        from nodeagent.dataplane.access import AccessQuestion

        try:
            question = AccessQuestion(
                asked.port,
                parse_address(asked.source),
                parse_address(asked.destination),
                asked.principal,
                method=asked.method,
                authority=asked.host,
                path=asked.path,
                headers=asked.headers,
            )
            answer = self._engine.explain_access(workload.pod.uid, question)
        except (ValueError, EngineError) as error:
            raise QueryError(str(error)) from error
        lines = tuple(Line(str(step.step), " ".join(step.words)) for step in answer.steps)
        return AccessExplanation(lines, answer.allowed, answer.status, answer.detail)


class _Walk:
    """The way so far: what is found out goes into `lines`, and in the end into `targets` or `error`."""

    def __init__(
        self, view: View, asked: Asked, address: bytes, workload_at: Callable[[bytes], WorkloadRef | None]
    ) -> None:
        self.view = view
        self.asked = asked
        self.lines: list[Line] = []
        self.targets: list[Target] = []
        self.error = ""
        self.http = False
        self.authority = dict(asked.headers).get("host") or _authority(asked)
        self._address = address
        self._workload_at = workload_at

    def say(self, step: str, text: str) -> None:
        """Note a step."""
        self.lines.append(Line(step, text))

    def without_destination(self) -> None:
        """Nothing is configured for the address and port."""
        if self.view.refuse_unknown:
            self.error = "nothing is configured for it, and what is not configured is refused (REGISTRY_ONLY)"
            return
        self.say("listener", "none: the connection passes through as it is")
        self._pass_through()
        self.say("endpoint", _describe_target(self.targets[0]))

    def _pass_through(self) -> None:
        ref = self._workload_at(self._address)
        name, node = (f"{ref.namespace}/{ref.name}", ref.node) if ref is not None else ("", "")
        self.targets.append(Target(format_address(self._address), self.asked.port, True, name, node))

    def take(self, destination: Destination) -> None:
        """A listener takes the connection."""
        speaks = destination.protocol
        self.http = self.asked.method is not None and speaks in (Protocol.HTTP, Protocol.DETECT)
        name = destination.xds_name or "no listener"
        table = (
            f", route configuration {self.view.tables[destination.table].xds_name}"
            if destination.table
            else ""
        )
        self.say("listener", f"{name}: {speaks.name}{table}")

    def shares(self, destination: Destination) -> None:
        """Where a connection goes that is not read as HTTP."""
        if not destination.clusters:
            self.say("cluster", "none: on to where it was going")
            self._pass_through()
            self.say("endpoint", _describe_target(self.targets[0]))
            return
        names = [self.view.clusters[share.cluster].xds_name for share in destination.clusters]
        self.say("cluster", names[0] + (f" (of {len(names)}, by weight)" if len(names) > 1 else ""))
        self.cluster(destination.clusters[0].cluster)

    def routed(self, route: str, cluster: str, destination: Destination) -> None:
        """A route takes the request. One that leads on to where it was going leads to the service that is there."""
        assert destination.table is not None
        host, action = _action(self.view.tables[destination.table], route, cluster)
        where = rows.describe_action(self.view, action) if action is not None else cluster
        self.say("route", f"{route or '(without name)'} of virtual host {host}: {where}")
        if cluster and self.view.clusters[cluster].kind is ClusterKind.ORIGINAL_DST:
            self.shares(destination)
        elif cluster:
            self.cluster(cluster)
        else:
            self.error = f"the route answers itself: {where}"

    def cluster(self, name: str) -> None:
        """The endpoints of a cluster."""
        cluster = self.view.clusters[name]
        if cluster.kind is ClusterKind.BLACKHOLE:
            self.error = f"cluster {cluster.xds_name} leads nowhere"
        elif cluster.kind is ClusterKind.ORIGINAL_DST:
            self._pass_through()
        else:
            endpoints = self.view.endpoints.get(name, ())
            self.targets.extend(map(_target, endpoints))
            if not endpoints:
                self.error = f"cluster {cluster.xds_name} has no endpoints: it is answered 503"
        for target in self.targets:
            self.say("endpoint", _describe_target(target))


def _target(endpoint: Endpoint) -> Target:
    ref = endpoint.workload
    return Target(
        format_address(endpoint.address),
        endpoint.port,
        endpoint.healthy,
        f"{ref.namespace}/{ref.name}" if ref is not None else "",
        ref.node if ref is not None else "",
        endpoint.tunnel.identities if endpoint.tunnel is not None else (),
    )


def _describe_target(target: Target) -> str:
    who = f" {target.workload}" if target.workload else ""
    where = f" on {target.node}" if target.node else ""
    way = f"by HBONE, as {' or '.join(target.identities)}" if target.identities else "in plaintext"
    health = "" if target.healthy else ", UNHEALTHY"
    return f"{format_endpoint(parse_address(target.address), target.port)}{who}{where}, {way}{health}"


def _describe_service(service: ServiceEntry | None, address: bytes, port: int) -> str:
    place = format_endpoint(address, port)
    if service is None:
        return f"none: {place} is no service's name"
    return f"{service.ref.namespace}/{service.ref.name} ({service.ref.host}) at {place}"


def _authority(asked: Asked) -> str:
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    return host if asked.port == _HTTP_PORT else f"{host}:{asked.port}"


def _knows(table: RouteTable, host: str) -> bool:
    """Whether a virtual host of the name is there, or known not to be, or none is waited for."""
    if not table.on_demand or host in table.unknown_hosts:
        return True
    return any(host == domain.lower() for each in table.virtual_hosts.values() for domain in each.domains)


def _action(table: RouteTable, route: str, cluster: str) -> tuple[str, Action | None]:
    """(virtual host, action) of the route that the engine has chosen, by its name and first cluster."""
    for host in table.virtual_hosts.values():
        for each in host.routes:
            action = each.action
            first = action.clusters[0].cluster if isinstance(action, Forward) and action.clusters else ""
            if (each.name, first) == (route, cluster):
                return host.name, action
    return "(unknown)", None


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what comes on demand, as long as a connection would."""
    for _ in range(int(ON_DEMAND_WAIT / _POLL)):
        if condition():
            return
        await asyncio.sleep(_POLL)
