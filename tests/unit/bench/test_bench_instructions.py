"""The check of instructions per request: what it refuses, and that its reference is whole."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "native" / "bench" / "instructions.py"


@pytest.fixture(scope="module")
def instructions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("instructions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("value", "good"), [(900, True), (1000, True), (1050, True), (1051, False)])
def test_more_than_the_tolerance_fails(instructions: ModuleType, value: int, good: bool) -> None:
    assert instructions.compare({"http": value}, {"http": 1000}, 5.0) is good


def test_one_bad_case_is_enough(instructions: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    reference = {"http": 1000, "tcp": 1000}
    assert not instructions.compare({"http": 2000, "tcp": 1000}, reference, 5.0)
    out = capsys.readouterr().out
    assert "+100.0 % above the tolerance" in out
    assert "+0.0 %" in out


def test_the_reference_has_every_case(instructions: ModuleType) -> None:
    reference = json.loads(instructions.REFERENCE.read_text())
    assert set(reference["instructions_per_request"]) == set(instructions.CASES)
    assert reference["compiler"]
