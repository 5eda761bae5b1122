"""Filters that guard, and chains that hold them, from their JSON mapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.listener.v3 import listener_pb2

# Known to the JSON parser only when imported.
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2  # noqa: F401
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as network_ext_authz_pb2  # noqa: F401
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2  # noqa: F401
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from google.protobuf import json_format
from udpa.type.v1 import typed_struct_pb2  # noqa: F401

from harness.xds_resources import HCM, TCP_PROXY

PREFIX = "type.googleapis.com/envoy.extensions."
HTTP_RBAC = "filters.http.rbac.v3.RBAC"
NETWORK_RBAC = "filters.network.rbac.v3.RBAC"
JWT_AUTHN = "filters.http.jwt_authn.v3.JwtAuthentication"
HTTP_EXT_AUTHZ = "filters.http.ext_authz.v3.ExtAuthz"
NETWORK_EXT_AUTHZ = "filters.network.ext_authz.v3.ExtAuthz"


def guard(kind: str, **fields: Any) -> dict[str, Any]:
    """A filter of a type under envoy.extensions."""
    if kind == NETWORK_RBAC:
        fields.setdefault("statPrefix", "tcp.")
    return {"name": f"envoy.{kind.partition('.v3')[0]}", "typedConfig": {"@type": PREFIX + kind, **fields}}


def hidden(kind: str, **fields: Any) -> dict[str, Any]:
    """The same in a TypedStruct."""
    struct = {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "typeUrl": PREFIX + kind,
        "value": fields,
    }
    return {"name": f"envoy.{kind.partition('.v3')[0]}", "typedConfig": struct}


def http_chain(
    *guards: Mapping[str, Any], before: Iterable[Mapping[str, Any]] = (), **match: Any
) -> dict[str, Any]:
    """A chain that speaks HTTP; `before` are network filters before the HTTP connection manager."""
    manager = {
        "@type": HCM,
        "statPrefix": "inbound",
        "routeConfig": {"name": "inbound|8080||", "virtualHosts": []},
        "httpFilters": list(guards),
    }
    return {"filterChainMatch": match, "filters": [*before, {"name": "http", "typedConfig": manager}]}


def tcp_chain(*guards: Mapping[str, Any], **match: Any) -> dict[str, Any]:
    """A chain that does not."""
    proxy = {"@type": TCP_PROXY, "statPrefix": "tcp", "cluster": "inbound|8080||"}
    return {"filterChainMatch": match, "filters": [*guards, {"name": "tcp", "typedConfig": proxy}]}


def for_tls(chain: Mapping[str, Any], *, certificates: bool, alpn: Iterable[str] = ()) -> dict[str, Any]:
    """A chain as PeerAuthentication STRICT makes it of one."""
    context = {
        "@type": PREFIX + "transport_sockets.tls.v3.DownstreamTlsContext",
        "requireClientCertificate": certificates,
    }
    match = {**chain["filterChainMatch"], "transportProtocol": "tls", "applicationProtocols": list(alpn)}
    return {**chain, "filterChainMatch": match, "transportSocket": {"name": "tls", "typedConfig": context}}


def listener(*chains: Mapping[str, Any]) -> Any:
    """virtualInbound with these chains."""
    data = {
        "name": "virtualInbound",
        "trafficDirection": "INBOUND",
        "address": {"socketAddress": {"address": "0.0.0.0", "portValue": 15006}},
        "filterChains": list(chains),
    }
    return json_format.ParseDict(data, listener_pb2.Listener())
