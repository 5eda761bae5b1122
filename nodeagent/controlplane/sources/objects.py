"""From a document to a raw object: what every Kubernetes object must have, checked."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from nodeagent.controlplane.report import Issue, Severity
from nodeagent.controlplane.sources.base import ObjectKey, RawObject
from nodeagent.controlplane.sources.documents import Document

DEFAULT_NAMESPACE: Final = "default"
_CLUSTER_SCOPED: Final = frozenset({("", "Namespace"), ("", "Node")})
# RFC 1123 subdomain, as Kubernetes requires of names.
_NAME: Final = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_MAX_NAME: Final = 253


class ObjectError(Exception):
    """A document is not a Kubernetes object; carries the finding."""

    def __init__(self, issue: Issue) -> None:
        self.issue = issue
        super().__init__(str(issue))


def _text(body: Mapping[str, Any], field: str, path: str, source: str, resource: str) -> str:
    value = body.get(field)
    if isinstance(value, str) and value:
        return value
    problem = "required, but missing" if value in (None, "") else f"expected a string, got {value!r}"
    raise ObjectError(Issue(Severity.ERROR, "not-an-object", problem, source, resource, path))


def _name(text: str, path: str, source: str, resource: str) -> str:
    if len(text) <= _MAX_NAME and _NAME.match(text):
        return text
    message = (
        f"{text!r} is not a valid name: use lower case letters, digits, '-' and '.', at most {_MAX_NAME}"
    )
    raise ObjectError(Issue(Severity.ERROR, "invalid-name", message, source, resource, path))


def parse_timestamp(text: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None if it is not one."""
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def read_object(document: Document, source: str, first_seen: Callable[[ObjectKey], float]) -> RawObject:
    """The raw object of a document; ObjectError if it lacks what identifies it.

    `first_seen` gives the creation time of an object that carries none.
    """
    body = document.body
    kind = _text(body, "kind", "kind", source, "")
    group, _, version = _text(body, "apiVersion", "apiVersion", source, kind).rpartition("/")
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        raise ObjectError(
            Issue(Severity.ERROR, "not-an-object", "required, but missing", source, kind, "metadata")
        )
    name = _name(_text(metadata, "name", "metadata.name", source, kind), "metadata.name", source, kind)
    namespace = ""
    if (group, kind) not in _CLUSTER_SCOPED:
        text = metadata.get("namespace") or DEFAULT_NAMESPACE
        namespace = _name(str(text), "metadata.namespace", source, f"{kind} {name}")
    key = ObjectKey(group, kind, namespace, name)
    created = parse_timestamp(str(metadata.get("creationTimestamp") or ""))
    return RawObject(key, version, body, source, first_seen(key) if created is None else created)
