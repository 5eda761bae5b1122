"""Resources with extensions of every kind, as JSON."""

from __future__ import annotations

import base64

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import any_pb2

from nodeagent.app.agent_resource import resource_json

UNKNOWN = any_pb2.Any(type_url="type.googleapis.com/stats.PluginConfig", value=b"\x08\x01")


def test_unknown_extensions_are_bytes_and_the_rest_is_readable() -> None:
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix="outbound")
    manager.http_filters.add(name="istio.stats").typed_config.CopyFrom(UNKNOWN)
    listener = listener_pb2.Listener(name="0.0.0.0_80")
    listener.metadata.filter_metadata["istio"].fields["value"].string_value = "kept"
    listener.metadata.typed_filter_metadata["x"].CopyFrom(UNKNOWN)
    listener.filter_chains.add().filters.add(name="hcm").typed_config.Pack(manager)
    before = listener.SerializeToString(deterministic=True)

    found = resource_json(listener)

    unknown = {"@type": UNKNOWN.type_url, "value": base64.b64encode(UNKNOWN.value).decode()}
    (hcm,) = found["filterChains"][0]["filters"]
    assert hcm["typedConfig"]["statPrefix"] == "outbound"
    assert hcm["typedConfig"]["httpFilters"] == [{"name": "istio.stats", "typedConfig": unknown}]
    assert found["metadata"] == {
        "filterMetadata": {"istio": {"value": "kept"}},
        "typedFilterMetadata": {"x": unknown},
    }
    assert listener.SerializeToString(deterministic=True) == before
