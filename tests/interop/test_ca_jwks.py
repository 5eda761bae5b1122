"""Keys of tokens from a real https server."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from harness import pki
from harness.pki import Issuer

from nodeagent.controlplane.ca import jwks
from nodeagent.controlplane.ca.jwks import KeySet


class KeyServer:
    """Serves the issuer's JWKS over https; `status` and `body` take its place."""

    def __init__(self, folder: Path) -> None:
        self.issuer = Issuer(folder / "jwks.json")
        self.root = folder / "ca" / "root-cert.pem"
        self.requests = 0
        self.status = 200
        self.body: bytes | None = None
        self.url = ""
        self.token = ""
        key = pki.p256()
        chain = pki.leaf(pki.authority(folder / "ca"), key, x509.DNSName("localhost"))
        (folder / "server.pem").write_bytes(chain[0].encode() + pki.key_pem(key))
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(folder / "server.pem")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=403)
        if self.status == 302:
            raise web.HTTPFound("https://elsewhere.example/keys")
        return web.Response(status=self.status, body=self.body or self.issuer.path.read_bytes())

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/keys", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        self.url = f"https://localhost:{runner.addresses[0][1]}/keys"
        return runner


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyServer]:
    server = KeyServer(tmp_path)
    runner = await server.start()
    yield server
    await runner.cleanup()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "RETRY_SECONDS", 0.0)


async def test_fetched_once_and_kept(server: KeyServer) -> None:
    keys = KeySet(server.url, server.root)
    found = await asyncio.gather(*(keys.key("kid-1") for _ in range(10)))
    assert all(found)
    assert server.requests == 1


async def test_an_unknown_key_is_looked_for_but_not_at_each_call(server: KeyServer) -> None:
    keys = KeySet(server.url, server.root)
    for _ in range(10):
        assert await keys.key("kid-2") is None
    assert server.requests == 1


@pytest.mark.usefixtures("impatient")
async def test_a_new_key_is_found(server: KeyServer) -> None:
    keys = KeySet(server.url, server.root)
    assert await keys.key("kid-1") is not None
    server.issuer.publish({"kid-1": server.issuer.key, "kid-2": pki.rsa_key()})
    assert await keys.key("kid-2") is not None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, None, "the server answers 500"),
        (302, None, "the server answers 302"),
        (200, b"<html>", "not a JSON Web Key Set"),
        (200, b" " * (2 << 20), "over 1048576 bytes"),
        (200, json.dumps({"keys": []}).encode(), "no RSA or elliptic curve key"),
    ],
)
async def test_the_last_good_keys_stay(
    server: KeyServer, status: int, body: bytes | None, message: str
) -> None:
    keys = KeySet(server.url, server.root)
    assert await keys.key("kid-1") is not None
    server.status, server.body = status, body
    assert await keys.key("kid-2") is None
    assert message in keys.last_error
    assert await keys.key("kid-1") is not None


async def test_a_server_with_a_certificate_of_others_is_not_believed(server: KeyServer) -> None:
    keys = KeySet(server.url)
    assert await keys.key("kid-1") is None
    assert "certificate verify failed" in keys.last_error


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_wants_a_token_gets_the_present_one(server: KeyServer, tmp_path: Path) -> None:
    server.token = "first"
    token = tmp_path / "token"
    token.write_text("first\n")
    keys = KeySet(server.url, server.root, token)
    assert await keys.key("kid-1") is not None
    server.token = "second"
    assert await keys.key("kid-2") is None
    assert "the server answers 403" in keys.last_error
    token.write_text("second\n")
    assert await keys.key("kid-2") is None
    assert keys.last_error == ""
    token.unlink()
    assert await keys.key("kid-2") is None
    assert "No such file" in keys.last_error
    assert await keys.key("kid-1") is not None


async def test_a_root_that_is_not_there(server: KeyServer) -> None:
    keys = KeySet(server.url, Path("/nowhere/root.pem"))
    assert await keys.key("kid-1") is None
    assert "No such file" in keys.last_error
