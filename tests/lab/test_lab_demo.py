"""The Bookinfo demo, as `make demo` runs it, and its parts that read what others write."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from harness import require
from harness.labs import WITHOUT_ROOT, LabUnderTest

DEMO = Path(__file__).parents[2] / "deploy" / "samples" / "bookinfo" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bookinfo_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_PLACEHOLDERS = (
    (r"lab \w+ is", "lab NAME is"),
    (r'"[0-9a-f-]{36}"', '"REQUEST"'),
    (r"\[\S+Z\]", "[TIME]"),
    (r"reviews-v\d \d+ \(no route", "any reviews (no route"),
    (r"reviews-v[13] \d+(, reviews-v[13] \d+)?", "reviews-v1 or v3"),
    (r"by reviews-v[13]", "by reviews-v1 or v3"),
    # Source ports, process ids, counts and times; not ports of services, addresses and what versions are called.
    (r"(?<=[\d\]]:)[1-6]\d{4}\b|(?<![\w.:])\d+(\.\d+)?(?![\w.:])|\d+\.\d+ s", "N"),
    (r" +", " "),
)


def _normal(output: str) -> list[str]:
    """What does not differ between two runs in one mode."""
    for pattern, placeholder in _PLACEHOLDERS:
        output = re.sub(pattern, placeholder, output)
    return output.splitlines()


def _run_demo(lab: str, mode: str) -> tuple[int, str, str]:
    environment = {**os.environ, "DEMO_LAB": lab, "NODEAGENT_CAPTURE": mode}
    command = [sys.executable, str(DEMO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.lab
@pytest.mark.timeout(240)
def test_the_demo_is_ok_in_both_modes_tells_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    require("root", "nft", "engine", "curl")
    labs = {mode: LabUnderTest(tmp_path) for mode in ("ebpf", "nft")}
    with ThreadPoolExecutor() as threads:
        runs = threads.map(lambda mode: _run_demo(labs[mode].name, mode), labs)
    told = {}
    for mode, (status, output, errors) in zip(labs, runs, strict=True):
        assert output.splitlines()[-1:] == ["demo: ok"], output + errors
        assert status == 0
        assert output.count("demo: ") == 1
        assert labs[mode].footprint() == []
        told[mode] = _normal(output)
    assert told["ebpf"] == told["nft"]


def test_a_failure_is_one_last_line_with_the_reason() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to run the demo without root")
    command = [*WITHOUT_ROOT, sys.executable, str(DEMO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("demo: FAILED: `nodeagent lab ")
    assert "root" in done.stdout.splitlines()[-1] + done.stderr


def test_metrics_are_added_up_by_workload(demo: ModuleType) -> None:
    text = """# TYPE istio_requests_total counter
istio_requests_total{reporter="source",destination_workload="a",response_code="200"} 3.0
istio_requests_total{reporter="source",destination_workload="a",response_code="200",x="1"} 2
istio_requests_total{reporter="source",destination_workload="a",response_code="503"} 9
istio_requests_total{reporter="destination",destination_workload="b",response_code="200"} 7
istio_requests_created{reporter="source",destination_workload="a",response_code="200"} 1.7e9
"""
    assert demo.requests_by_workload(text) == Counter({"a": 5})
