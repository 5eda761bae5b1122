"""Identities and tunnels through the engine's owner: one workload that calls itself by HBONE, in a namespace."""

from __future__ import annotations

import asyncio
import http.client
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Namespace, pki, require

from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.dataplane.listener_kinds import Listener
from nodeagent.dataplane.report import StatRow
from nodeagent.errors import EngineError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import (
    ApplicationTunnel,
    Cluster,
    Destination,
    Endpoint,
    Forward,
    Inbound,
    InboundName,
    Protocol,
    Route,
    RouteTable,
    Snapshot,
    Tunnel,
    View,
    VirtualHost,
    WeightedCluster,
)

pytestmark = pytest.mark.netns

LOOPBACK = parse_address("127.0.0.1")
FRONT, BACK = 15080, 9000
CLUSTER = Cluster("v/back", "back")
HOST = VirtualHost("back", ("*",), (Route("r", Forward((WeightedCluster(CLUSTER.name),))),))


def snapshot(*identities: str, authority: str = "", inbound: Inbound = Inbound()) -> Snapshot:  # noqa: B008
    """All requests go to one endpoint, through a tunnel in which one of `identities` must answer."""
    endpoint = Endpoint(LOOPBACK, BACK, tunnel=Tunnel(identities, authority=authority))
    destination = Destination(LOOPBACK, FRONT, Protocol.HTTP, table="v/80")
    view = View(
        "v",
        {CLUSTER.name: CLUSTER},
        {CLUSTER.name: (endpoint,)},
        {"v/80": RouteTable("v/80", "80", {HOST.name: HOST})},
        {destination.key: destination},
    )
    return Snapshot(views={"v": view}, inbound={"pod": inbound})


class Caller:
    """The workload `web`, and a certificate for it."""

    def __init__(self, engine: EngineOwner, namespace: Namespace, folder: Path) -> None:
        self.engine = engine
        self._namespace = namespace
        self._authority = pki.authority(folder)

    def certify(self) -> None:
        """Put a new certificate in force."""
        key = pki.p256()
        *chain, bundle = pki.leaf(self._authority, key, pki.uri(pki.WEB))
        self.engine.set_identity(pki.WEB, "".join(chain), pki.key_pem(key).decode(), bundle)

    async def settled(self) -> None:
        """Until the workers go by the last change."""
        async with asyncio.timeout(5):
            while not self.engine.settled():
                await asyncio.sleep(0.01)

    async def get(self) -> int:
        """The status of a request."""

        def request() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", FRONT, timeout=5)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status
            finally:
                connection.close()

        return await asyncio.to_thread(self._namespace.run, request)


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Caller]:
    require("root", "engine")
    namespace = Namespace(f"nt-identity-{id(object())}")
    engine = EngineOwner(EngineSettings())
    engine.start()
    try:
        engine.apply(snapshot(pki.WEB))
        engine.add_workload("pod", namespace.handle, "v", [LOOPBACK], [Listener(2, FRONT)], identity=pki.WEB)
        server = namespace.start([sys.executable, "-m", "http.server", str(BACK), "--bind", "127.0.0.1"])
        server.wait_for_port(BACK)
        yield Caller(engine, namespace, tmp_path / "ca")
    finally:
        await engine.stop(0)
        engine.close()
        namespace.close()


async def test_nothing_goes_in_plaintext_while_there_is_no_certificate(web: Caller) -> None:
    assert await web.get() == 503
    web.certify()
    assert await web.get() == 200
    web.engine.remove_identity(pki.WEB)
    await web.settled()
    assert await web.get() == 503
    web.engine.remove_identity(pki.WEB)


async def test_both_sides_report_the_peer(web: Caller) -> None:
    web.certify()
    assert await web.get() == 200
    rows: list[StatRow] = []
    async with asyncio.timeout(5):
        while {row.inbound for row in rows} != {False, True}:
            rows.extend(web.engine.drain_stats())
            await asyncio.sleep(0.01)
    assert {(row.inbound, row.principal, row.mutual_tls) for row in rows} == {
        (False, pki.WEB, True),
        (True, pki.WEB, True),
    }


async def test_somebody_else_must_not_answer(web: Caller) -> None:
    web.certify()
    web.engine.apply(snapshot("spiffe://cluster.local/ns/default/sa/other"))
    assert await web.get() == 503
    web.engine.apply(snapshot("spiffe://cluster.local/ns/default/sa/other", pki.WEB))
    assert await web.get() == 200


async def test_it_may_be_asked_for_its_service_by_name(web: Caller) -> None:
    web.certify()
    names = (InboundName("back.shop", 80, BACK),)
    web.engine.apply(snapshot(pki.WEB, authority="back.shop:80", inbound=Inbound(names=names)))
    assert await web.get() == 200
    web.engine.apply(snapshot(pki.WEB, authority="back.shop:81", inbound=Inbound(names=names)))
    assert await web.get() == 503


async def test_an_application_tunnel_has_a_header_that_http_servers_do_not_know(web: Caller) -> None:
    web.certify()
    web.engine.apply(snapshot(pki.WEB, inbound=Inbound(tunnel=ApplicationTunnel(BACK))))
    assert await web.get() in (400, 503)


async def test_a_certificate_that_cannot_be_used_leaves_the_last_one_in_force(web: Caller) -> None:
    web.certify()
    with pytest.raises(EngineError, match=f"use the certificate of {pki.WEB}.*PEM"):
        web.engine.set_identity(pki.WEB, "chain", "key", "bundle")
    assert await web.get() == 200
    web.certify()
    assert await web.get() == 200
