"""A mesh for the tests of a file: up before them, down afterwards."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from harness.mesh import Mesh, eventually

M = TypeVar("M", bound=Mesh)


@contextmanager
def running_mesh(
    name: str,
    folder: Path,
    lab: str,
    *options: str,
    kind: type[M] = Mesh,  # type: ignore[assignment]
    hbone: Collection[str] = (),
    **files: str,
) -> Iterator[M]:
    """A mesh in a lab whose name begins with `name`; `lab`, `options` and `files` are Mesh.up()'s. With `hbone`, every
    node knows by then that just these pods are reached by HBONE."""
    if os.geteuid() != 0:
        pytest.fail("labs need root: network namespaces and cgroups are made")
    mesh = kind(f"{name}{os.getpid()}", folder)
    try:
        mesh.up(lab, *options, **files)
        for node in mesh.state()["nodes"] if hbone else ():
            eventually(
                lambda node=node["name"]: by_hbone(mesh, node),
                lambda names: names == set(hbone),
                within=20,
            )
        yield mesh
    finally:
        mesh.down()


def by_hbone(mesh: Mesh, node: str) -> set[str]:
    """The pods that a node's agent knows to be reached by HBONE."""
    return {row["name"] for row in mesh.get("workloads", node) if row["protocol"] == "HBONE"}
