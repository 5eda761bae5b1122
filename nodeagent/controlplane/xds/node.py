"""Who a client says it is: Envoy's Node message as Istio's proxies fill it."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.core.v3 import base_pb2

from nodeagent.controlplane.view import Client
from nodeagent.model.extensions import ON_DEMAND_FEATURE, PARTS_FEATURE, PEERS_FEATURE
from nodeagent.model.names import canonical_address

DEFAULT_NAMESPACE: Final = "default"


def _text(metadata: Any, key: str) -> str:
    return str(metadata.fields[key].string_value) if key in metadata.fields else ""


def _labels(metadata: Any) -> dict[str, str] | None:
    if "LABELS" not in metadata.fields:
        return None
    labels = metadata.fields["LABELS"].struct_value.fields
    return {key: str(value.string_value) for key, value in sorted(labels.items())}


def read_node(node: base_pb2.Node) -> Client:
    """The client behind a node message: id `type~ip~pod.namespace~domain` and Istio's metadata.

    What the id does not say, the metadata may (NAME, NAMESPACE, INSTANCE_IPS); a node that says nothing is served as
    a sidecar of the default namespace.
    """
    parts = node.id.split("~")
    kind, address, name = (parts[0], parts[1], parts[2]) if len(parts) == 4 else ("sidecar", "", "")
    pod, _, namespace = name.rpartition(".")
    metadata = node.metadata
    addresses = [address, *_text(metadata, "INSTANCE_IPS").split(",")]
    found = dict.fromkeys(canonical for text in addresses if (canonical := canonical_address(text)))
    return Client(
        node_id=node.id,
        kind=kind,
        namespace=_text(metadata, "NAMESPACE") or namespace or DEFAULT_NAMESPACE,
        pod=_text(metadata, "NAME") or pod,
        addresses=tuple(found),
        labels=_labels(metadata),
        on_demand=ON_DEMAND_FEATURE in node.client_features,
        proxyless=_text(metadata, "GENERATOR") == "grpc",
        http10=_text(metadata, "HTTP10") == "1",
        knows_peers=not {ON_DEMAND_FEATURE, PEERS_FEATURE}.isdisjoint(node.client_features),
        parts=PARTS_FEATURE in node.client_features,
        node=_text(metadata, "NODE_NAME"),
    )
