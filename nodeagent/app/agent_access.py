"""How the agent connects to the control plane and the CA, by its settings."""

from __future__ import annotations

from collections.abc import Callable

from nodeagent.config.agent import AgentConfig
from nodeagent.xds.transport import ClientCertificate, Tls, Transport


def xds_transport(config: AgentConfig) -> Transport:
    """To the control plane: over TLS if the address begins with https://."""
    root = config.xds_root or config.ca_root
    return Transport.parse(config.xds, Tls(root, config.token, config.xds_hostname, config.cluster_id))


def workload_access(
    config: AgentConfig, certificate: Callable[[], ClientCertificate | None]
) -> Callable[[], Transport]:
    """How a stream in the name of a workload connects: as the workload where the control plane takes certificates and
    the workload has one, else as the node."""
    as_node = xds_transport(config)

    def choose() -> Transport:
        shown = certificate() if config.xds_mtls else None
        if shown is None:
            return as_node
        root = config.xds_root or config.ca_root
        return Transport(config.xds_mtls, Tls(root, "", config.xds_hostname, "", shown))

    return choose


def ca_transport(config: AgentConfig) -> Transport:
    """To the CA: over TLS, whether its address says so or not. With http:// it is in plain text and refused later."""
    address = config.ca if "://" in config.ca else f"https://{config.ca}"
    return Transport.parse(address, Tls(config.ca_root, config.token, config.ca_hostname, config.cluster_id))
