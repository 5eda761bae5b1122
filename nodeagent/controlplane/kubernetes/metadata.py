"""ObjectMeta: labels, annotations and what they mean to the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.controlplane.decode import Fields
from nodeagent.model.service import EVERYONE, NO_ONE, OWN_NAMESPACE

EXPORT_TO: Final = "networking.istio.io/exportTo"
REDIRECTION: Final = "ambient.istio.io/redirection"
"""Annotation that the CNI side (istio-cni) puts on a pod once it is captured: `enabled`."""
_REST: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generateName",
    "managedFields",
    "ownerReferences",
    "selfLink",
)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The parts of metadata that matter."""

    labels: dict[str, str]
    annotations: dict[str, str]


def read_metadata(fields: Fields) -> Metadata:
    """Read `metadata` of an object; its name and namespace were checked by the source."""
    metadata = fields.message("metadata", required=True)
    if metadata is None:
        return Metadata({}, {})
    with metadata:
        metadata.ignore(*_REST)
        return Metadata(metadata.string_map("labels"), metadata.string_map("annotations"))


def check_export_to(values: tuple[str, ...], path: str, fields: Fields) -> frozenset[str]:
    """exportTo of a resource: `*`, `.`, `~` or namespaces; everyone if it is not set."""
    if not values:
        return frozenset({EVERYONE})
    for value in values:
        if value not in (EVERYONE, OWN_NAMESPACE, NO_ONE) and not value.replace("-", "").isalnum():
            fields.problems.error(path, f"{value!r} is neither '*', '.', '~' nor a namespace")
    if NO_ONE in values and len(set(values)) > 1:
        fields.problems.error(path, "'~' (nobody) cannot be combined with others")
    return frozenset(values)
