"""Small pieces that every Envoy resource needs."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from envoy.config.core.v3 import address_pb2, config_source_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

CLUSTER_TYPE: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT_TYPE: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def pack(message: Message) -> Any:
    """An Any with deterministic content, so that equal messages make equal versions."""
    return Any(
        type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}",
        value=message.SerializeToString(deterministic=True),
    )


def duration(value: timedelta) -> Duration:
    """A protobuf duration."""
    found = Duration()
    found.FromTimedelta(value)
    return found


def seconds(value: float) -> Duration:
    """A protobuf duration from seconds."""
    return duration(timedelta(seconds=value))


def ads() -> config_source_pb2.ConfigSource:
    """The config source: this very stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.ApiVersion.V3,
        initial_fetch_timeout=Duration(),
    )


def socket_address(address: str, port: int) -> address_pb2.Address:
    """A TCP address."""
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=address, port_value=port))
