"""The BPF objects in the real kernel: each is taken by the verifier; outbound capture works on real sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OBJECTS = Path(__file__).parents[2] / "nodeagent" / "dataplane" / "_native"

# Runs in a mount namespace of its own, so that the bpffs and its pins go with it.
LOAD = """
set -e
mount -t tmpfs none /mnt && mkdir /mnt/bpf && mount -t bpf none /mnt/bpf
bpftool prog loadall "$1" /mnt/bpf/programs && ls /mnt/bpf/programs
"""

# In mount, network and cgroup of its own: attach, enrol this namespace, connect, look.
CAPTURE = """
set -e
mount -t tmpfs none /mnt && mkdir /mnt/bpf && mount -t bpf none /mnt/bpf
ip link set lo up
mkdir "$CGROUP"
trap 'echo $$ > "$PARENT/cgroup.procs"; rmdir "$CGROUP"' EXIT
bpftool prog loadall "$1" /mnt/bpf/programs pinmaps /mnt/bpf/maps
attach() { bpftool cgroup attach "$CGROUP" "$1" pinned "/mnt/bpf/programs/$2" multi; }
attach connect4 outbound_connect4
attach connect6 outbound_connect6
attach getpeername4 outbound_getpeername4
attach getpeername6 outbound_getpeername6
attach sock_ops outbound_established
echo $$ > "$CGROUP/cgroup.procs"
"$PYTHON" -c "$CLIENT"
"""

CLIENT = """
import json, socket, struct, subprocess

def cookie():
    with socket.socket() as s:
        return struct.unpack("Q", s.getsockopt(socket.SOL_SOCKET, 71, 8))[0]

def accept(listener, family, address):
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect((address, 8080))
        server, _ = listener.accept()
        server.close()
        return list(client.getpeername()[:2])

key = " ".join(f"{b:#x}" for b in struct.pack("Q", cookie()))
subprocess.run(f"bpftool map update pinned /mnt/bpf/maps/workloads key {key} value 1 0 0 0 0 0 0 0", shell=True,
               check=True)
with socket.create_server(("::", 15001), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
    listener.settimeout(2)
    peers = [accept(listener, socket.AF_INET, "192.0.2.7"), accept(listener, socket.AF_INET6, "2001:db8::7"),
             accept(listener, socket.AF_INET6, "::ffff:192.0.2.9")]
    try:
        socket.create_connection(("127.0.0.1", 9), 1)
        loopback = "captured"
    except ConnectionRefusedError:
        loopback = "left alone"
dump = json.loads(subprocess.run("bpftool -j map dump pinned /mnt/bpf/maps/destinations", shell=True, check=True,
                                 capture_output=True).stdout)
print(json.dumps({"peers": peers, "loopback": loopback, "kept": len(dump)}))
"""


def unshare(*options: str, script: str, argument: Path, **environment: str) -> str:
    """Run a script in namespaces of its own; its standard output."""
    result = subprocess.run(
        ["unshare", *options, "bash", "-c", script, "bash", str(argument)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("path", sorted(OBJECTS.glob("*.bpf.o")), ids=lambda path: path.name)
def test_verifier_takes_object(path: Path) -> None:
    assert unshare("-m", script=LOAD, argument=path).split()


def test_objects_are_built() -> None:
    assert {path.name for path in OBJECTS.glob("*.bpf.o")} >= {"outbound.bpf.o", "inbound.bpf.o"}


def test_connect_is_captured_and_its_destination_kept() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
    group = root / f"nodeagent.test.{os.getpid()}"
    output = unshare(
        "-m",
        "-n",
        script=CAPTURE,
        argument=OBJECTS / "outbound.bpf.o",
        CGROUP=str(group),
        PARENT=str(root),
        PYTHON=sys.executable,
        CLIENT=CLIENT,
    )
    seen = json.loads(output.splitlines()[-1])
    assert seen["peers"] == [["192.0.2.7", 8080], ["2001:db8::7", 8080], ["::ffff:192.0.2.9", 8080]]
    assert seen["loopback"] == "left alone"
    assert seen["kept"] == 3
    assert not group.exists()
