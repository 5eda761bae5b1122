"""The xDS types that an agent takes: their URLs and their message classes.

Message classes are imported when a type is first used: an agent that has no L7 stream needs no Envoy protos.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Final, TypeAlias

# protobuf's generated classes have no common typed base that mypy follows through the skipped packages.
Message: TypeAlias = Any

PREFIX: Final = "type.googleapis.com/"

ADDRESS: Final = PREFIX + "istio.workload.Address"
AUTHORIZATION: Final = PREFIX + "istio.security.Authorization"
LISTENER: Final = PREFIX + "envoy.config.listener.v3.Listener"
ROUTE: Final = PREFIX + "envoy.config.route.v3.RouteConfiguration"
VIRTUAL_HOST: Final = PREFIX + "envoy.config.route.v3.VirtualHost"
CLUSTER: Final = PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS: Final = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
MESH: Final = "core/v1alpha1/MeshConfig"
"""istiod's name for it, of group, version and kind."""

# In the order in which they are asked for: nothing is let in before the policies are known.
WORKLOAD_TYPES: Final = (AUTHORIZATION, ADDRESS)
# In the order in which a change must be asked for and applied: make before break.
L7_TYPES: Final = (CLUSTER, ENDPOINTS, LISTENER, ROUTE, VIRTUAL_HOST)

_MODULES: Final = {
    MESH: ("nodeagent.proto.mesh_pb2", "MeshConfig"),
    ADDRESS: ("nodeagent.proto.workload_pb2", "Address"),
    AUTHORIZATION: ("nodeagent.proto.authorization_pb2", "Authorization"),
    LISTENER: ("envoy.config.listener.v3.listener_pb2", "Listener"),
    ROUTE: ("envoy.config.route.v3.route_pb2", "RouteConfiguration"),
    VIRTUAL_HOST: ("envoy.config.route.v3.route_components_pb2", "VirtualHost"),
    CLUSTER: ("envoy.config.cluster.v3.cluster_pb2", "Cluster"),
    ENDPOINTS: ("envoy.config.endpoint.v3.endpoint_pb2", "ClusterLoadAssignment"),
}


@cache
def message_class(type_url: str) -> Message:
    """The message class of a type URL; KeyError for a type that no agent takes."""
    module, name = _MODULES[type_url]
    return getattr(importlib.import_module(module), name)


def body_url(type_url: str) -> str:
    """The type URL of the messages themselves."""
    return PREFIX + "istio.mesh.v1alpha1.MeshConfig" if type_url == MESH else type_url


def short_name(type_url: str) -> str:
    """The last part of a type URL, for messages."""
    return type_url.rpartition("/")[2].rpartition(".")[2]
