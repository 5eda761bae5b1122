"""The `nodeagent` command itself, as a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nodeagent.cli.main import COMMANDS
from nodeagent.cli.render import duration, size, some


def nodeagent(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent.cli.main", *arguments], capture_output=True, text=True
    )


def test_help_names_all_commands() -> None:
    done = nodeagent("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert nodeagent().returncode == 2
    assert nodeagent("--version").stdout.startswith("nodeagent 0.")


def test_unknown_command() -> None:
    done = nodeagent("stauts")
    assert done.returncode == 2
    assert "no command 'stauts'; did you mean status?" in done.stderr


@pytest.mark.parametrize("command", ["echo", "get", "status"])
def test_help_of_commands(command: str) -> None:
    done = nodeagent(command, "--help")
    assert done.returncode == 0
    assert f"Usage: nodeagent {command}" in done.stdout


def test_errors_are_one_line_and_exit_1() -> None:
    done = nodeagent("get", "clusters", "--admin", "/nowhere/admin.sock")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nodeagent: /nowhere/admin.sock: no such socket")
    assert done.stderr.count("\n") == 1


def test_start_up_is_quick() -> None:
    """By what is imported, which is most of it: a clock would tell how busy the machine is."""
    command = ("-m", "nodeagent.cli.main", "get", "clusters", "--admin", "/nowhere/admin.sock")
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in lines}
    assert "typer" in modules
    assert not {"aiohttp", "cffi", "envoy", "google", "grpc", "rich", "yaml"} & modules
    assert len(modules) < 320


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m nodeagent.cli.main --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.25, "250ms"), (59.9, "59s"), (60, "1m"), (200, "3m20s"), (3600, "1h"), (200_000, "2d7h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (1500, "1.5kB"), (20_000_000, "20MB"), (10**16, "10000TB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_lists_are_cut_but_for_wide() -> None:
    assert some(["a", "b", "c"], wide=False) == "a,b,c"
    assert some(["a", "b", "c", "d"], wide=False) == "a,b + 2 more"
    assert some(["a", "b", "c", "d"], wide=True) == "a,b,c,d"
