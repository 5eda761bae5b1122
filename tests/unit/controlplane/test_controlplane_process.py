"""`nodeagent controlplane` as a process: its options, its start on bad configuration, its end."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from harness.control_plane import ControlPlaneProcess, service
from harness.processes import wait_until


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nodeagent.cli.main", "controlplane", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


def test_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    done = run("--config", str(tmp_path / "nowhere"), "--admin", str(tmp_path / "admin.sock"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"nodeagent: --config {tmp_path / 'nowhere'}: there is no such file or folder\n"


def test_no_folder_at_all_is_wrong_usage() -> None:
    done = run()
    assert done.returncode == 2
    assert "--config" in done.stderr


def test_wrong_log_level_is_wrong_usage(tmp_path: Path) -> None:
    done = run("--config", str(tmp_path), "--log-level", "loud")
    assert done.returncode == 2
    assert "debug, info, warning, error" in done.stderr.replace("\n", " ").replace("│", "").replace("  ", " ")


def test_address_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--config", str(tmp_path), "--listen", address, "--admin", str(tmp_path / "admin.sock"))
    assert done.returncode == 1
    assert f"nodeagent: cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_configuration_does_not_stop_the_server() -> None:
    plane = ControlPlaneProcess()
    plane.put("broken.yaml", "kind: [")
    plane.put("good.yaml", service("a", "10.96.0.1"))
    with plane:
        assert plane.json("/status")["resources"] == {"Service": 1}
        assert any("not valid YAML" in message for message in plane.messages())


def test_sigterm_ends_it_cleanly() -> None:
    with ControlPlaneProcess() as plane:
        assert plane.socket.exists()
        assert plane.stop() == 0
        assert not plane.socket.exists()
        assert not plane.admin.exists()
        assert plane.process is not None
        assert "Traceback" not in plane.process.output


def test_a_change_is_in_force_well_under_a_second() -> None:
    with ControlPlaneProcess() as plane:
        plane.put("a.yaml", service("a", "10.96.0.1"))
        wait_until(lambda: plane.json("/status")["resources"] == {"Service": 1}, "in force", 1)
