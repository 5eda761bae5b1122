"""The documents and deploy/ name only what there is: files, options, settings, metrics, ports, layers."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import tomllib
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nodeagent.cli.main import COMMANDS
from nodeagent.cli.options import Command
from nodeagent.dataplane import ebpf_shared, ruleset
from nodeagent.dataplane._native._engine import ffi, lib

ROOT = Path(__file__).parents[3]
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md", "PERFORMANCE.md")}
FOREIGN = {"--no-deps", "--now", "--net", "--system-site-packages"}
"""Options of other programs, in commands that people are told to type."""


def tracked(*patterns: str) -> list[str]:
    return subprocess.check_output(["git", "ls-files", "--", *patterns], cwd=ROOT, text=True).splitlines()


def sources(*patterns: str) -> str:
    return "\n".join((ROOT / name).read_text() for name in tracked(*patterns))


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> str:
    return DOCUMENTS[request.param]


def test_files_are_there(document: str) -> None:
    names = {Path(name).name for name in tracked()}
    named = re.findall(r"[`/ ]([\w/.-]+\.(?:py|c|h|yaml|env|service|sh))`", document)
    assert [name for name in named if Path(name).name not in names] == []


def options_of(app: Any) -> set[str]:
    """Every option of a command, and of the commands below it."""
    if isinstance(app, Command):
        return {f"--{option.name}" for option in app.options}
    found, pending = {"--help", "--version"}, [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        found.update(name for parameter in command.params for name in parameter.opts)
        pending.extend(getattr(command, "commands", {}).values())
    return found


@pytest.fixture(scope="module")
def options() -> set[str]:
    apps = [importlib.import_module(module).app for module, *_ in COMMANDS.values()]
    return set().union(*map(options_of, apps))


def test_options_are_there(document: str, options: set[str]) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", document))
    assert named - options - FOREIGN == set(), "if it is an option of another program, name it in FOREIGN"


def test_settings_of_units_and_manifests_are_there() -> None:
    commands = [importlib.import_module(f"nodeagent.cli.{name}").app for name in ("run", "controlplane")]
    variables = {variable for app in commands for option in app.options for variable in option.variables}
    named = re.findall(
        r"\bNODEAGENT_[A-Z_]+[A-Z]", sources("deploy/systemd", "deploy/kubernetes", "README.md")
    )
    assert set(named) - variables == set()


def counters(describe: Any) -> set[str]:
    found: set[str] = set()
    for index in count():
        if not (info := describe(index)):
            return found
        found.add(ffi.string(info.name).decode())
    raise AssertionError


def test_metrics_are_there(document: str) -> None:
    made = sources("nodeagent/*.py")
    known = set(re.findall(r'"((?:nodeagent|istio)_\w+)"', made))
    known |= {f"{name}_total" for name in known}
    known |= {f"nodeagent_{name}" for name in counters(lib.na_engine_counter_info)}
    known |= {f"nodeagent_bypass_{name}" for name in counters(lib.na_flows_counter_info)}
    named = set(re.findall(r"`((?:nodeagent|istio)_\w+[a-z])`", document))
    assert {name for name in named if name not in known and f"{name}_" not in made} == set()


def test_the_ports_table_is_complete() -> None:
    table = DOCUMENTS["ARCHITECTURE.md"].partition("## Ports")[2].partition("\n## ")[0]
    documented = {int(port) for port in re.findall(r"\b15\d{3}\b", table)}
    assigned = re.findall(
        r"(?:_PORT|DEFAULT_\w+): Final = (?:\"[\w.]*:)?(15\d{3})\b", sources("nodeagent/*.py")
    )
    shared = {ebpf_shared.PORT_BASE}
    assert {int(port) for port in assigned} | shared <= documented
    assert {ruleset.OUTBOUND_PORT, ruleset.INBOUND_PORT, ruleset.HBONE_PORT, ruleset.DNS_PORT} <= documented


def spellings(number: int) -> set[str]:
    """How a table may write a number."""
    binary = {f"{number >> shift} {unit}" for shift, unit in ((10, "KiB"), (20, "MiB")) if number >> shift}
    return {f"{number:,}"} | binary


def test_bounds_are_the_defaults_of_their_options() -> None:
    table = DOCUMENTS["ARCHITECTURE.md"].partition("## What is bounded")[2].partition("\n## ")[0]
    parameters = inspect.signature(importlib.import_module("nodeagent.cli.run").run).parameters.values()
    defaults = {f"--{each.name.replace('_', '-')}": each.default for each in parameters}
    rows = [
        (row, set(re.findall(r"--[a-z-]+[a-z]", row))) for row in table.split("\n") if row.startswith("|")
    ]
    checked = {name for row, names in rows for name in names & defaults.keys()}
    assert checked >= {"--bypass-connections", "--token-cache"}
    for row, names in rows:
        for name in names & defaults.keys():
            assert any(text in row for text in spellings(defaults[name])), f"{name} is not that: {row}"


def test_layers_are_those_that_are_enforced() -> None:
    drawn = DOCUMENTS["ARCHITECTURE.md"].partition("## Layers")[2].split("```")[1]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    enforced = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    bare = [re.match(r"[\w| ]+", line)[0].strip() for line in drawn.split("\n") if line]  # type: ignore[index]
    assert [re.sub(r" {2,}.*", "", line) for line in bare] == [
        layer.replace("nodeagent.", "") for layer in enforced
    ]


def test_packages_are_told_of() -> None:
    packages = {name.split("/")[1] for name in tracked("nodeagent/*/__init__.py")}
    assert packages == set(re.findall(r"^\| `nodeagent/(\w+)`", DOCUMENTS["ARCHITECTURE.md"], re.MULTILINE))
