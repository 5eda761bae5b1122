"""Key sets are fetched, kept fresh, bounded, and kept when their source fails."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from nodeagent.controlplane import key_fetcher
from nodeagent.controlplane.istio.key_sets import MAX_BYTES, NO_KEYS, KeySets, KeySource
from nodeagent.controlplane.istio.security_values import JwtRule, RequestAuthentication
from nodeagent.controlplane.key_fetcher import KeyFetcher
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.report import Report

ONE, TWO = (NO_KEYS.replace("no-key-yet", name) for name in ("one", "two"))


@dataclass
class Server:
    """Serves texts by path."""

    pages: dict[str, Callable[[], web.Response] | str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        page = self.pages.get(request.path, lambda: web.Response(status=404))
        return web.Response(text=page) if isinstance(page, str) else page()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = web.Application()
    app.router.add_get("/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


class Kept:
    """A fetcher with what it delivered."""

    def __init__(self, limit: int = 500) -> None:
        self.sets = KeySets()
        self.report = Report()
        self.changed = asyncio.Event()
        self.metrics = Metrics()
        self.fetcher = KeyFetcher(self._put, self.sets.forget, self.report, self.metrics, limit=limit)

    def _put(self, source: KeySource, text: str) -> None:
        self.sets.put(source, text)
        self.changed.set()

    async def want(self, *sources: KeySource) -> None:
        self.fetcher.want({source: [policy(source)] for source in sources})
        await self.fetcher.first_attempts(5)

    def keys(self, source: KeySource) -> str:
        return self.sets.of(policy(source).rules[0])

    def messages(self) -> list[str]:
        return [issue.message for issue in self.report]


def policy(source: KeySource) -> RequestAuthentication:
    limit = timedelta(seconds=1)
    rule = JwtRule("me", keys_uri=source.url, timeout=limit)
    if source.discovered:
        rule = JwtRule(source.url, timeout=limit)
    return RequestAuthentication(name="p", namespace="foo", created=0, rules=(rule,))


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    found = Kept()
    yield found
    await found.fetcher.close()


async def test_a_key_set_is_fetched(server: Server, kept: Kept) -> None:
    server.pages["/keys"] = ONE
    source = KeySource(f"{server.url}/keys")
    assert kept.keys(source) == NO_KEYS
    await kept.want(source)
    assert (kept.keys(source), kept.messages()) == (ONE, [])


async def test_a_key_set_is_discovered(server: Server, kept: Kept) -> None:
    server.pages["/realm/.well-known/openid-configuration"] = json.dumps({"jwks_uri": f"{server.url}/keys"})
    server.pages["/keys"] = ONE
    source = KeySource(f"{server.url}/realm/", discovered=True)
    await kept.want(source)
    assert kept.keys(source) == ONE


async def test_a_key_set_is_refreshed(server: Server, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_fetcher, "REFRESH_SECONDS", 0.01)
    server.pages["/keys"] = ONE
    source = KeySource(f"{server.url}/keys")
    await kept.want(source)
    server.pages["/keys"] = TWO
    async with asyncio.timeout(5):
        while kept.keys(source) != TWO:
            kept.changed.clear()
            await kept.changed.wait()


async def test_the_last_good_one_stays(server: Server, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_fetcher, "REFRESH_SECONDS", 0.01)
    server.pages["/keys"] = ONE
    source = KeySource(f"{server.url}/keys")
    await kept.want(source)
    del server.pages["/keys"]
    async with asyncio.timeout(5):
        while not kept.messages():
            await asyncio.sleep(0.01)
    expected = (
        f"keys of {source.url} cannot be fetched: the server answers 404; the last good ones stay in force"
    )
    assert (kept.messages(), kept.keys(source)) == ([expected], ONE)


async def test_nobody_is_there(kept: Kept) -> None:
    await kept.want(KeySource("https://127.0.0.1:1/keys"))
    (message,) = kept.messages()
    assert message.startswith(
        "keys of https://127.0.0.1:1/keys cannot be fetched: [Errno 111] Connect call failed"
    )
    assert "object at" not in message


async def test_a_source_is_tried_again(server: Server, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_fetcher, "RETRY_SECONDS", (0.01, 0.01))
    source = KeySource(f"{server.url}/keys")
    await kept.want(source)
    assert "until then its tokens are refused" in kept.messages()[0]
    server.pages["/keys"] = ONE
    async with asyncio.timeout(5):
        await kept.changed.wait()
    assert (kept.keys(source), kept.messages()) == (ONE, [])


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("no json", "not a JSON Web Key Set"),
        ('{"keys": []}', "no RSA, elliptic curve or Edwards curve key in it"),
        ('{"keys": [{"kty": "oct", "k": "YQ"}]}', "no RSA, elliptic curve or Edwards curve key in it"),
        (json.dumps({"keys": [{"kty": "EC"}] * 101}), "101 keys; at most 100 are taken"),
        (" " * (MAX_BYTES + 10) + ONE, f"over {MAX_BYTES} bytes"),
        (lambda: web.Response(body=b"\xff"), "not UTF-8"),
        (lambda: web.Response(status=302, headers={"location": "/loop"}), "redirects more than 3 times"),
    ],
    ids=["no json", "empty", "symmetric", "too many", "too large", "no text", "redirects without end"],
)
async def test_what_is_no_key_set(server: Server, kept: Kept, page: Any, reason: str) -> None:
    server.pages["/keys"] = server.pages["/loop"] = page
    source = KeySource(f"{server.url}/keys")
    await kept.want(source)
    assert reason in kept.messages()[0]
    assert kept.keys(source) == NO_KEYS


async def test_a_server_that_does_not_answer(kept: Kept) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with silent:
        source = KeySource(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/keys")
        await kept.want(source)
        assert "no answer within 1 s" in kept.messages()[0]


async def test_what_nobody_wants_is_forgotten(server: Server, kept: Kept) -> None:
    server.pages["/keys"] = ONE
    source = KeySource(f"{server.url}/keys")
    await kept.want(source)
    kept.fetcher.want({})
    assert kept.keys(source) == NO_KEYS


async def test_there_is_a_limit() -> None:
    kept = Kept(limit=1)
    await kept.want(*(KeySource(f"http://127.0.0.1:1/{name}") for name in "ab"))
    assert "more key sets than --key-sets 1" in kept.messages()
    assert b"nodeagent_controlplane_key_sets_left_out 1.0" in kept.metrics.expose()
    await kept.fetcher.close()


def test_nobody_has_the_key_of_the_empty_set() -> None:
    """Its x is a hash, its y follows: there was never a private key that it was made of."""
    (key,) = json.loads(NO_KEYS)["keys"]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(key[name] + "=")) for name in "xy")
    assert x.to_bytes(32) == hashlib.sha256(b"nodeagent: no key 0").digest()
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    assert (y * y - (x**3 - 3 * x + b)) % prime == 0
