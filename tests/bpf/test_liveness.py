"""Programs know at once whether the agent lives: asked by one that lets connect() pass only then."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import ScratchCgroup, require, scratch_cgroup
from harness.bpf_source import compile_bpf

from nodeagent.dataplane.bpf import BpfObject
from nodeagent.dataplane.ebpf_node import ABI
from nodeagent.dataplane.liveness import LIVENESS, agent_is_alive

ASKING = """
#include <linux/bpf.h>
#include "liveness.h"
char LICENSE[] SEC("license") = "GPL";
SEC("cgroup/connect4") int only_with_agent(struct bpf_sock_addr *ctx) { return agent_is_alive(); }
"""

OWNER = """
import sys, time
from pathlib import Path
from nodeagent.dataplane.cgroup import own_group
from nodeagent.dataplane.ebpf_node import EbpfNode, WorkloadEntry
node = EbpfNode(Path(sys.argv[1]), own_group())
node.start()
if len(sys.argv) > 2:
    node.workloads[bytes([255] * 8)] = WorkloadEntry(1, 1).pack()  # so that what is pinned stays
print("started", flush=True)
sys.stdin.readline()
node.close()
"""


@contextmanager
def _owner(group: ScratchCgroup, pins: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(pins), "with a workload"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=group.join,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def _may_connect(group: ScratchCgroup) -> bool:
    """Whether the program lets a process in the group pass; nobody listens on port 9."""
    script = "import socket; print(socket.socket().connect_ex(('127.0.0.1', 9)))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, preexec_fn=group.join, capture_output=True, text=True, check=True)
    assert int(done.stdout) in (errno.EPERM, errno.ECONNREFUSED)
    return int(done.stdout) == errno.ECONNREFUSED


@pytest.mark.parametrize("end", ["killed", "told to end"])
def test_programs_know_at_once_that_the_agent_is_gone(end: str, folder: Path, tmp_path: Path) -> None:
    require("root", "engine", "clang")
    compile_bpf(tmp_path, "asking", ASKING)
    pin = folder / "pins" / f"v{ABI}" / "maps" / LIVENESS
    with scratch_cgroup("agent") as agent, scratch_cgroup("asking") as asking:
        target = os.open(asking.group.directory, os.O_RDONLY)
        with _owner(agent, folder / "pins") as owner, BpfObject("asking", {LIVENESS: pin}, tmp_path) as asked:
            asked.attach_pinned("only_with_agent", target, folder / "link")
            assert _may_connect(asking)
            assert agent_is_alive(pin)
            if end == "killed":
                owner.send_signal(signal.SIGKILL)
            elif owner.stdin is not None:
                owner.stdin.close()
            owner.wait(10)
            assert not agent_is_alive(pin)
            assert not _may_connect(asking)
            with _owner(agent, folder / "pins"):
                assert _may_connect(asking), "the next agent counts"
            assert not _may_connect(asking)
        os.close(target)
