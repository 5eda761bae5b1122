"""xDS over TLS: a stream is for whom its token says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from harness import pki
from harness.ca_plane import TOKENS, CaPlane, ca_plane
from harness.xds_client import ADDRESS, CDS, node
from harness.xds_plane import until

from nodeagent.app.agent_access import workload_access
from nodeagent.config.agent import AgentConfig
from nodeagent.config.controlplane import ControlPlaneConfig
from nodeagent.controlplane.ca.authority import Authority
from nodeagent.errors import ConfigError
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.transport import ClientCertificate, Tls, Transport


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[CaPlane]:
    async with ca_plane(tmp_path) as found:
        yield found


async def first_answer(
    plane: CaPlane,
    who: Any,
    token: str | None,
    type_url: str = CDS,
    channel: grpc.aio.Channel | None = None,
) -> str:
    """What a stream is answered: OK if it gets resources, else the status and its text."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with channel or plane.channel() as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(
            metadata=metadata
        )
        try:
            await call.write(discovery_pb2.DeltaDiscoveryRequest(node=who, type_url=type_url))
            response = await asyncio.wait_for(call.read(), 5)
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            response = grpc.aio.EOF
        if response is not grpc.aio.EOF:
            return "OK"
        return f"{(await call.code()).name}: {await call.details()}"


AGENT = node("agent", "nodeagent-system", "10.0.0.9", kind="ztunnel")
WEB = node("web-1", "default", "10.0.0.1")
DB = node("db-1", "data", "10.0.1.1")


async def test_a_node_gets_its_own_and_its_pods(plane: CaPlane) -> None:
    assert await first_answer(plane, AGENT, TOKENS["node-a"], ADDRESS) == "OK"
    assert await first_answer(plane, WEB, TOKENS["node-a"]) == "OK"
    assert await first_answer(plane, DB, TOKENS["node-b"]) == "OK"


async def test_a_node_gets_nothing_of_others_pods(plane: CaPlane) -> None:
    answer = await first_answer(plane, DB, TOKENS["node-a"])
    assert answer == "PERMISSION_DENIED: node node-a: no pod 'data/db-1' is known on node node-a"
    # By another pod's address neither: only the name decides.
    assert "PERMISSION_DENIED" in await first_answer(plane, node("", "data", "10.0.1.1"), TOKENS["node-a"])


async def test_a_pods_own_token_is_for_its_namespace_and_account(plane: CaPlane) -> None:
    token = plane.issuer.token("default/web")
    assert await first_answer(plane, WEB, token) == "OK"
    assert "cannot be a proxy of namespace 'data'" in await first_answer(plane, DB, token)
    other = plane.issuer.token("default/other")
    assert "has another service account" in await first_answer(plane, WEB, other)


async def test_without_a_good_token_there_is_nothing(plane: CaPlane) -> None:
    assert (await first_answer(plane, WEB, None)).startswith("UNAUTHENTICATED: no token")
    assert (await first_answer(plane, WEB, "guessed-token-guessed")).startswith("UNAUTHENTICATED")
    assert plane.metric('nodeagent_controlplane_xds_streams_refused_total{limit="caller"} 2.0')
    assert plane.plane is not None
    hub = plane.plane.hub
    await until(lambda: not hub.streams, "no stream is left")


# -- by certificate --


def certified(
    plane: CaPlane,
    *names: str,
    signer: Authority | None = None,
    lifetime: float = 3600.0,
) -> grpc.aio.Channel:
    """A channel to the listener for workloads, with a certificate for these SPIFFE IDs; without names with none."""
    credentials = grpc.ssl_channel_credentials(plane.bundle.read_bytes())
    if names:
        assert plane.plane is not None
        assert plane.plane.ca is not None
        key = pki.p256()
        issued = signer or plane.plane.ca.keeper.authority
        chain = pki.leaf(issued, key, *map(pki.uri, names), lifetime=lifetime)
        credentials = grpc.ssl_channel_credentials(
            plane.bundle.read_bytes(), pki.key_pem(key), "".join(chain[:-1]).encode()
        )
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    return grpc.aio.secure_channel(f"localhost:{plane.mutual_port}", credentials, options=options)


ID = "spiffe://cluster.local/ns/default/sa/web"


async def test_a_workload_is_known_by_its_certificate(plane: CaPlane) -> None:
    assert await first_answer(plane, WEB, None, channel=certified(plane, ID)) == "OK"
    answer = await first_answer(plane, DB, None, channel=certified(plane, ID))
    assert answer == f"PERMISSION_DENIED: workload {ID} cannot be a proxy of namespace 'data'"
    other = certified(plane, ID.replace("sa/web", "sa/other"))
    assert "has another service account" in await first_answer(plane, WEB, None, channel=other)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((ID.replace("cluster.local", "elsewhere"),), "is of another trust domain"),
        ((ID, ID.replace("web", "db")), "the client certificate has 2 URIs; it must have one"),
        (("https://example.com/",), "is not a SPIFFE ID"),
    ],
)
async def test_certificates_that_name_no_workload(
    plane: CaPlane, names: tuple[str, ...], reason: str
) -> None:
    answer = await first_answer(plane, WEB, None, channel=certified(plane, *names))
    assert answer.startswith("UNAUTHENTICATED")
    assert reason in answer


async def test_certificates_of_others_are_not_taken(plane: CaPlane, tmp_path: Path) -> None:
    stranger = pki.authority(tmp_path / "stranger")
    assert "UNAVAILABLE" in await first_answer(
        plane, WEB, None, channel=certified(plane, ID, signer=stranger)
    )
    assert "UNAVAILABLE" in await first_answer(plane, WEB, None, channel=certified(plane))
    expired = certified(plane, ID, lifetime=1)
    await asyncio.sleep(1.5)
    assert "UNAVAILABLE" in await first_answer(plane, WEB, None, channel=expired)
    # A token does not stand in for a certificate here.
    assert "UNAVAILABLE" in await first_answer(plane, WEB, TOKENS["node-a"], channel=certified(plane))


async def test_a_stream_ends_with_its_certificate(plane: CaPlane) -> None:
    async with certified(plane, ID, lifetime=2) as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
        await call.write(discovery_pb2.DeltaDiscoveryRequest(node=WEB, type_url=CDS))
        assert await asyncio.wait_for(call.read(), 5) is not grpc.aio.EOF
        assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.UNAUTHENTICATED
        assert await call.details() == "the client certificate has expired; connect with its successor"


class _Consumer:
    def apply(self, update: Any) -> dict[str, str]:
        return {}


async def run_until(stream: DeltaStream, text: str) -> None:
    """Until the stream's last error has a text; empty: until it is connected."""
    task = asyncio.create_task(stream.run())
    try:
        async with asyncio.timeout(5):
            while not (stream.state.connected if not text else text in stream.state.last_error):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{text!r} is not in {stream.state.last_error!r}") from None
    finally:
        task.cancel()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"token": TOKENS["node-a"]}, ""),
        ({"token": "/nowhere/token"}, "/nowhere/token: the token cannot be read"),
        ({"token": "wrong-token-of-nobody"}, "UNAUTHENTICATED: the token is of no kind"),
        ({"token": "two\nlines"}, "a header cannot carry"),
        (
            {"root": "/nowhere/root.pem"},
            "/nowhere/root.pem: the root certificates of the control plane cannot be read",
        ),
        ({"root": "SYSTEM"}, "cannot be verified"),
        ({"root": "{root}/tokens/node-a"}, "no PEM certificates"),
        ({"hostname": "elsewhere.example"}, "is not for elsewhere.example"),
        ({"hostname": "istiod.istio-system.svc"}, ""),
    ],
)
async def test_the_agents_stream_says_what_is_wrong(
    plane: CaPlane, change: dict[str, str], text: str
) -> None:
    settings = {"root": str(plane.bundle), "token": str(plane.root / "tokens" / "node-a"), **change}
    tls = Tls(**{key: value.format(root=plane.root) for key, value in settings.items()})
    transport = Transport.parse(f"https://{plane.address}", tls)
    stream = DeltaStream("test", transport.address, AGENT, (ADDRESS,), _Consumer(), transport)
    stream.subscribe(ADDRESS, ["*"])
    await run_until(stream, text)


async def test_the_agents_stream_goes_over_to_the_workloads_certificate(plane: CaPlane) -> None:
    """As soon as there is one, and back to the node's token when there is none any more."""
    assert plane.plane is not None
    assert plane.plane.ca is not None
    key = pki.p256()
    chain = pki.leaf(plane.plane.ca.keeper.authority, key, pki.uri(ID))
    certificate = ClientCertificate("".join(chain[:-1]), pki.key_pem(key).decode())
    held: list[ClientCertificate] = []
    config = AgentConfig(
        node="node-a",
        xds=f"https://{plane.address}",
        xds_mtls=f"localhost:{plane.mutual_port}",
        ca=plane.address,
        ca_root=str(plane.bundle),
        token=str(plane.root / "tokens" / "node-a"),
    )
    access = workload_access(config, lambda: held[0] if held else None)
    stream = DeltaStream("test", access().address, WEB, (CDS,), _Consumer(), choose=access)
    stream.subscribe(CDS, ["*"])
    hub = plane.plane.hub

    async def known_as(caller: str) -> None:
        async with asyncio.timeout(5):
            while {open_stream.caller for open_stream in hub.streams} != {caller}:
                await asyncio.sleep(0.02)

    task = asyncio.create_task(stream.run())
    try:
        await known_as("node node-a")
        held.append(certificate)
        stream.reopen()
        await known_as(f"workload {ID}")
        held.clear()
        stream.reopen()
        await known_as("node node-a")
        assert stream.state.last_error == ""
    finally:
        task.cancel()


def test_the_port_for_certificates_needs_a_ca() -> None:
    with pytest.raises(ConfigError, match="--xds-mtls: needs --ca"):
        AgentConfig(node="a", xds_mtls="localhost:15013")
    with pytest.raises(ConfigError, match="--listen-mtls: needs --listen-tls"):
        ControlPlaneConfig(config=(), listen_mtls=("localhost:15013",))
