"""Filters that restrict who may pass, as stages: which filter becomes what, and where it is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from nodeagent.compiler.callout import compile_http_callout, compile_network_callout
from nodeagent.compiler.filters import unpack
from nodeagent.compiler.match import Unmatchable
from nodeagent.compiler.pieces import UNGUARDED, Guarding, Scope
from nodeagent.compiler.rbac import compile_http_rbac, compile_network_rbac
from nodeagent.compiler.report import Report
from nodeagent.compiler.tokens import compile_tokens
from nodeagent.snapshot.policies import Callout, Rules

HTTP_RBAC: Final = "envoy.extensions.filters.http.rbac.v3.RBAC"
NETWORK_RBAC: Final = "envoy.extensions.filters.network.rbac.v3.RBAC"
JWT_AUTHN: Final = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
HTTP_EXT_AUTHZ: Final = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
NETWORK_EXT_AUTHZ: Final = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
GUARDS: Final = frozenset((HTTP_RBAC, NETWORK_RBAC, JWT_AUTHN, HTTP_EXT_AUTHZ, NETWORK_EXT_AUTHZ))


def add_guard(so_far: Guarding, item: Any, kind: str, scope: Scope, report: Report) -> Guarding:
    """What the filters so far and one more ask for; ValueError if the filter is malformed."""
    name = item.name or kind
    try:
        added = _read(item, kind, scope, report)
    except Unmatchable as error:
        added = Guarding(closed=(f"filter {name}: {error} is not supported yet",))
    if added == UNGUARDED:
        return so_far
    return Guarding(
        so_far.connection + added.connection,
        so_far.request + added.request,
        so_far.clusters | added.clusters,
        so_far.remote + added.remote,
        (*so_far.filters, name),
        so_far.closed + added.closed,
    )


def add_unknown(so_far: Guarding, name: str) -> Guarding:
    """A filter that may restrict, for all that is known."""
    closed = (*so_far.closed, f"filter {name} is not supported yet")
    return replace(so_far, filters=(*so_far.filters, name), closed=closed)


def _read(item: Any, kind: str, scope: Scope, report: Report) -> Guarding:
    if kind == HTTP_RBAC:
        from envoy.extensions.filters.http.rbac.v3 import rbac_pb2

        return Guarding(request=compile_http_rbac(unpack(item, rbac_pb2.RBAC), report))
    if kind == NETWORK_RBAC:
        from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_pb2

        return Guarding(connection=compile_network_rbac(unpack(item, network_pb2.RBAC), report))
    if kind == JWT_AUTHN:
        from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2

        stage = compile_tokens(unpack(item, config_pb2.JwtAuthentication), report)
        return Guarding(request=(stage.tokens,), remote=stage.remote) if stage.tokens.rules else UNGUARDED
    if kind == HTTP_EXT_AUTHZ:
        from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2

        callout, cluster = compile_http_callout(unpack(item, ext_authz_pb2.ExtAuthz), scope, report)
        return Guarding(request=(callout,), clusters=frozenset((cluster,)))
    from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as network_ext_pb2

    callout, cluster = compile_network_callout(unpack(item, network_ext_pb2.ExtAuthz), scope, report)
    return Guarding(connection=(callout,), clusters=frozenset((cluster,)))


def for_http(guarding: Guarding) -> Guarding:
    """The same, for a chain that speaks HTTP: what is asked of its connections is asked of each request."""
    if not guarding.connection:
        return guarding
    if any(isinstance(stage, Callout) for stage in guarding.connection):
        closed = (*guarding.closed, "a network ext_authz filter before HTTP is not supported yet")
        return replace(guarding, connection=(), closed=closed)
    rules = tuple(stage for stage in guarding.connection if isinstance(stage, Rules))
    return replace(guarding, connection=(), request=(*rules, *guarding.request))
