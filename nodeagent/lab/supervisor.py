"""The supervisor of a lab: one process that owns everything the lab runs, and serves the verbs.

Started in the background by `nodeagent lab up` as `python -m nodeagent.lab.supervisor LAB`, with the lab's folder
prepared.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from nodeagent.config.lab import AgentOptions, load_lab_file
from nodeagent.errors import NodeagentError
from nodeagent.lab import cgroups, rpc
from nodeagent.lab.manifests import Manifest
from nodeagent.lab.names import LabNames
from nodeagent.lab.plan import plan_lab
from nodeagent.lab.running import RunningLab
from nodeagent.lab.verbs import Verbs

log = logging.getLogger("nodeagent.lab")


async def main(name: str) -> None:
    """Run a lab until it is told to end."""
    names = LabNames(name)
    (cgroups.create(f"{names.cgroup}/supervisor") / "cgroup.procs").write_text(str(os.getpid()))
    asyncio.get_event_loop_policy().set_child_watcher(_child_watcher())
    options = json.loads((names.root / "options.json").read_text())
    plan = plan_lab(names, load_lab_file(names.lab_file))
    lab = RunningLab(names, plan, plain=options["plain"], options=AgentOptions(**options["options"]))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lab.stopping.set)
    server = await rpc.serve(names.supervisor_socket, Verbs(lab).handlers())
    try:
        await lab.bring_up(_initial(names.root / "initial.json"))
        lab.phase = "up"
        await lab.watch()
    except (NodeagentError, OSError) as error:
        log.error("the lab failed: %s", error)
        lab.phase, lab.error = "failed", str(error)
        await lab.stopping.wait()
    server.close()
    await lab.shut_down()


def _initial(path: Path) -> list[Manifest]:
    """Read the configuration that `up` was given."""
    return [Manifest.unpack(item) for item in json.loads(path.read_text())]


def _child_watcher() -> asyncio.AbstractChildWatcher:
    """Watch children by pidfd: the default takes a thread for each of them."""
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    return watcher


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main(sys.argv[1]))
