"""Settings of the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.config.ca import CaConfig
from nodeagent.errors import ConfigError

DEFAULT_LISTEN: Final = "127.0.0.1:15010"
DEFAULT_ADMIN: Final = Path("/run/nodeagent/controlplane.sock")
DEFAULT_TRUST_DOMAIN: Final = "cluster.local"
DEFAULT_ROOT_NAMESPACE: Final = "istio-system"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """What `nodeagent controlplane` was told on its command line or by NODEAGENT_* variables."""

    config: tuple[Path, ...]
    """Files and folders with the mesh's configuration."""
    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    """`host:port` addresses for xDS."""
    unix: Path | None = None
    """Unix socket for xDS."""
    listen_tls: tuple[str, ...] = ()
    """`host:port` addresses for xDS and the CA over TLS; none: there is no CA."""
    listen_mtls: tuple[str, ...] = ()
    """`host:port` addresses for xDS to workloads that authenticate by their certificates; needs `listen_tls`."""
    ca: CaConfig | None = None
    """Needed for `listen_tls`."""
    admin: Path = DEFAULT_ADMIN
    """Unix socket of the admin API."""
    cluster_id: str = "Kubernetes"
    domain: str = "cluster.local"
    trust_domain: str = ""
    """Empty: the one of `mesh_config`, else DEFAULT_TRUST_DOMAIN."""
    root_namespace: str = ""
    """Empty: the one of `mesh_config`, else DEFAULT_ROOT_NAMESPACE."""
    mesh_config: Path | None = None
    """File with Istio's MeshConfig."""
    key_sets: int = 500
    """Key sets that are fetched for RequestAuthentications; tokens of those above are refused."""
    token_keys_root: Path | None = None
    """PEM file of roots to know the servers of jwksUri by, besides the machine's."""
    log_level: str = "info"
    drain_seconds: float = 2.0
    """How long streams may take to end at shutdown."""

    def __post_init__(self) -> None:
        if self.key_sets < 1:
            raise ConfigError(f"--key-sets {self.key_sets}: must be at least 1")
        if self.listen_tls and self.ca is None:
            raise ConfigError("--listen-tls: needs the settings of a CA")
        if self.listen_mtls and not self.listen_tls:
            raise ConfigError("--listen-mtls: needs --listen-tls, where the certificates are issued")
