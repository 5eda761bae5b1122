"""RouteConfiguration and VirtualHost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from nodeagent.compiler.match import Unmatchable, compile_headers, compile_path, compile_query
from nodeagent.compiler.mutation import compile_mutations
from nodeagent.compiler.pieces import HostPiece, RoutePiece, Scope
from nodeagent.compiler.report import Report
from nodeagent.snapshot.values import (
    NEVER,
    Action,
    Forward,
    HeaderMutation,
    Redirect,
    RegexRewrite,
    Respond,
    Route,
    VirtualHost,
    WeightedCluster,
)

DEFAULT_TIMEOUT_MS: Final = 15_000
"""RouteAction.timeout, if it is not set (route_components.proto)."""
MAX_BODY: Final = 1 << 20
"""The engine's NA_MAX_BODY, and istiod's max_direct_response_body_size_bytes."""
_REDIRECT_CODES: Final = {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}
# Fields that are understood, and those that change nothing that a client or server could see here.
_MUTATIONS: Final = (
    "request_headers_to_add",
    "request_headers_to_remove",
    "response_headers_to_add",
    "response_headers_to_remove",
)
_CONFIGURATION: Final = frozenset(
    (
        "name", "virtual_hosts", "vhds", "validate_clusters", "ignore_port_in_host_matching",
        "max_direct_response_body_size_bytes", "most_specific_header_mutations_wins", "metadata", *_MUTATIONS,
    )
)  # fmt: skip
_HOST: Final = frozenset(
    (
        "name", "domains", "routes", "include_request_attempt_count", "include_attempt_count_in_response",
        "per_request_buffer_limit_bytes", "request_body_buffer_limit", "metadata", *_MUTATIONS,
    )
)  # fmt: skip
_ROUTE: Final = frozenset(
    (
        "name", "match", "route", "redirect", "direct_response", "metadata", "decorator", "tracing",
        "stat_prefix", "per_request_buffer_limit_bytes", "request_body_buffer_limit", *_MUTATIONS,
    )
)  # fmt: skip
_MATCH: Final = frozenset(
    (
        "prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers",
        "query_parameters", "grpc", "runtime_fraction",
    )
)  # fmt: skip
_FORWARD: Final = frozenset(
    (
        "cluster", "weighted_clusters", "prefix_rewrite", "regex_rewrite", "host_rewrite_literal", "timeout",
        "max_stream_duration", "cluster_not_found_response_code", "max_grpc_timeout", "grpc_timeout_offset",
        "priority", "early_data_policy", "upgrade_configs",
        # Reported as what leaves the route out.
        "cluster_header", "cluster_specifier_plugin", "inline_cluster_specifier_plugin",
    )
)  # fmt: skip
_SHARE: Final = frozenset(("name", "weight", *_MUTATIONS))
_REDIRECT: Final = frozenset(
    (
        "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect",
        "prefix_rewrite", "response_code", "strip_query",
    )
)  # fmt: skip


def compile_route_configuration(message: Any, scope: Scope) -> RoutePiece:
    """A route configuration as a piece; ValueError says what is wrong with it."""
    report = Report()
    report.unsupported(message, _CONFIGURATION)
    inherited = compile_mutations(message, report)
    port = _port_of(message.name) if message.ignore_port_in_host_matching else None
    hosts = tuple(_compile_host(host, scope, report, inherited, port) for host in message.virtual_hosts)
    names = [host.value.name for host in hosts]
    if len(names) != len(set(names)):
        raise ValueError("two virtual hosts have the same name")
    return RoutePiece(message.name, hosts, message.HasField("vhds"), report.warnings)


def compile_virtual_host(message: Any, scope: Scope) -> HostPiece:
    """A virtual host that came by itself (VHDS)."""
    return _compile_host(message, scope, Report(), (), None)


def _port_of(name: str) -> int | None:
    """The port in the name of a route configuration: `9080`, or `host:9080`."""
    port = name.rpartition(":")[2]
    return int(port) if port.isdecimal() else None


def _compile_host(
    message: Any, scope: Scope, parent: Report, inherited: tuple[HeaderMutation, ...], port: int | None
) -> HostPiece:
    report = parent.at(f"virtual host {message.name}")
    if not message.domains:
        raise ValueError(f"virtual host {message.name!r} has no domains")
    if message.HasField("matcher"):
        raise ValueError(f"virtual host {message.name!r}: matcher is not supported")
    report.unsupported(message, _HOST)
    clusters: set[str] = set()
    routes = []
    for index, route in enumerate(message.routes):
        compiled = _compile_route(route, scope, report.at(f"route {route.name or index}"), clusters)
        if compiled is not None:
            routes.append(compiled)
    value = VirtualHost(
        message.name,
        _with_port(message.domains, port),
        tuple(routes),
        compile_mutations(message, report) + inherited,
        message.include_request_attempt_count,
    )
    scope.check(value)
    return HostPiece(value, frozenset(clusters), report.warnings)


def _with_port(domains: Iterable[str], port: int | None) -> tuple[str, ...]:
    """The domains; where a Host's port is to be ignored, also with the one port that can be there."""
    names = tuple(domains)
    if port is None:
        return names
    suffix = f":{port}"
    ported = (f"{name}{suffix}" for name in names if not name.endswith((suffix, "*")))
    return tuple(dict.fromkeys((*names, *ported)))


def _compile_route(message: Any, scope: Scope, report: Report, clusters: set[str]) -> Route | None:
    """One route; None if it must never match."""
    report.unsupported(message, _ROUTE)
    try:
        path = compile_path(message.match)
        headers = compile_headers(message.match)
        query = compile_query(message.match)
        _check_match(message.match, report)
        action = _compile_action(message, scope, report, clusters)
    except Unmatchable as error:
        report.warn(f"{error} is not supported yet; the route is left out")
        return None
    return Route(message.name, action, path, headers, query, compile_mutations(message, report))


def _check_match(match: Any, report: Report) -> None:
    """What narrows a match and cannot be told makes the route match nothing: sending too little one way is
    the lesser evil."""
    for descriptor, _ in match.ListFields():
        if descriptor.name not in _MATCH:
            raise Unmatchable(f"match.{descriptor.name}")
    if match.HasField("runtime_fraction"):
        fraction = match.runtime_fraction.default_value
        if fraction.numerator == 0:
            raise Unmatchable("match.runtime_fraction of zero")
        if fraction.numerator < (100, 10_000, 1_000_000)[fraction.denominator]:
            report.warn("match.runtime_fraction is not supported yet; the route always matches")


def _compile_action(message: Any, scope: Scope, report: Report, clusters: set[str]) -> Action:
    kind = message.WhichOneof("action")
    if kind == "route":
        return _compile_forward(message.route, scope, report.at("route"), clusters)
    if kind == "redirect":
        return _compile_redirect(message.redirect, report.at("redirect"))
    if kind == "direct_response":
        return _compile_respond(message.direct_response, report.at("direct_response"))
    raise Unmatchable(kind or "a route without action")


def _compile_forward(action: Any, scope: Scope, report: Report, clusters: set[str]) -> Forward:
    report.unsupported(action, _FORWARD)
    specifier = action.WhichOneof("cluster_specifier")
    if specifier == "cluster":
        shares: tuple[WeightedCluster, ...] = (WeightedCluster(scope.name(action.cluster)),)
        clusters.add(action.cluster)
    elif specifier == "weighted_clusters":
        shares = _compile_shares(action.weighted_clusters, scope, report.at("weighted_clusters"), clusters)
    else:
        raise Unmatchable(f"route.{specifier}")
    if action.HasField("regex_rewrite"):
        rewrite = RegexRewrite(action.regex_rewrite.pattern.regex, action.regex_rewrite.substitution)
    else:
        rewrite = None
    return Forward(
        shares,
        _timeout_ms(action),
        action.prefix_rewrite or None,
        rewrite,
        action.host_rewrite_literal or None,
    )


def _timeout_ms(action: Any) -> int:
    """The shorter of timeout and max_stream_duration; in both, zero means none."""
    timeout = _milliseconds(action.timeout) if action.HasField("timeout") else DEFAULT_TIMEOUT_MS
    stream = action.max_stream_duration
    if stream.HasField("max_stream_duration"):
        return min(timeout, _milliseconds(stream.max_stream_duration))
    return timeout


def _milliseconds(duration: Any) -> int:
    nanoseconds = duration.ToNanoseconds()
    # Less than a millisecond is still a limit.
    return min(max(nanoseconds // 1_000_000, 1), NEVER - 1) if nanoseconds else NEVER


def _compile_shares(
    weighted: Any, scope: Scope, report: Report, clusters: set[str]
) -> tuple[WeightedCluster, ...]:
    report.unsupported(weighted, ("clusters", "total_weight", "runtime_key_prefix"))
    shares = []
    for item in weighted.clusters:
        report.unsupported(item, _SHARE)
        if not item.name:
            raise Unmatchable("route.weighted_clusters.cluster_header")
        weight = item.weight.value
        shares.append(WeightedCluster(scope.name(item.name), weight, compile_mutations(item, report)))
        clusters.add(item.name)
    if not any(share.weight for share in shares):
        raise ValueError("weighted_clusters: the weights sum up to nothing")
    return tuple(shares)


def _compile_redirect(action: Any, report: Report) -> Redirect:
    report.unsupported(action, _REDIRECT)
    return Redirect(
        _REDIRECT_CODES[action.response_code],
        "https" if action.https_redirect else action.scheme_redirect or None,
        action.host_redirect or None,
        action.port_redirect,
        action.path_redirect or None,
        action.prefix_rewrite or None,
        action.strip_query,
    )


def _compile_respond(action: Any, report: Report) -> Respond:
    if not 200 <= action.status < 600:
        raise ValueError(f"direct_response: status {action.status} is not between 200 and 599")
    report.unsupported(action, ("status", "body"))
    kind = action.body.WhichOneof("specifier")
    if kind in (None, "inline_string", "inline_bytes"):
        body = action.body.inline_bytes or action.body.inline_string.encode()
    else:
        report.warn(f"body.{kind} is not supported yet; the body is empty")
        body = b""
    if len(body) > MAX_BODY:
        raise ValueError(f"direct_response: a body of {len(body)} bytes is over the limit of {MAX_BODY}")
    return Respond(action.status, body)
