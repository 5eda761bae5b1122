"""Runs `nodeagent echo` as a process of its own and knows its ports."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import dataclass


@dataclass
class Echo:
    """A running echo workload."""

    process: subprocess.Popen[str]
    ports: dict[str, int]

    def url(self, path: str = "/", option: str = "http") -> str:
        """Return the URL of a path on the port of an option."""
        return f"http://127.0.0.1:{self.ports[option]}{path}"


def start(*arguments: str) -> Echo:
    """Start one with the options; AssertionError with what it said if it does not come up."""
    command = [sys.executable, "-m", "nodeagent.cli.main", "echo", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    if not line.startswith("echo "):
        said = line + process.communicate()[1]
        raise AssertionError(said)
    ports = re.findall(r"(\w+) (\d+)(?:,|$)", line.partition(": ")[2].strip())
    return Echo(process, {option: int(port) for option, port in ports})


def stop(echo: Echo) -> int:
    """Send SIGTERM and return the exit code."""
    echo.process.send_signal(signal.SIGTERM)
    try:
        return echo.process.wait(10)
    finally:
        echo.process.kill()
        assert echo.process.stderr is not None
        echo.process.stderr.close()
