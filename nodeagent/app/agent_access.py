"""How the agent connects to the control plane and the CA, by its settings."""

from __future__ import annotations

from nodeagent.config.agent import AgentConfig
from nodeagent.xds.transport import Tls, Transport


def xds_transport(config: AgentConfig) -> Transport:
    """To the control plane: over TLS if the address begins with https://."""
    root = config.xds_root or config.ca_root
    return Transport.parse(config.xds, Tls(root, config.token, config.xds_hostname, config.cluster_id))


def ca_transport(config: AgentConfig) -> Transport:
    """To the CA: over TLS, whether its address says so or not. With http:// it is in plain text and refused later."""
    address = config.ca if "://" in config.ca else f"https://{config.ca}"
    return Transport.parse(address, Tls(config.ca_root, config.token, config.ca_hostname, config.cluster_id))
