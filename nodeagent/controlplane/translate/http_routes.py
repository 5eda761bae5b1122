"""VirtualService http routes to Envoy routes, for one client and one port."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final, TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2

from nodeagent.controlplane.istio.rules import source_matches
from nodeagent.controlplane.istio.values import (
    Destination,
    HeaderOperations,
    Headers,
    HttpMatch,
    HttpRoute,
    MatchKind,
    Redirect,
    Rewrite,
    VirtualService,
    WeightedDestination,
)
from nodeagent.controlplane.translate.matches import route_match
from nodeagent.controlplane.translate.packing import duration
from nodeagent.controlplane.view import View
from nodeagent.model import names
from nodeagent.model.names import ClusterName

Route: TypeAlias = route_components_pb2.Route
RouteAction: TypeAlias = route_components_pb2.RouteAction
RedirectAction: TypeAlias = route_components_pb2.RedirectAction
HeaderValueOption: TypeAlias = base_pb2.HeaderValueOption
_REDIRECT_CODES: Final = {
    301: RedirectAction.MOVED_PERMANENTLY,
    302: RedirectAction.FOUND,
    303: RedirectAction.SEE_OTHER,
    307: RedirectAction.TEMPORARY_REDIRECT,
    308: RedirectAction.PERMANENT_REDIRECT,
}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def http_routes(view: View, rule: VirtualService, port: int) -> list[Route]:
    """The routes of a VirtualService that apply to the client on a port, up to one that leaves nothing over."""
    labels = dict(view.perspective.labels)
    found: list[Route] = []
    for item in rule.http:
        if not item.matches:
            found.append(_route(view, rule, item, None, port))
            return found
        for match in item.matches:
            if not source_matches(match.source, port, view.namespace, labels):
                continue
            found.append(_route(view, rule, item, match, port))
            if match.catches_all:
                return found
    return found


def _route(view: View, rule: VirtualService, item: HttpRoute, match: HttpMatch | None, port: int) -> Route:
    found = Route(name=_name(item, match), match=route_match(match))
    found.metadata.filter_metadata["istio"].fields[
        "config"
    ].string_value = f"/apis/networking.istio.io/v1/namespaces/{rule.namespace}/virtual-service/{rule.name}"
    if match is not None and match.stat_prefix:
        found.stat_prefix = match.stat_prefix
    _change_headers(found, item.headers)
    if item.redirect is not None:
        found.redirect.CopyFrom(_redirect(item.redirect))
    elif item.direct_response is not None:
        found.direct_response.status = item.direct_response.status
        if item.direct_response.body:
            found.direct_response.body.inline_bytes = item.direct_response.body
    elif item.destinations:
        _forward(view, found, item, match, port)
    else:
        # Only a field that is not supported yet (delegate): say so to the client rather than guess.
        found.direct_response.status = 503
    found.decorator.operation = f"{rule.hosts[0]}:{port}{match.uri.value if match and match.uri else '/*'}"
    return found


def _name(item: HttpRoute, match: HttpMatch | None) -> str:
    return f"{item.name}.{match.name}" if match is not None and match.name else item.name


def _redirect(redirect: Redirect) -> RedirectAction:
    found = RedirectAction(
        host_redirect=redirect.authority,
        response_code=_REDIRECT_CODES.get(redirect.code, RedirectAction.MOVED_PERMANENTLY),
    )
    if redirect.uri:
        found.path_redirect = redirect.uri
    elif redirect.prefix:
        found.prefix_rewrite = redirect.prefix
    if redirect.scheme:
        found.scheme_redirect = redirect.scheme
    if redirect.port is not None:
        found.port_redirect = redirect.port or _DEFAULT_PORTS.get(redirect.scheme or "http", 80)
    return found


# -- forwarding ------------------------------------------------------------------------------------------------


def _forward(view: View, found: Route, item: HttpRoute, match: HttpMatch | None, port: int) -> None:
    action = found.route
    set_timeout(action, item.timeout, proxyless=view.perspective.proxyless)
    authority = item.headers.authority
    if item.rewrite is not None:
        _rewrite(action, item.rewrite, match)
        authority = item.rewrite.authority or authority
    shares = [share for share in item.destinations if share.weight] or list(item.destinations)
    if len(item.destinations) == 1:
        only = item.destinations[0]
        action.cluster = destination_cluster(view, only.destination, port)
        _change_headers(found, only.headers)
        authority = only.headers.authority or authority
    else:
        _weighted(view, action, shares, port)
    if authority:
        action.host_rewrite_literal = authority


def set_timeout(action: RouteAction, timeout: timedelta | None, *, proxyless: bool = False) -> None:
    """No limit unless one is set (0 is none); one that is set also caps what a gRPC client asks for.

    A proxyless client reads only max_stream_duration.
    """
    limit = timeout or timedelta()
    action.timeout.CopyFrom(duration(limit))
    if limit and not proxyless:
        # Not max_stream_duration: with it Envoy takes no notice of timeout any more.
        action.max_grpc_timeout.CopyFrom(duration(limit))
    else:
        action.max_stream_duration.max_stream_duration.CopyFrom(duration(limit))
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(duration(limit))


def _rewrite(action: RouteAction, rewrite: Rewrite, match: HttpMatch | None) -> None:
    if rewrite.regex is not None:
        action.regex_rewrite.pattern.regex, action.regex_rewrite.substitution = rewrite.regex
    elif rewrite.uri and match is not None and match.uri is not None and match.uri.kind is MatchKind.REGEX:
        # Envoy's prefix_rewrite means the prefix that was matched: after a regex that is the whole path.
        action.regex_rewrite.pattern.regex = match.uri.value
        action.regex_rewrite.substitution = rewrite.uri.replace("\\", "\\\\")
    elif rewrite.uri:
        action.prefix_rewrite = rewrite.uri


def _weighted(view: View, action: RouteAction, shares: Iterable[WeightedDestination], port: int) -> None:
    for share in shares:
        added = action.weighted_clusters.clusters.add(name=destination_cluster(view, share.destination, port))
        added.weight.value = share.weight
        _change_headers(added, share.headers)
        if share.headers.authority:
            added.host_rewrite_literal = share.headers.authority


def destination_cluster(view: View, destination: Destination, port: int) -> str:
    """The cluster of a destination. Its port defaults to the service's only one, else to the listener's."""
    number = destination.port
    if number is None:
        service = view.service(destination.host)
        ports = service.tcp_ports if service else ()
        number = ports[0].port if len(ports) == 1 else port
    return str(ClusterName(names.OUTBOUND, number, destination.subset, destination.host))


# -- headers ---------------------------------------------------------------------------------------------------


def _change_headers(target: Any, headers: Headers) -> None:
    """Add changes to a route or a weighted cluster: both have the same four fields."""
    target.request_headers_to_add.extend(_options(headers.request))
    target.request_headers_to_remove.extend(headers.request.remove)
    target.response_headers_to_add.extend(_options(headers.response))
    target.response_headers_to_remove.extend(headers.response.remove)


def _options(operations: HeaderOperations) -> Iterable[HeaderValueOption]:
    for pairs, action in (
        (operations.set, HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
        (operations.add, HeaderValueOption.APPEND_IF_EXISTS_OR_ADD),
    ):
        for name, value in pairs:
            yield HeaderValueOption(
                header=base_pb2.HeaderValue(key=name, value=value),
                append_action=action,
                keep_empty_value=not value,
            )
