"""`nodeagent analyze` as a process: findings as people and programs read them, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p}}
spec: {spec}
"""
STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
"""


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nodeagent.cli.main", "analyze", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    return tmp_path / "config"


def test_nothing_wrong(folder: Path) -> None:
    (folder / "a.yaml").write_text(POLICY.format(spec="{}") + "---\n" + STRICT)
    done = analyze(str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing is wrong with 2 objects of 1 files\n"


def test_an_error_names_thing_place_and_mend(folder: Path) -> None:
    file = folder / "a.yaml"
    file.write_text(STRICT + "---\n" + POLICY.format(spec="{rules: [{to: [{operation: {path: [/a]}}]}]}"))
    done = analyze(str(file))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        f"error [unknown-field] (AuthorizationPolicy default/p {file}:6) "
        "spec.rules[0].to[0].operation.path: unknown field; did you mean paths?\n"
    )


def test_findings_across_resources_and_the_threshold(folder: Path) -> None:
    (folder / "a.yaml").write_text(POLICY.format(spec="{selector: {matchLabels: {app: web}}}"))
    assert "warning [IST0127]" in analyze(str(folder)).stdout
    assert analyze(str(folder)).returncode == 0
    assert analyze(str(folder), "--failure-threshold", "warning").returncode == 1


def test_for_programs(folder: Path) -> None:
    (folder / "a.yaml").write_text(STRICT)
    done = analyze(str(folder), "--no-ca", "-o", "json")
    (row,) = json.loads(done.stdout)
    assert (row["severity"], row["code"], row["resource"]) == (
        "warning",
        "no-certificates",
        "PeerAuthentication mesh/strict",
    )


def test_with_a_mesh_config(folder: Path, tmp_path: Path) -> None:
    (folder / "a.yaml").write_text(POLICY.format(spec="{action: CUSTOM, provider: {name: opa}, rules: [{}]}"))
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text(
        "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.a.svc, port: 9000}}]\n"
    )
    done = analyze(str(folder), "--mesh-config", str(mesh))
    assert "extension provider opa: no service opa.a.svc is known" in done.stdout
    assert analyze(str(folder), "--mesh-config", str(tmp_path / "gone.yaml")).stderr.startswith(
        f"nodeagent: --mesh-config {tmp_path / 'gone.yaml'}: cannot be read"
    )
