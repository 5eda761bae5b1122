"""The agent's identities with a real CA: what goes wrong is told by log, metric and status, and mends itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import pki
from harness.ca_plane import TOKENS, CaPlane, ca_plane
from prometheus_client import CollectorRegistry, generate_latest

from nodeagent.app.agent_identity import Identities, IdentityCollector
from nodeagent.config.agent import AgentConfig
from nodeagent.controlplane.ca import rotation
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.errors import ConfigError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.manager import IdentityManager

WEB = EnrolledPod("uid-1", "web-1", "default", "web")
DB = EnrolledPod("uid-2", "db-1", "data", "db")


@dataclasses.dataclass
class Agent:
    """The identities of an agent, with a workload, as the app puts them together."""

    plane: CaPlane
    identities: Identities

    @property
    def manager(self) -> IdentityManager:
        assert self.identities.manager is not None
        return self.identities.manager

    async def until(self, condition: Callable[[Agent], Any], timeout: float = 8) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not condition(self):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{list(self.identities.rows())}: {self.metrics}") from None

    @property
    def metrics(self) -> str:
        registry = CollectorRegistry()
        registry.register(IdentityCollector(self.identities))
        return generate_latest(registry).decode()

    @property
    def states(self) -> list[str]:
        return [row.state for row in self.identities.rows()]

    def failures(self, reason: str) -> bool:
        return f'nodeagent_certificate_failures_total{{reason="{reason}"}}' in self.metrics


@contextlib.asynccontextmanager
async def agent(plane: CaPlane, *pods: EnrolledPod, **fields: Any) -> AsyncIterator[Agent]:
    settings = {
        "ca": plane.address,
        "ca_root": str(plane.bundle),
        "token": str(plane.root / "tokens" / "node-a"),
        **fields,
    }
    found = Agent(plane, Identities(AgentConfig("node-a", **settings)))
    found.identities.start()
    for pod in pods or (WEB,):
        found.identities.arrived(pod)
    try:
        yield found
    finally:
        await found.identities.stop()


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[CaPlane]:
    async with ca_plane(tmp_path) as found:
        yield found


async def test_obtained_shown_and_dropped(plane: CaPlane) -> None:
    async with agent(plane) as found:
        await found.until(lambda agent: agent.states == ["Available"])
        row = next(found.identities.rows())
        assert (row.identity, row.workloads, row.error) == (pki.WEB, 1, "")
        assert row.not_after - row.not_before == pytest.approx(86520, abs=5)
        assert found.manager.counters.issued == 1
        assert 'nodeagent_certificates{state="Available"} 1.0' in found.metrics
        assert f'nodeagent_certificate_age_seconds{{identity="{pki.WEB}"}}' in found.metrics
        assert f'nodeagent_certificate_expiry_timestamp_seconds{{identity="{pki.WEB}"}}' in found.metrics
        found.identities.departed(WEB)
        assert found.states == []


class Recorder:
    """An engine's certificates."""

    def __init__(self) -> None:
        self.trusted: list[tuple[str, ...]] = []

    def set_identity(self, name: str, chain: str, key: str, bundle: str, trusted: tuple[str, ...]) -> None:
        assert name == pki.WEB
        self.trusted.append(trusted)


async def test_trust_domains_that_the_mesh_tells_of(plane: CaPlane) -> None:
    """Certificates in force come into force anew with them; what is none changes nothing."""
    engine = Recorder()
    async with agent(plane, trust_domain_aliases=("flag.example",)) as found:
        found.identities.serve(engine)  # type: ignore[arg-type]
        await found.until(lambda agent: engine.trusted)
        assert found.identities.trust(["cluster.local", "old.example"]) == ""
        assert found.identities.trust(["cluster.local", "old.example"]) == "", "no news"
        assert "Old" in found.identities.trust(["cluster.local", "Old Example"])
        assert found.identities.trust([]) == ""
    mine = ("cluster.local", "flag.example")
    assert engine.trusted == [mine, (*mine, "old.example"), mine]


async def test_renewed_again_and_again_with_no_gap(plane: CaPlane) -> None:
    serials: list[str | None] = []
    async with agent(plane, cert_lifetime=3) as found:
        found.manager.observe(lambda who, certificate: serials.append(certificate and certificate.serial))
        await found.until(lambda agent: len(serials) >= 4, timeout=15)
    assert None not in serials
    assert len(set(serials)) == len(serials)


async def test_the_ca_goes_and_comes_back(plane: CaPlane, caplog: pytest.LogCaptureFixture) -> None:
    async with agent(plane, cert_lifetime=6) as found:
        await found.until(lambda agent: agent.states == ["Available"])
        await plane.stop()
        await found.until(lambda agent: agent.failures("unreachable"))
        assert found.states == ["Available"], "what is valid stays"
        assert "cannot renew the certificate of" in caplog.text
        assert "Connection refused" in next(found.identities.warnings())
        await found.until(lambda agent: agent.states == ["Expired"])
        assert "the certificate has expired" in next(found.identities.warnings())
        await plane.start()
        await found.until(lambda agent: agent.states == ["Available"], timeout=12)
        assert list(found.identities.warnings()) == []


async def test_a_root_is_replaced_under_running_agents(plane: CaPlane) -> None:
    """They come to trust the new root, then to be signed by it, and can always be renewed."""
    seen: list[Certificate | None] = []
    async with agent(plane, cert_lifetime=2) as found:
        found.manager.observe(lambda who, certificate: seen.append(certificate))
        for roots in (2, 2, 1):
            await found.until(lambda agent: agent.states == ["Available"])
            rotation.take_step(plane.root / "ca", "cluster.local", 0, pki.now())
            count = len(seen)
            await found.until(lambda agent, count=count: len(seen) >= count + 3)
            assert seen[-1] is not None
            assert seen[-1].bundle_pem.count("BEGIN") == roots
        assert None not in seen
        assert not found.manager.counters.failures
        assert seen[-1] is not None
        assert seen[-1].bundle_pem == (plane.root / "ca" / "ca-cert.pem").read_text()


TROUBLES: dict[str, tuple[dict[str, Any], str, str]] = {
    "wrong root": ({"ca_root": "{root}/foreign.pem"}, "tls", "cannot be verified"),
    "no root": ({"ca_root": "/nowhere/root.pem"}, "root", "/nowhere/root.pem: the root certificates"),
    "wrong name": ({"ca_hostname": "elsewhere.example"}, "tls", "is not for elsewhere.example"),
    "no token": ({"token": "/nowhere/token"}, "token", "/nowhere/token: the token cannot be read"),
    "wrong token": ({"token": "wrong-token-of-nobody"}, "unauthenticated", "the token is of no kind"),
    "other node": ({"token": TOKENS["node-b"]}, "denied", "is known on node node-b"),
    "too long": ({"cert_lifetime": 1e9}, "invalid", "certificates live at most"),
    "trust domain": ({"trust_domain": "other.example"}, "denied", "trust domain cluster.local only"),
}


@pytest.mark.parametrize("name", TROUBLES)
async def test_troubles_are_told(plane: CaPlane, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (plane.root / "foreign.pem").write_text(pki.authority(plane.root / "foreign").bundle)
    caplog.set_level("INFO")
    fields, reason, message = TROUBLES[name]
    fields = {
        key: value.format(root=plane.root) if isinstance(value, str) else value
        for key, value in fields.items()
    }
    async with agent(plane, **fields) as found:
        await found.until(lambda agent: agent.failures(reason))
        row = next(found.identities.rows())
        assert (row.state, message in row.error) == ("Unavailable", True), row.error
        assert message in caplog.text
        assert "no certificate for" in caplog.text
        assert message in next(found.identities.warnings())
        assert 'nodeagent_certificates{state="Unavailable"} 1.0' in found.metrics


async def test_a_plain_text_port_is_no_ca(plane: CaPlane) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, agent(plane, ca=f"localhost:{port}") as found:
        await found.until(lambda agent: agent.states == ["Unavailable"])


async def test_a_token_that_is_replaced_is_read_again(plane: CaPlane) -> None:
    token = plane.root / "mine"
    token.write_text("wrong-token-of-nobody")
    async with agent(plane, token=str(token)) as found:
        await found.until(lambda agent: agent.failures("unauthenticated"))
        token.write_text(TOKENS["node-a"])
        await found.until(lambda agent: agent.states == ["Available"])


async def test_one_that_may_not_be_had_harms_no_other(plane: CaPlane) -> None:
    async with agent(plane, WEB, DB) as found:
        await found.until(lambda agent: agent.states == ["Unavailable", "Available"])
        assert [row.identity for row in found.identities.rows()] == [
            "spiffe://cluster.local/ns/data/sa/db",
            pki.WEB,
        ]


async def test_names_that_no_identity_can_have(plane: CaPlane, caplog: pytest.LogCaptureFixture) -> None:
    nameless = EnrolledPod("uid-9", "", "", "")
    async with agent(plane, nameless) as found:
        assert found.states == []
        assert "workload uid-9 gets no certificate: namespace ''" in caplog.text


async def test_by_service_account_token_as_in_kubernetes(plane: CaPlane) -> None:
    token = plane.issuer.token("nodeagent-system/nodeagent", pod="nodeagent-x")
    async with agent(
        plane, token=token, ca=f"https://{plane.address}", ca_hostname="istiod.istio-system.svc"
    ) as found:
        await found.until(lambda agent: agent.states == ["Available"])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="over TLS only"):
        Identities(AgentConfig("node-a", ca="http://localhost:15012"))
    with pytest.raises(ConfigError, match="neither host:port nor unix:PATH"):
        Identities(AgentConfig("node-a", ca="localhost"))
    with pytest.raises(ConfigError, match="--trust-domain"):
        Identities(AgentConfig("node-a", ca="localhost:1", trust_domain="Not A Domain"))
    assert Identities(AgentConfig("node-a")).manager is None
