"""Decoding of WorkloadEntry (networking.istio.io v1alpha3, v1beta1, v1), strict: a workload that is no pod, such as a
service of a virtual machine.

Istio's resource does not say on which node it is. The annotation `nodeagent.io/node` does: the agent of that node
serves the workload, and may ask for its certificate. Who may write a WorkloadEntry decides that, as who may write a
Pod does by its `nodeName`.
"""

from __future__ import annotations

from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio import fields as read
from nodeagent.controlplane.kubernetes.metadata import REDIRECTION, Metadata, read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.sources.base import RawObject
from nodeagent.model import names
from nodeagent.model.workload import (
    Locality,
    Workload,
    WorkloadType,
    canonical_name,
    canonical_revision,
)

NODE: Final = "nodeagent.io/node"
TUNNEL: Final = "networking.istio.io/tunnel"
"""Label: `http` means that it is reached by HBONE."""


def decode_workload_entry(raw: RawObject, problems: Problems, scope: MeshScope) -> Workload | None:
    """A WorkloadEntry; what is wrong is in `problems`."""
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind")
        metadata = read_metadata(top)
        ready = _is_healthy(top)
        spec = top.message("spec", required=True)
        if spec is None:
            return None
        with spec:
            address = _address(spec)
            spec.unsupported("network")
            labels = metadata.labels | spec.string_map("labels")
            return Workload(
                uid=names.workload_entry_uid(scope.cluster_id, raw.key.namespace, raw.key.name),
                name=raw.key.name,
                namespace=raw.key.namespace,
                addresses=(address,) if address else (),
                service_account=spec.string("serviceAccount") or "default",
                node=metadata.annotations.get(NODE, ""),
                labels=labels,
                workload_name=raw.key.name,
                workload_type=WorkloadType.POD,
                canonical_name=canonical_name(labels, raw.key.name),
                canonical_revision=canonical_revision(labels),
                ready=ready,
                captured=_is_captured(metadata, labels),
                service_ports=_ports(spec),
                locality=_locality(spec),
                capacity=read.endpoint_weight(spec),
                is_pod=False,
            )


def _address(spec: Fields) -> str:
    text = spec.string("address", required=True)
    address = names.canonical_address(text) if text else None
    if text and address is None:
        spec.error("address", f"{text!r} is not an IP address; names and Unix sockets are not supported yet")
    return address or ""


def _is_captured(metadata: Metadata, labels: dict[str, str]) -> bool:
    return labels.get(TUNNEL) == "http" or metadata.annotations.get(REDIRECTION) == "enabled"


def _is_healthy(top: Fields) -> bool:
    """Not if a health check says so (condition Healthy); one without checks is."""
    status = top.message("status")
    conditions = status.messages("conditions") if status is not None else ()
    return not any(
        item.string("type") == "Healthy" and item.string("status") == "False" for item in conditions
    )


def _ports(spec: Fields) -> dict[str, int]:
    """Port of the workload by the name of the service's port."""
    ports = spec.message("ports")
    if ports is None:
        return {}
    found = {name: ports.port(name) for name in ports.data}
    return {name: port for name, port in found.items() if port is not None}


def _locality(spec: Fields) -> Locality:
    parts = [*spec.string("locality").split("/"), "", ""]
    return Locality(parts[0], parts[1], parts[2])
