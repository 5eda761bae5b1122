"""Golden translation: YAML in, what a client is served out, as JSON beside it.

`cases/NAME.yaml` holds the objects; a leading comment `# client: ...` names who asks (keys of node(), JSON) and
`# types: ...` which types are shown. `UPDATE_GOLDEN=1 pytest tests/golden/translate` writes the JSON anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2 as http_ext_authz_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as network_ext_authz_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format
from harness.xds_client import node

from nodeagent.controlplane.cache import ResourceCache
from nodeagent.controlplane.kinds import KINDS
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch, ObjectKey
from nodeagent.controlplane.sources.documents import read_yaml
from nodeagent.controlplane.sources.objects import read_object
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node
from nodeagent.proto import authorization_pb2, workload_pb2

CASES = Path(__file__).parent / "cases"
MESSAGES = {
    "clusters": cluster_pb2.Cluster,
    "endpoints": endpoint_pb2.ClusterLoadAssignment,
    "listeners": listener_pb2.Listener,
    "routes": route_pb2.RouteConfiguration,
    "virtual_hosts": route_components_pb2.VirtualHost,
    "addresses": workload_pb2.Address,
}
# Shown only where a case asks for them.
ON_REQUEST = {"authorizations": authorization_pb2.Authorization}
# Known to the JSON printer only when imported.
PACKED = (router_pb2, http_inspector_pb2, original_dst_pb2, http_connection_manager_pb2, tcp_proxy_pb2)
PACKED_TOO = (
    http_protocol_options_pb2,
    http_rbac_pb2,
    network_rbac_pb2,
    jwt_pb2,
    http_ext_authz_pb2,
    network_ext_authz_pb2,
    uri_template_match_pb2,
)


def _option(text: str, name: str, default: str) -> str:
    found = re.search(rf"^# {name}: (.*)$", text, re.MULTILINE)
    return found[1] if found else default


def _world(text: str) -> World:
    count = iter(range(1, 1000))
    seen: dict[ObjectKey, float] = {}
    objects = [
        read_object(
            document, f"case.yaml:{document.line}", lambda key: seen.setdefault(key, float(next(count)))
        )
        for document in read_yaml(text)
    ]
    world = World(MeshSettings(), Report())
    world.apply(Batch(changed=tuple(objects)))
    world.analyze()
    return world


def _served(world: World, who: dict[str, Any], types: list[str]) -> dict[str, Any]:
    """All resources of some types that a client is served, by type and name."""
    client = read_node(node(**who))
    workload = client.workload(world)
    view = View(world, client.perspective(workload), workload)
    kinds = {kind.type_url: kind for kind in KINDS}
    cache = ResourceCache(world, kinds).acquire(view.perspective)
    found: dict[str, Any] = {}
    for name in types:
        message = (MESSAGES | ON_REQUEST)[name]
        kind = kinds[f"type.googleapis.com/{message.DESCRIPTOR.full_name}"]
        groups = kind.groups(view) if name != "virtual_hosts" else sorted(world.registry.services)
        resources = [item for group in groups for item in (cache.resources(kind, view, group) or {}).values()]
        found[name] = {
            item.name: {
                **({"aliases": list(item.aliases)} if item.aliases else {}),
                **json_format.MessageToDict(message.FromString(item.body), preserving_proto_field_name=True),
            }
            for item in resources
        }
    return found


@pytest.mark.parametrize("case", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_translation(case: Path) -> None:
    text = case.read_text()
    world = _world(text)
    types = _option(text, "types", " ".join(MESSAGES)).split()
    made = {
        "issues": [str(issue) for issue in world.report],
        **_served(world, json.loads(_option(text, "client", "{}")), types),
    }
    rendered = json.dumps(made, indent=1, sort_keys=True) + "\n"
    golden = case.with_suffix(".json")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(rendered)
    assert golden.exists(), f"{golden} is missing: UPDATE_GOLDEN=1 writes it"
    assert rendered == golden.read_text(), f"differs from {golden.name}; UPDATE_GOLDEN=1 takes the new one"


@pytest.mark.parametrize("case", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_translation_is_deterministic(case: Path) -> None:
    """Two control planes with the same configuration give the same versions."""
    text = case.read_text()
    who = json.loads(_option(text, "client", "{}"))
    assert _served(_world(text), who, list(MESSAGES)) == _served(_world(text), who, list(MESSAGES))
