"""xDS in, snapshot out: each `<case>.yaml` beside this file is compiled and compared with `<case>.json`.

A case has xDS resources in their JSON mapping (listeners, routes, hosts, clusters, endpoints, inbound) and
what is wanted of them (`wants`: address, port, and the names of want_for; or `everything`). Regenerate
after a meant change with UPDATE_GOLDEN=1 and read the difference.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import harness.xds_resources  # noqa: F401  # registers the filters
import pytest
import yaml
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2  # noqa: F401
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2  # noqa: F401
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2  # noqa: F401
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2  # noqa: F401
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2  # noqa: F401
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf import json_format
from udpa.type.v1 import typed_struct_pb2  # noqa: F401

from nodeagent.compiler.cluster import compile_cluster, compile_endpoints
from nodeagent.compiler.inbound import assemble_inbound, compile_inbound
from nodeagent.compiler.listener import compile_listener
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.route import compile_route_configuration, compile_virtual_host
from nodeagent.compiler.view import Pieces, Want, Wants, assemble
from nodeagent.snapshot.address import format_address, parse_address
from nodeagent.snapshot.diff import check_consistent
from nodeagent.snapshot.values import Snapshot, View

HERE = Path(__file__).parent
CASES = sorted(HERE.glob("*.yaml"))
KINDS = {
    "listeners": (listener_pb2.Listener, compile_listener),
    "routes": (route_pb2.RouteConfiguration, compile_route_configuration),
    "hosts": (route_components_pb2.VirtualHost, compile_virtual_host),
    "clusters": (cluster_pb2.Cluster, compile_cluster),
    "endpoints": (endpoint_pb2.ClusterLoadAssignment, compile_endpoints),
}


def plain(value: Any) -> Any:
    """A value as JSON, without fields that have their defaults."""
    if isinstance(value, IntFlag):
        return [flag.name for flag in type(value) if flag and flag in value]
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, bytes):
        return format_address(value) if len(value) == 16 else value.decode()
    if dataclasses.is_dataclass(value):
        shown = {}
        for field in dataclasses.fields(value):
            member = getattr(value, field.name)
            if field.default_factory is not dataclasses.MISSING:
                is_default = member == field.default_factory()
            else:
                is_default = field.default is not dataclasses.MISSING and member == field.default
            if not is_default:
                shown[field.name] = plain(member)
        if "action" in shown and not isinstance(value.action, IntEnum):
            shown["action"] = {type(value.action).__name__: shown["action"]}
        return shown
    if isinstance(value, Mapping):
        # Sorted: some of them come from sets.
        return dict(sorted((plain_key(key), plain(member)) for key, member in value.items()))
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [plain(member) for member in value]
    return value


def plain_key(key: Any) -> str:
    if isinstance(key, tuple):
        address, port = key
        return f"{format_address(address) if address is not None else '*'}:{port}"
    return str(key)


def name_of(kind: str, data: Mapping[str, Any]) -> str:
    return str(data.get("clusterName" if kind == "endpoints" else "name"))


def compile_case(case: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"rejected": {}, "warnings": {}}
    scope = Scope("v")
    pieces = Pieces(lambda kind, name: True)
    for kind, (message_type, compile_one) in KINDS.items():
        items = case.get(kind, {})
        named = items.items() if isinstance(items, dict) else ((name_of(kind, each), each) for each in items)
        for name, data in named:
            message = json_format.ParseDict(data, message_type())
            try:
                piece: Any = compile_one(message, scope)
            except ValueError as error:
                result["rejected"][f"{kind}/{name}"] = str(error)
                continue
            getattr(pieces, kind)[name] = piece
            warnings = [*piece.warnings, *(w for host in getattr(piece, "hosts", ()) for w in host.warnings)]
            if warnings:
                result["warnings"][f"{kind}/{name}"] = list(dict.fromkeys(warnings))
    if "inbound" in case:
        piece = compile_inbound(json_format.ParseDict(case["inbound"], listener_pb2.Listener()), scope)
        result["inbound"] = plain(assemble_inbound(piece, ()))
        result["warnings"]["inbound"] = list(piece.warnings)
    view = assemble(scope, pieces, wants_of(case), View("v")).view
    check_consistent(Snapshot(views={"v": view}))
    result["view"] = plain(view)
    return result


def wants_of(case: Mapping[str, Any]) -> Wants:
    wants = {}
    for each in case.get("wants", ()):
        key = (parse_address(each["address"]), each["port"])
        wants[key] = Want(key, tuple(each["listeners"]), each.get("host", ""), each.get("cluster", ""))
    return Wants(wants, frozenset(case.get("wantedHosts", ())), bool(case.get("everything", not wants)))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    got = compile_case(yaml.safe_load(path.read_text()))
    expected = path.with_suffix(".json")
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(json.dumps(got, indent=1, ensure_ascii=False) + "\n")
    assert got == json.loads(expected.read_text())


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_compiling_twice_gives_the_same(path: Path) -> None:
    case = yaml.safe_load(path.read_text())
    assert json.dumps(compile_case(case)) == json.dumps(compile_case(case))


def test_there_are_cases() -> None:
    assert len(CASES) >= 5
