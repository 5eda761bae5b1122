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
        assert "watchfiles" not in plane.process.output


MESH_CONFIG = "trustDomain: prod.example\nrootNamespace: mesh\ntrustDomainAliases: [old.example]\n"


def test_mesh_config_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(MESH_CONFIG)
    with ControlPlaneProcess("--mesh-config", str(file)) as plane:
        status = plane.json("/status")
        assert (status["trust_domain"], status["resources"]) == ("prod.example", {"ConfigMap": 1})
        file.write_text(MESH_CONFIG.replace("prod", "test"))
        wait_until(lambda: plane.messages(), "the change is told to need a restart", 5)
        assert "start the control plane with --trust-domain test.example" in plane.messages()[0]
        file.write_text("trustDomain: [")
        wait_until(lambda: any("not valid YAML" in text for text in plane.messages()), "reported", 5)
        assert plane.json("/status")["resources"] == {"ConfigMap": 1}


def test_options_come_before_the_mesh_config(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: a}\ndata:\n  mesh: |\n"
                    "    trustDomain: prod.example\n")  # fmt: skip
    options = ("--mesh-config", str(file), "--root-namespace", "a", "--trust-domain", "mine.example")
    with ControlPlaneProcess(*options) as plane:
        assert plane.json("/status")["trust_domain"] == "mine.example"
        assert any("prod.example is not in force" in text for text in plane.messages())


def test_a_mesh_config_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    options = ("--config", str(tmp_path), "--admin", str(tmp_path / "admin.sock"), "--mesh-config", str(file))
    assert f"nodeagent: --mesh-config {file}: cannot be read" in run(*options).stderr
    file.write_text("trustDomain: a/b\n")
    done = run(*options)
    assert done.returncode == 1
    assert f"nodeagent: --mesh-config {file}: trustDomain: trust domain 'a/b'" in done.stderr
