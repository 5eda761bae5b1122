"""Every scenario once, short: what is told is plausible, and nothing is left behind. Speed is not judged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import groups_named
from harness.requirements import require

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

NODEAGENT = [sys.executable, "-m", "nodeagent.cli.main"]
SHORT = ("--rounds", "1", "--seconds", "0.3", "--warm-up", "0.1", "--steal", "100")
DEFAULT_PINS = Path("/sys/fs/bpf/nodeagent")


def leftovers(pid: int) -> list[str]:
    """Namespaces, cgroups, folders and pins of a run of the benchmark, by its process id."""
    mine = (f"nabench.{pid}", f"nabench.{pid}.*", f"na.bench{pid}*", f"nodeagent-lab-bench{pid}*")
    folders = [Path("/run/netns"), Path("/sys/fs/bpf"), Path("/tmp")]
    found = [path for folder in folders for name in mine for path in folder.glob(name)]
    return [str(path) for path in (*found, *groups_named(f"nabench.{pid}"))]


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the benchmark."""
    require("root", "engine", "taskset")
    command = [*NODEAGENT, "bench", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def bench(folder: Path, *arguments: str) -> Any:
    """Run the benchmark; its JSON."""
    before = DEFAULT_PINS.exists()
    file = folder / "bench.json"
    process = start(*arguments, *SHORT, "--json", str(file), "--html", str(folder / "bench.html"))
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    assert leftovers(process.pid) == []
    assert DEFAULT_PINS.exists() == before, "an agent was given no place for its pins"
    assert "</svg>" in (folder / "bench.html").read_text()
    return json.loads(file.read_text())


def values(case: Any, peer: str) -> dict[str, float]:
    """The one sample of a peer."""
    assert case["failures"] == {}, case["failures"]
    return next(sample["values"] for sample in case["samples"] if sample["peer"] == peer)


def test_http(tmp_path: Path) -> None:
    found = bench(tmp_path, "http1", "http1-close", "--peers", "direct,floor", "--connections", "50")
    assert len(found["cases"]) == 5
    for case in found["cases"]:
        mine, floor, direct = (values(case, peer) for peer in ("nodeagent", "floor", "direct"))
        assert 1 < floor["cpu"] < 500
        assert 1 < mine["worker_cpu"] <= mine["cpu"] < 1000
        assert direct["rate"] > 500
        assert mine["rate"] > 500
        # Whatever else the machine does: requests, their cost and the time that a proxy was busy fit together.
        shares = [peer["busy"] / (peer["cpu"] * peer["rate"]) for peer in (mine, floor)]
        assert shares[0] == pytest.approx(shares[1], rel=0.02)
        assert "cpu" not in direct
        assert 10 < mine["peak_rss"] < 500


def test_other_proxies(tmp_path: Path) -> None:
    require("haproxy", "nginx")
    found = bench(tmp_path, "http1-close", "--peers", "envoy,haproxy,nginx")
    case = found["cases"][0]
    for peer in found["found"]:
        assert values(case, peer)["rate"] > 200
        assert found["found"][peer]
    ratios = {item["peer"]: item["ratio"] for item in case["estimates"] if item["metric"] == "cpu"}
    assert ratios["envoy"]["median"] > 0
    assert ratios["nodeagent"] is None


def test_same_node(tmp_path: Path) -> None:
    found = bench(tmp_path, "same-node", "--peers", "direct")
    assert len(found["cases"]) == 4
    requests, _, bulk, connects = found["cases"]
    for peer in ("nodeagent", "accelerated", "no-mesh", "nft"):
        assert values(requests, peer)["rate"] > 500
        assert values(bulk, peer)["mb"] > 10
        assert 1 < values(connects, peer)["p50"] < 5000
    accelerated = values(requests, "accelerated")
    assert accelerated["bpf"] < accelerated["bpf_counted"]
    # The engine has nothing to do; its Python looks around now and then.
    assert values(requests, "nodeagent")["cpu"] < 5


def test_tcp(tmp_path: Path) -> None:
    small, bulk = bench(tmp_path, "tcp", "--peers", "direct,floor")["cases"]
    assert values(small, "nodeagent")["rate"] > 500
    assert values(bulk, "nodeagent")["throughput"] > 50
    assert 10 < values(bulk, "floor")["cpu_mb"] < 5000
    assert "cpu_mb" not in values(bulk, "direct")


def latency(folder: Path) -> Any:
    """The cases. Where other work keeps the machine from a thousand requests a second, it says so instead."""
    for _ in range(3):
        cases = bench(folder, "latency", "--peers", "direct,floor")["cases"]
        if not any("above the knee" in why for case in cases for why in case["failures"].values()):
            return cases
    pytest.skip("the machine is too busy for a thousand requests a second")


def test_latency(tmp_path: Path) -> None:
    for case in latency(tmp_path):
        direct, mine = values(case, "direct"), values(case, "nodeagent")
        assert 5 < direct["p50"] <= direct["p99"] <= direct["p999"]
        assert mine["p50"] > direct["p50"]
        curve = next(sample["curve"] for sample in case["samples"] if sample["peer"] == "nodeagent")
        assert curve == sorted(curve)
        assert curve[-1][0] == 1


def test_idle(tmp_path: Path) -> None:
    # Enough connections for what the process frees and takes otherwise meanwhile not to matter.
    case = bench(tmp_path, "idle", "--peers", "floor", "--connections", "3000")["cases"][0]
    assert 0 <= values(case, "floor")["private"] < 2000
    assert 100 < values(case, "nodeagent")["private"] < 20_000
    assert 20 < values(case, "nodeagent")["start_rss"] < 200


def test_config(tmp_path: Path) -> None:
    found = bench(tmp_path, "config", "--peers", "envoy", "--services", "50")
    for peer in ("nodeagent", "envoy"):
        if peer in found["found"]:
            mine = values(found["cases"][0], peer)
            assert 0 < mine["effect"] <= mine["effect_max"] < 5000
            assert 0 < mine["first"] <= mine["load"] < 60


def test_captured(tmp_path: Path) -> None:
    found = bench(tmp_path, "tcp", "--captured")
    small, bulk = found["cases"]
    assert 5 < values(small, "nodeagent")["cpu"] < 2000
    assert values(small, "direct")["rate"] > values(small, "nodeagent")["rate"] > 200
    assert values(bulk, "nodeagent")["throughput"] > 20


def test_capture(tmp_path: Path) -> None:
    case = bench(tmp_path, "capture", "--peers", "direct")["cases"][0]
    for peer in ("nodeagent", "nft", "direct"):
        found = values(case, peer)
        assert 5 < found["p50"] <= found["p99"]
        assert 5 < found["client_cpu"] < 2000
        assert ("worker_cpu" in found) == (peer != "direct")
    ratios = {item["peer"]: item["ratio"] for item in case["estimates"] if item["metric"] == "p50"}
    assert 0.1 < ratios["nft"]["median"] < 10


def test_hbone(tmp_path: Path) -> None:
    found = bench(tmp_path, "hbone", "--peers", "direct,envoy")
    http, small, bulk, idle = found["cases"]
    for peer in {"nodeagent", "envoy"} & set(found["found"]):
        assert 5 < values(http, peer)["cpu"] < 2000
        assert values(small, peer)["rate"] > 200
        assert values(bulk, peer)["throughput"] > 20
        assert 0 < values(idle, peer)["private"] < 200_000
    # A thousand connections, two hundred streams to a tunnel.
    assert 5 <= values(idle, "nodeagent")["tunnels"] <= 6
    assert values(bulk, "direct")["throughput"] > 50


def test_mtls(tmp_path: Path) -> None:
    require("haproxy")
    cases = bench(tmp_path, "mtls", "--peers", "haproxy,floor")["cases"]
    keep_alive, bulk, full, resumed, out, out_bulk = cases
    for peer in ("nodeagent", "haproxy", "floor"):
        for case in (keep_alive, full, resumed, out):
            assert 5 < values(case, peer)["cpu"] < 5000
        for case in (bulk, out_bulk):
            assert values(case, peer)["throughput"] > 10
    assert values(full, "nodeagent")["cpu"] > values(keep_alive, "nodeagent")["cpu"]


def test_mtls_between_pods(tmp_path: Path) -> None:
    require("haproxy")
    peers = ("nodeagent", "haproxy", "envoy")
    found = bench(tmp_path, "mtls", "--peers", "envoy,haproxy", "--layout", "pods", "--case", "keep-alive")
    assert [case["name"].partition(":")[0] for case in found["cases"]] == ["TLS in", "TLS out"]
    for case in found["cases"]:
        for peer in set(peers) & set(found["found"]):
            assert 5 < values(case, peer)["cpu"] < 5000


def start_long(json_file: Path) -> subprocess.Popen[str]:
    """A benchmark that has its first case behind it, and three more to come."""
    short = ("--rounds", "4", "--seconds", "0.2", "--warm-up", "0")
    process = start("http1", "--peers", "floor", *short, "--json", str(json_file))
    assert process.stderr is not None
    for number, _ in enumerate(line for line in process.stderr if line.startswith("http1: ")):
        if number == 1:
            break
    return process


def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    process = start_long(tmp_path / "killed.json")
    process.kill()
    process.communicate()
    assert leftovers(process.pid)
    bench(tmp_path, "http1-close", "--peers", "floor")
    assert leftovers(process.pid) == []


def test_an_interruption_shows_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    process = start_long(file)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted" in output
    assert "FLOOR" in output
    document = json.loads(file.read_text())
    assert document["interrupted"]
    assert document["cases"][0]["samples"]
    assert leftovers(process.pid) == []


def test_wrong_usage_is_told(tmp_path: Path) -> None:
    for arguments, said in (
        (["htp1"], "did you mean http1"),
        (["--peers", "envoi"], "did you mean envoy"),
        (["--rounds", "0"], "--rounds 0: must be between"),
        (["--capture-mode", "bpf"], "--capture-mode bpf: must be one of"),
        (["--json", str(tmp_path / "no" / "where.json")], "cannot write"),
    ):
        done = subprocess.run(
            [*NODEAGENT, "bench", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
