"""Key sets that listeners name by URI: fetched, bounded, and kept when their source fails."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from harness import xds_resources as xds
from harness.agent_node import Node
from harness.guard_filters import JWT_AUTHN, guard, http_chain, listener

from nodeagent.app import agent_keys
from nodeagent.app.agent_keys import KeySets
from nodeagent.app.agent_metrics import KeySetCollector
from nodeagent.compiler.signing_keys import MAX_BYTES
from nodeagent.compiler.tokens import RemoteKeys
from nodeagent.snapshot.policies import SigningKey, Tokens
from nodeagent.xds.types import LISTENER


def key_set(kid: str = "a") -> str:
    raw = ed25519.Ed25519PrivateKey.generate().public_key()
    x = raw.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    item = {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64.urlsafe_b64encode(x).decode().rstrip("=")}
    return json.dumps({"keys": [item]})


class Issuer:
    """Serves what a test says."""

    def __init__(self) -> None:
        self.body: str | None = key_set()
        self.delay = 0.0
        self.asked = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await asyncio.sleep(self.delay)
        if request.path == "/round":
            raise web.HTTPFound("/round")
        return web.Response(text=self.body) if self.body is not None else web.Response(status=503)


@pytest.fixture
async def issuer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Issuer]:
    monkeypatch.setattr(agent_keys, "SHORTEST_REFRESH", 0.05)
    monkeypatch.setattr(agent_keys, "RETRY", (0.02, 0.1))
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/{path:.*}", issuer.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield issuer
    await runner.cleanup()


class Kept:
    """Key sets, and how often they have changed."""

    def __init__(self) -> None:
        self.changes = 0
        self.sets = KeySets(self._changed, 2)

    def _changed(self) -> None:
        self.changes += 1

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    kept = Kept()
    yield kept
    await kept.sets.stop()


def remote(issuer: Issuer, path: str = "/keys", **fields: Any) -> RemoteKeys:
    return RemoteKeys(issuer.url + path, "cluster", fields.get("timeout", 1.0), fields.get("refresh", 0.05))


def kids(keys: tuple[SigningKey, ...]) -> list[str]:
    return [key.kid for key in keys]


async def test_a_set_is_fetched_and_fetched_again(issuer: Issuer, kept: Kept) -> None:
    wanted = remote(issuer)
    assert kept.sets.keys_of(wanted) == ()
    kept.sets.want([wanted])
    await kept.until(lambda: kids(kept.sets.keys_of(wanted)) == ["a"])
    asked = issuer.asked
    await kept.until(lambda: issuer.asked > asked + 1)
    assert kept.changes == 1, "the same keys are no news"
    issuer.body = key_set("b")
    await kept.until(lambda: kids(kept.sets.keys_of(wanted)) == ["b"])
    assert kept.changes == 2


@pytest.mark.parametrize("body", [None, "nonsense", '{"keys": []}', "x" * (MAX_BYTES + 1)])
async def test_the_last_good_one_stays(issuer: Issuer, kept: Kept, body: str | None) -> None:
    wanted = remote(issuer)
    kept.sets.want([wanted])
    await kept.until(lambda: kept.sets.keys_of(wanted))
    issuer.body = body
    await kept.until(lambda: list(kept.sets.warnings()))
    (warning,) = kept.sets.warnings()
    assert warning.startswith(f"key set {wanted.uri}: ")
    assert warning.endswith("; the last ones stay")
    assert kids(kept.sets.keys_of(wanted)) == ["a"]
    issuer.body = key_set("c")
    await kept.until(lambda: kids(kept.sets.keys_of(wanted)) == ["c"])
    assert list(kept.sets.warnings()) == []


async def test_a_source_that_does_not_answer_in_time(issuer: Issuer, kept: Kept) -> None:
    issuer.delay = 2
    kept.sets.want([remote(issuer, timeout=0.05)])
    await kept.until(lambda: list(kept.sets.warnings()))
    assert next(kept.sets.warnings()).endswith("; its tokens are refused")


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "ftp://a/b", ""])
async def test_only_http(kept: Kept, uri: str) -> None:
    kept.sets.want([RemoteKeys(uri, "", 1, 1)])
    await kept.until(lambda: list(kept.sets.warnings()))
    assert "neither http:// nor https://" in next(kept.sets.warnings())


async def test_redirects_have_an_end(issuer: Issuer, kept: Kept) -> None:
    kept.sets.want([remote(issuer, "/round")])
    await kept.until(lambda: list(kept.sets.warnings()))
    assert issuer.asked <= 2 * (agent_keys.MAX_REDIRECTS + 1)


async def test_what_is_not_wanted_any_more_is_not_fetched(issuer: Issuer, kept: Kept) -> None:
    wanted = remote(issuer)
    kept.sets.want([wanted])
    await kept.until(lambda: kept.sets.keys_of(wanted))
    kept.sets.want([])
    assert kept.sets.keys_of(wanted) == ()
    await asyncio.sleep(0.05)
    asked = issuer.asked
    await asyncio.sleep(0.2)
    assert issuer.asked == asked


async def test_there_is_a_limit(issuer: Issuer, kept: Kept) -> None:
    kept.sets.want([remote(issuer, f"/{number}") for number in range(3)])
    assert "1 key sets over --key-sets 2 are not fetched; their tokens are refused" in list(
        kept.sets.warnings()
    )
    assert {each.name: each.samples[0].value for each in KeySetCollector(kept.sets).collect()} == {
        "nodeagent_key_sets": 2,
        "nodeagent_key_sets_missing": 2,
        "nodeagent_key_sets_left_out": 1,
    }


async def test_a_listener_gets_the_keys_that_it_names(issuer: Issuer, node: Node) -> None:
    source = {"httpUri": {"uri": f"{issuer.url}/keys", "cluster": "outbound|80||idp", "timeout": "1s"}}
    filters = guard(
        JWT_AUTHN,
        providers={"p": {"issuer": "me", "remoteJwks": source}},
        rules=[{"match": {"prefix": "/"}, "requires": {"providerName": "p"}}],
    )
    node.server.put(LISTENER, "virtualInbound", listener(http_chain(filters, destinationPort=9080)))
    await node.enroll()

    def keys() -> list[str]:
        stage = node.engine.applied.inbound["uid-1"].ports[0].guards.request[0]
        assert isinstance(stage, Tokens)
        return kids(stage.providers[0].keys)

    await node.until(lambda: keys() == ["a"], "keys")
    node.server.put(LISTENER, "virtualInbound", xds.inbound_listener({9080: "http"}))
    await node.until(lambda: not node.engine.applied.inbound["uid-1"].ports[0].guards.request, "open port")
    await asyncio.sleep(0.05)
    asked = issuer.asked
    await asyncio.sleep(0.2)
    assert issuer.asked == asked
