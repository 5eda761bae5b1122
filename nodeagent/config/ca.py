"""Settings of the certificate authority in the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError

DEFAULT_FOLDER: Final = Path("/var/lib/nodeagent/ca")
DEFAULT_LIFETIME: Final = 24 * 3600.0
"""Istio's DEFAULT_WORKLOAD_CERT_TTL."""
DEFAULT_MAX_LIFETIME: Final = 90 * 24 * 3600.0
"""Istio's MAX_WORKLOAD_CERT_TTL."""
DEFAULT_SERVER_NAMES: Final = ("istiod.istio-system.svc", "localhost")
DEFAULT_AUDIENCE: Final = "istio-ca"
DEFAULT_NODE_ACCOUNTS: Final = ("nodeagent-system/nodeagent", "istio-system/ztunnel")
"""`namespace/service account`: Istio's CA_TRUSTED_NODE_ACCOUNTS, with our own agent's."""


@dataclass(frozen=True, slots=True)
class CaConfig:
    """How certificates are issued, and to whom. Times are seconds."""

    folder: Path = DEFAULT_FOLDER
    """The self-made root's files; made at the first start."""
    plugged_in: Path | None = None
    """A folder with a root or intermediate of the user's (Istio's `cacerts` file names); never written to."""
    root_out: Path | None = None
    """Where the trust bundle is published, for agents to trust the control plane by."""
    server_names: tuple[str, ...] = DEFAULT_SERVER_NAMES
    """DNS names and addresses in the control plane's own certificate."""
    lifetime: float = DEFAULT_LIFETIME
    max_lifetime: float = DEFAULT_MAX_LIFETIME
    trust_domain_aliases: tuple[str, ...] = ()
    """Trust domains in which identities are issued too, as they are asked for: for changing the trust domain."""
    node_tokens: Path | None = None
    """A folder with a file per node: its name is the node's, its content the token."""
    jwks: str = ""
    """File or https URL with the keys that sign service account tokens."""
    jwks_root: Path | None = None
    """Root certificates of the server at `jwks`; None: the machine's."""
    jwks_token: Path | None = None
    """File with a bearer token for the server at `jwks`."""
    jwt_issuer: str = ""
    jwt_audience: str = DEFAULT_AUDIENCE
    node_accounts: tuple[str, ...] = DEFAULT_NODE_ACCOUNTS
    """Service accounts of node agents: they may ask for the identities of their node's workloads."""

    def __post_init__(self) -> None:
        if self.node_tokens is None and not self.jwks:
            raise ConfigError(
                "--listen-tls: nobody could authenticate; give --jwks (service account tokens) or --node-tokens"
            )
        if self.jwks and not self.jwt_issuer:
            raise ConfigError("--jwks: give --jwt-issuer too, the `iss` that tokens must have")
        if self.lifetime < 1:
            raise ConfigError(f"--cert-lifetime {self.lifetime:g}: must be at least 1 second")
        if self.max_lifetime < self.lifetime:
            raise ConfigError(
                f"--max-cert-lifetime {self.max_lifetime:g}: is less than --cert-lifetime {self.lifetime:g}"
            )
        if not self.server_names:
            raise ConfigError(
                "--tls-name: at least one name is needed, by which agents know the control plane"
            )
        for account in self.node_accounts:
            namespace, slash, name = account.partition("/")
            if not (namespace and slash and name) or "/" in name:
                raise ConfigError(f"--node-account {account}: not of the form NAMESPACE/SERVICE-ACCOUNT")
