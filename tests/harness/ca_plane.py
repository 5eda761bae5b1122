"""A control plane with a CA in the test's own process, and a caller that says what a test tells it to."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from harness.pki import Issuer
from nodeagent.app.controlplane import ControlPlane
from nodeagent.config.ca import CaConfig
from nodeagent.config.controlplane import ControlPlaneConfig
from nodeagent.proto import ca_pb2, ca_pb2_grpc

TOKENS = {"node-a": "token-of-node-a-0123456789", "node-b": "token-of-node-b-0123456789"}
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{nodeName: {node}, serviceAccountName: {account}}}
status: {{podIPs: [{{ip: "{address}"}}], conditions: [{{type: Ready, status: "True"}}]}}
"""
PODS = (
    POD.format(name="web-1", namespace="default", node="node-a", account="web", address="10.0.0.1"),
    POD.format(name="db-1", namespace="data", node="node-b", account="db", address="10.0.1.1"),
    POD.format(
        name="nodeagent-x",
        namespace="nodeagent-system",
        node="node-a",
        account="nodeagent",
        address="10.0.0.9",
    ),
)


def write_token(folder: Path, node: str, token: str, mode: int = 0o600) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / node
    path.write_text(f"{token}\n")
    path.chmod(mode)


@dataclasses.dataclass
class Answer:
    """What a call ended with."""

    code: str
    details: str = ""
    chain: tuple[str, ...] = ()


class CaPlane:
    """A running control plane; `ask` calls its CA over TLS."""

    def __init__(self, root: Path, **fields: Any) -> None:
        self.root = root
        self.issuer = Issuer(root / "jwks.json")
        for node, token in TOKENS.items():
            write_token(root / "tokens", node, token)
        (root / "config").mkdir(exist_ok=True)
        (root / "config" / "pods.yaml").write_text("---\n".join(PODS))
        self.bundle = root / "root-cert.pem"
        defaults: dict[str, Any] = {
            "folder": root / "ca",
            "root_out": self.bundle,
            "node_tokens": root / "tokens",
            "jwks": str(root / "jwks.json"),
            "jwt_issuer": self.issuer.name,
        }
        self.config = CaConfig(**{**defaults, **fields})
        self.plane: ControlPlane | None = None
        self._port = self.mutual_port = 0

    async def start(self) -> None:
        config = ControlPlaneConfig(
            config=(self.root / "config",),
            listen=(),
            listen_tls=(f"127.0.0.1:{self._port}",),
            listen_mtls=(f"127.0.0.1:{self.mutual_port}",),
            ca=self.config,
            admin=self.root / "admin.sock",
            drain_seconds=0.1,
        )
        self.plane = ControlPlane(config)
        await self.plane.start()
        by_token, by_certificate = self.plane.secure_xds
        self._port, self.mutual_port = by_token.ports[0], by_certificate.ports[0]

    async def stop(self) -> None:
        if self.plane is not None:
            await self.plane.stop()
        self.plane = None

    @property
    def address(self) -> str:
        return f"localhost:{self._port}"

    def channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.bundle.read_bytes())
        return grpc.aio.secure_channel(
            self.address, credentials, options=(("grpc.use_local_subchannel_pool", 1),)
        )

    async def ask(
        self,
        csr: str,
        token: str | None = TOKENS["node-a"],
        impersonate: Any = None,
        lifetime: int = 0,
        authorization: str | None = None,
    ) -> Answer:
        """One call of CreateCertificate."""
        request = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=lifetime)
        if impersonate is not None:
            request.metadata.update({"ImpersonatedIdentity": impersonate})
        header = (
            authorization if authorization is not None else f"Bearer {token}" if token is not None else None
        )
        metadata = (
            ("clusterid", "Kubernetes"),
            *((("authorization", header),) if header is not None else ()),
        )
        async with self.channel() as channel:
            stub = ca_pb2_grpc.IstioCertificateServiceStub(channel)
            try:
                answer = await stub.CreateCertificate(request, metadata=metadata, timeout=5)
            except grpc.aio.AioRpcError as error:
                return Answer(error.code().name, error.details() or "")
        return Answer("OK", chain=tuple(answer.cert_chain))

    def metric(self, line: str) -> bool:
        """Whether a line of the metrics begins so."""
        assert self.plane is not None
        return any(text.startswith(line) for text in self.plane.metrics.expose().decode().splitlines())


@contextlib.asynccontextmanager
async def ca_plane(root: Path, **fields: Any) -> AsyncIterator[CaPlane]:
    """A control plane that is stopped at the end."""
    plane = CaPlane(root, **fields)
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()
