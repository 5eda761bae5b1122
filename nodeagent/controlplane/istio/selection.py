"""What Istio's policies have in common in YAML: to which pods or resources they apply."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.controlplane.decode import Fields
from nodeagent.controlplane.istio.security_values import TargetRef
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.sources.base import RawObject

MAX_TARGETS: Final = 16
_GATEWAY_API: Final = "gateway.networking.k8s.io"
# Istio's API: what a policy may be attached to.
_TARGET_KINDS: Final = {
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    (_GATEWAY_API, "Gateway"),
    (_GATEWAY_API, "GatewayClass"),
}


def common(raw: RawObject, spec: Fields, root_namespace: str, *, attachable: bool = True) -> dict[str, Any]:
    """The fields of SecurityPolicy, as keyword arguments."""
    targets = _targets(spec, raw.key.namespace, root_namespace) if attachable else ()
    return {
        "name": raw.key.name,
        "namespace": raw.key.namespace,
        "created": raw.created,
        "selector": _selector(spec),
        "targets": targets,
        "source": raw.source,
    }


def _selector(spec: Fields) -> dict[str, str]:
    nested = spec.message("selector")
    if nested is None:
        return {}
    with nested:
        labels = nested.string_map("matchLabels")
        for key, value in labels.items():
            if not key or "*" in key or "*" in value:
                path = f"{nested.at('matchLabels')}[{key}]"
                nested.problems.error(path, "labels are compared as they are: no empty key, no wildcard")
    if not labels:
        message = "selects nothing in particular: the policy is for every pod of the namespace"
        spec.problems.add(Severity.WARNING, "empty-selector", spec.at("selector"), message)
    return labels


def _targets(spec: Fields, namespace: str, root_namespace: str) -> tuple[TargetRef, ...]:
    single = spec.message("targetRef")
    items = list(spec.messages("targetRefs"))
    set_fields = [name for name in ("selector", "targetRef", "targetRefs") if spec.has(name)]
    if len(set_fields) > 1:
        spec.problems.error(spec.path, f"only one of {', '.join(set_fields)} may be set")
    if len(items) > MAX_TARGETS:
        spec.error("targetRefs", f"there are {len(items)}; at most {MAX_TARGETS} are allowed", "out-of-range")
    readers = ([single] if single is not None else []) + items[:MAX_TARGETS]
    return tuple(_target(reader, namespace, root_namespace) for reader in readers)


def _target(fields: Fields, namespace: str, root_namespace: str) -> TargetRef:
    with fields:
        found = TargetRef(
            fields.string("group"),
            fields.string("kind", required=True),
            fields.string("name", required=True),
        )
        other = fields.string("namespace")
    # The core group may be written out (Istio).
    group = "" if found.group == "core" else found.group
    if found.kind and (group, found.kind) not in _TARGET_KINDS:
        known = ", ".join(sorted(f"{kind} ({name or 'core'})" for name, kind in _TARGET_KINDS))
        fields.error(
            "kind", f"{found.kind} of group {found.group!r} cannot have a policy; there are: {known}"
        )
    if other and other != namespace:
        fields.error("namespace", f"must be the policy's own namespace {namespace}, or left out")
    if found.kind == "GatewayClass" and namespace != root_namespace:
        fields.error("kind", f"a policy for a GatewayClass must be in the root namespace {root_namespace}")
    return TargetRef(group, found.kind, found.name)
