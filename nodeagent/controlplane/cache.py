"""Resources made once for all clients alike, dropped when what they were made of changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nodeagent.controlplane.change import Change
from nodeagent.controlplane.report import Issue, Severity
from nodeagent.controlplane.resources import INBOUND, Group, Kind, Resource
from nodeagent.controlplane.view import Perspective, View
from nodeagent.controlplane.world import World

log = logging.getLogger(__name__)


class PerspectiveCache:
    """The resources of one perspective, by kind and group, made when first asked for."""

    def __init__(self) -> None:
        self.users = 0
        self._made: dict[str, dict[Group, Mapping[str, Resource]]] = {}

    def resources(self, kind: Kind, view: View, group: Group) -> Mapping[str, Resource] | None:
        """The resources of a group; what depends on the client's own pod is made anew each time.

        None: they cannot be made. Clients keep what they have of it: without its inbound listener a pod would be
        without its policies.
        """
        if group == INBOUND:
            return _build(kind, view, group)
        made = self._made.setdefault(kind.type_url, {})
        found = made.get(group)
        if found is None:
            found = _build(kind, view, group)
            if found is not None:
                made[group] = found
        return found

    def forget(self, kind: Kind, groups: set[Group]) -> None:
        """Drop what a change may have altered."""
        made = self._made.get(kind.type_url)
        if not made:
            return
        for group in groups if len(groups) < len(made) else made.keys() & groups:
            made.pop(group, None)


def _build(kind: Kind, view: View, group: Group) -> Mapping[str, Resource] | None:
    """Make the resources of a group; a fault in one group (None) leaves all others served."""
    report, owner = view.world.report, ("build", kind.type_url, group)
    try:
        made = kind.build(view, group)
    except Exception as error:
        log.exception("making %s of %s", kind.type_url, group)
        message = f"cannot be served as {kind.type_url}: {type(error).__name__}: {error}"
        issue = Issue(Severity.ERROR, "internal-error", message, resource=str(group))
        report.replace(owner, [issue])
        return None
    report.replace(owner, ())
    return made


class ResourceCache:
    """The caches of all perspectives in use; one goes when its last client goes."""

    def __init__(self, world: World, kinds: Mapping[str, Kind]) -> None:
        self.world = world
        self.kinds = kinds
        self._caches: dict[Perspective, PerspectiveCache] = {}

    def acquire(self, perspective: Perspective) -> PerspectiveCache:
        """The cache of a perspective, with one more user."""
        found = self._caches.setdefault(perspective, PerspectiveCache())
        found.users += 1
        return found

    def release(self, perspective: Perspective) -> None:
        """One user less."""
        found = self._caches[perspective]
        found.users -= 1
        if found.users == 0:
            del self._caches[perspective]

    def invalidate(self, change: Change) -> None:
        """Forget what the change may have altered, in every perspective."""
        for perspective, cache in self._caches.items():
            view = View(self.world, perspective)
            for kind in self.kinds.values():
                cache.forget(kind, kind.affected(view, change))
