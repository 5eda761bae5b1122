"""The control plane with a generated mesh, as a process: `python -m nodeagent.bench.mesh_server`.

Each line on its standard input changes one endpoint. It answers with a JSON line that holds the moment at which
the control plane was told (CLOCK_MONOTONIC, nanoseconds): what a watch of an API server takes before is not the
mesh's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from nodeagent.app.controlplane import ControlPlane
from nodeagent.bench.mesh_source import GeneratedSource
from nodeagent.config.controlplane import ControlPlaneConfig


def _say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


async def serve(services: int, target_port: int, folder: Path) -> None:
    """Serve until standard input ends. The xDS socket is xds.sock in the folder."""
    source = GeneratedSource(services, target_port)
    config = ControlPlaneConfig(
        config=(), listen=(), unix=folder / "xds.sock", admin=folder / "controlplane.sock", drain_seconds=0
    )
    plane = ControlPlane(config, source)
    began = time.monotonic()
    await plane.start()
    _say("ready", seconds=time.monotonic() - began)
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            moment = time.monotonic_ns()
            _say("changed", at=moment, address=source.move())
    finally:
        await plane.stop()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, required=True)
    parser.add_argument("--target-port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.services, arguments.target_port, arguments.folder))


if __name__ == "__main__":
    main()
