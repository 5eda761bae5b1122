"""Policies with anything in any field: decoding, analysis and translation find faults, they have none."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.xds_client import node

from nodeagent.controlplane.cache import PerspectiveCache
from nodeagent.controlplane.kinds import KINDS
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.base import Batch, RawObject
from nodeagent.controlplane.sources.documents import Document, read_yaml
from nodeagent.controlplane.sources.objects import ObjectError, read_object
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node

CASES = Path(__file__).parents[2] / "golden" / "translate" / "cases"
OBJECTS = [document.body for document in read_yaml((CASES / "security.yaml").read_text())]
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 70000, 1.5, "", "*", "a*", "*a", "x" * 5000, [], {}, [None], ["*"], {"a": 1}, {"": ""},
    "\0", "\N{SNOWMAN}", "1e9", "{**}", "/{*}", "[", "spiffe://", "10.0.0.0/8", "::", "/", "//", ["a", "a"],
    "http://[::1", "https://a:99999/",
)  # fmt: skip
PER_SEED = 60


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field, what identifies an object excepted."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if path or key not in ("apiVersion", "kind"):
            yield from places(item, (*path, key))


def mutated(chance: random.Random, value: Any) -> Any:
    """A copy with up to three fields replaced or taken away."""
    found = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        *stem, last = chance.choice(list(places(found)) or [("kind",)])
        parent = found
        for key in stem:
            parent = parent[key]
        if chance.random() < 0.75:
            parent[last] = copy.deepcopy(chance.choice(VALUES))
        elif last in parent if isinstance(parent, dict) else True:
            del parent[last]
    return found


def raw_objects(chance: random.Random) -> Iterator[RawObject]:
    for count, body in enumerate(OBJECTS):
        changed = mutated(chance, body) if chance.random() < 0.5 else body
        try:
            yield read_object(Document(changed, 1), "f", lambda key, at=float(count): at)
        except ObjectError:
            continue


@pytest.mark.parametrize("seed", range(4))
def test_nothing_fails(seed: int) -> None:
    for turn in range(PER_SEED):
        world = World(MeshSettings(), Report())
        world.apply(Batch(tuple(raw_objects(random.Random(seed * PER_SEED + turn)))))
        world.analyze()
        for on_demand in (False, True):
            client = read_node(node(pod="web", on_demand=on_demand))
            workload = client.workload(world)
            view = View(world, client.perspective(workload), workload)
            cache = PerspectiveCache()
            for kind in KINDS:
                for group in kind.groups(view):
                    assert cache.resources(kind, view, group) is not None, (seed, turn, group)
        faults = [str(issue) for issue in world.report if issue.code == "internal-error"]
        assert faults == [], (seed, turn)
