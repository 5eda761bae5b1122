"""Resources ready to send, and how kinds of them are made: in groups that change together, and only when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from google.protobuf.message import Message

from nodeagent.controlplane.change import Change
from nodeagent.controlplane.view import View

Group: TypeAlias = str | int
"""Resources of one kind that are made together: a host, a workload's uid, a port, or one of the names below."""
STATIC: Final = "#static"
INBOUND: Final = "#inbound"
"""What depends on the client's own pod; never shared between clients."""

_TYPE_PREFIX: Final = "type.googleapis.com/"
MESH_TYPE: Final = "core/v1alpha1/MeshConfig"
"""By group, version and kind, as istiod serves it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A serialised resource. Its version is a hash of its body: equal bodies have equal versions, always."""

    name: str
    body: bytes
    version: str
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, message: Message, aliases: Iterable[str] = ()) -> Resource:
        """Serialise a message."""
        body = message.SerializeToString(deterministic=True)
        return cls(name, body, hashlib.blake2b(body, digest_size=8).hexdigest(), tuple(aliases))


def type_url(message: type[Message]) -> str:
    """The type URL of a message type."""
    return _TYPE_PREFIX + str(message.DESCRIPTOR.full_name)


def message_url(type_url: str) -> str:
    """The type URL of the messages of a type."""
    return _TYPE_PREFIX + "istio.mesh.v1alpha1.MeshConfig" if type_url == MESH_TYPE else type_url


class Kind(Protocol):
    """One type of resource. All methods are pure functions of the view."""

    type_url: str
    wildcard: bool
    """Whether an empty first subscription means everything."""
    complete: bool
    """State of the world responses hold all resources: what is absent is deleted (xDS: LDS and CDS)."""

    def groups(self, view: View) -> Iterable[Group]:
        """Every group that the client may see."""
        ...

    def build(self, view: View, group: Group) -> Mapping[str, Resource]:
        """The resources of a group by name; empty if there are none (any more)."""
        ...

    def group_of(self, view: View, name: str) -> Group | None:
        """Where a resource of that name would be; None if nothing could have that name as things are."""
        ...

    def pick(self, resources: Mapping[str, Resource], name: str) -> Iterable[Resource]:
        """What of a group answers a subscription to `name`."""
        ...

    def affected(self, view: View, change: Change) -> set[Group]:
        """Groups whose resources the change may have altered."""
        ...

    def moves(self, change: Change) -> bool:
        """Whether the change may alter what group_of() answers."""
        ...
