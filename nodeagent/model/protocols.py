"""What a service port speaks, selected as Istio does: appProtocol, else the port name's prefix, else undeclared."""

from __future__ import annotations

import enum
from typing import Final


class Protocol(enum.Enum):
    """The declared application protocol of a service port."""

    HTTP = "http"
    HTTP2 = "http2"
    GRPC = "grpc"
    GRPC_WEB = "grpc-web"
    TCP = "tcp"
    TLS = "tls"
    HTTPS = "https"
    MONGO = "mongo"
    MYSQL = "mysql"
    REDIS = "redis"
    UDP = "udp"
    UNDECLARED = "undeclared"

    @property
    def is_http(self) -> bool:
        """Whether requests on the port are routed by HTTP rules without looking at the first bytes."""
        return self in _HTTP

    @property
    def is_http2(self) -> bool:
        """Whether the port is known to speak HTTP/2 in the clear."""
        return self in (Protocol.HTTP2, Protocol.GRPC)

    @property
    def may_be_http(self) -> bool:
        """Whether HTTP rules can apply: declared HTTP, or undeclared and to be detected."""
        return self.is_http or self is Protocol.UNDECLARED


_HTTP: Final = frozenset({Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB})
_BY_NAME: Final = {protocol.value: protocol for protocol in Protocol if protocol is not Protocol.UNDECLARED}
# Values that Kubernetes itself defines for appProtocol.
_KUBERNETES: Final = {
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.HTTPS,
}
# SMTP, DNS, MySQL and MongoDB wait for the server to speak first: detection would only delay them.
_SERVER_FIRST_PORTS: Final = frozenset({25, 53, 3306, 27017})


def select_protocol(port: int, name: str, transport: str, app_protocol: str) -> Protocol:
    """The protocol of a Kubernetes service port. `transport` is TCP, UDP or SCTP; empty strings mean unset."""
    if transport == "UDP":
        return Protocol.UDP
    if app_protocol in _KUBERNETES:
        return _KUBERNETES[app_protocol]
    declared = (app_protocol or name).lower()
    if declared.startswith("grpc-web"):
        return Protocol.GRPC_WEB
    found = _BY_NAME.get(declared.partition("-")[0])
    if found is not None:
        return found
    return Protocol.TCP if port in _SERVER_FIRST_PORTS else Protocol.UNDECLARED
