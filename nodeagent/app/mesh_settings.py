"""Settings of the mesh, from the command line and MeshConfig, and the source of the rest of the configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nodeagent.config.controlplane import (
    DEFAULT_ROOT_NAMESPACE,
    DEFAULT_TRUST_DOMAIN,
    ControlPlaneConfig,
)
from nodeagent.controlplane.decode import Problems
from nodeagent.controlplane.istio.mesh_config import MeshConfig, read_mesh_file
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.sources.files import FileSource
from nodeagent.controlplane.sources.mesh_file import MeshFile
from nodeagent.controlplane.world import MeshSettings
from nodeagent.errors import ConfigError


def settled(config: ControlPlaneConfig) -> ControlPlaneConfig:
    """The settings with what they leave to MeshConfig filled in. ConfigError if its file cannot be read: who is who
    in the mesh depends on it."""
    mesh = _mesh_config(config.mesh_config) if config.mesh_config is not None else MeshConfig()
    return replace(
        config,
        trust_domain=config.trust_domain or mesh.trust_domain or DEFAULT_TRUST_DOMAIN,
        root_namespace=config.root_namespace or mesh.root_namespace or DEFAULT_ROOT_NAMESPACE,
    )


def _mesh_config(path: Path) -> MeshConfig:
    problems = Problems(str(path), "")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--mesh-config {path}: cannot be read: {error}") from error
    found = read_mesh_file(MeshFile(path, ""), text, problems)
    if found is None or problems.failed:
        raise ConfigError(f"--mesh-config {problems.issues[0]}")
    return found


def file_source(config: ControlPlaneConfig, report: Report) -> FileSource:
    """Where the control plane's configuration comes from."""
    mesh_file = MeshFile(config.mesh_config, config.root_namespace) if config.mesh_config else None
    return FileSource(config.config, report, mesh_file)


def mesh_settings(config: ControlPlaneConfig) -> MeshSettings:
    """What of settled settings resources are made with."""
    return MeshSettings(
        config.cluster_id,
        config.domain,
        config.trust_domain,
        config.root_namespace,
        hbone=bool(config.listen_tls),
        trust_domain_aliases=config.ca.trust_domain_aliases if config.ca is not None else (),
    )
