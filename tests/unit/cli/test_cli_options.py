"""Command lines of programs that stay: what is read without typer is read as typer reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

from nodeagent.cli import controlplane, run
from nodeagent.cli.options import Command, Option, read

taken: dict[str, Any] = {}


def program(
    node: Annotated[str, Option("node", "Name.", variable="FIELD_NODE")],
    folder: Annotated[Path, Option("folder", "Folder.")] = Path("/default"),
    file: Annotated[Path | None, Option("file", "File.")] = None,
    workers: Annotated[int, Option("workers", "Threads.")] = 1,
    drain: Annotated[float, Option("drain", "Seconds.", "SECONDS")] = 5.0,
    level: Annotated[str, Option("level", "Level.", choices=("low", "high"))] = "low",
    listen: Annotated[list[str] | None, Option("listen", "Where.")] = None,
    config: Annotated[list[Path] | None, Option("config", "What.", panel="More")] = None,
) -> None:
    """A program."""
    taken.clear()
    taken.update(locals())


def by_typer(arguments: list[str]) -> dict[str, Any]:
    """What typer makes of a command line; {} if it refuses it."""
    taken.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodeagent.cli.options.read", lambda *_: None)
        with pytest.raises(SystemExit):
            Command(program)(args=arguments, prog_name="program")
    return dict(taken)


PLAIN = [
    ["--node", "a"],
    ["--node=a", "--workers", "4", "--drain", "2.5"],
    ["--node", "a", "--node", "b"],
    ["--node", "a", "--drain", "3", "--level", "high"],
    ["--node", "", "--folder", "x/y"],
    ["--node", "a=b", "--file=c=d"],
    ["--node", "a", "--listen", "x:1", "--listen=y:2", "--config", "one", "--config", "two"],
]
LEFT_TO_TYPER = [
    [],
    ["--help"],
    ["--node"],
    ["--node", "a", "more"],
    ["--node", "a", "--bogus", "1"],
    ["--node", "a", "--workers", "many"],
    ["--node", "a", "--workers", "-1"],
    ["--node", "a", "--drain", "1e3"],
    ["--node", "a", "--level", "middle"],
    ["--node", "a", "--file", ""],
    ["--node", "-a"],
    ["--", "--node", "a"],
]


@pytest.mark.parametrize("arguments", PLAIN, ids=" ".join)
def test_what_is_plainly_right_is_read_as_typer_reads_it(arguments: list[str]) -> None:
    values = read(program, arguments)
    assert values is not None
    program(**values)
    assert taken == by_typer(arguments)


@pytest.mark.parametrize("arguments", LEFT_TO_TYPER, ids=" ".join)
def test_anything_else_is_left_to_typer(arguments: list[str]) -> None:
    assert read(program, arguments) is None


ENVIRONMENTS = [
    {"NODEAGENT_NODE": "a", "NODEAGENT_WORKERS": "3"},
    {"FIELD_NODE": "a"},
    {"FIELD_NODE": "a", "NODEAGENT_NODE": "b"},
    {"FIELD_NODE": "a", "NODEAGENT_NODE": ""},
    {"NODEAGENT_NODE": "a", "NODEAGENT_WORKERS": "", "NODEAGENT_FOLDER": ""},
]


@pytest.mark.parametrize("variables", ENVIRONMENTS, ids=str)
def test_variables_stand_in_for_options(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    values = read(program, [])
    assert values is not None
    program(**values)
    assert taken == by_typer([])
    assert read(program, ["--node", "option"]) == {**values, "node": "option"}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("NODEAGENT_LISTEN", "x:1"),
        ("NODEAGENT_LISTEN", " x:1  y:2\t"),
        ("NODEAGENT_CONFIG", "/one"),
        ("NODEAGENT_CONFIG", "/one:two three"),
    ],
)
def test_variables_of_several_values(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    values = read(program, ["--node", "a"])
    assert values is not None
    program(**values)
    assert taken == by_typer(["--node", "a"])


def test_an_option_goes_before_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODEAGENT_LISTEN", "x:1 y:2")
    assert read(program, ["--node", "a", "--listen", "z:3"]) == {"node": "a", "listen": ["z:3"]}


@pytest.mark.parametrize("function", [run.run, controlplane.run])
def test_help_tells_of_every_option(
    function: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 120)  # else long names are cut
    with pytest.raises(SystemExit):
        Command(function)(args=["--help"], prog_name="nodeagent")
    shown = capsys.readouterr().out
    assert "TLS and certificates" in shown
    for name in function.__annotations__.keys() - {"return"}:
        assert f"--{name.replace('_', '-')} " in shown


def test_a_program_that_stays_does_without_typer() -> None:
    code = (
        "import sys; from nodeagent.cli import options, run; import nodeagent.app.agent;"
        "assert options.read(run.run, ['--node', 'a', '--xds', 'unix:/x', '--workers', '2']);"
        "print(sorted({'typer', 'rich', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
