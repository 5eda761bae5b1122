"""The engine and real Envoy say the same about tokens, in the same words."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness.envoy_process import start_envoy
from harness.guarded_pod import GuardedPod, guarded_pod
from harness.requirements import require
from jwt.algorithms import ECAlgorithm

from nodeagent.snapshot.policies import (
    AllowMissing,
    NeedAny,
    NeedToken,
    SigningKey,
    TokenPlace,
    TokenPlaceKind,
    TokenProvider,
    TokenRule,
    Tokens,
)

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

ENVOY = 9100
ISSUER = "https://issuer.test"
KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
PLACES = (
    TokenPlace(TokenPlaceKind.HEADER, "authorization", "Bearer "),
    TokenPlace(TokenPlaceKind.HEADER, "x-jwt"),
    TokenPlace(TokenPlaceKind.PARAM, "access_token"),
    TokenPlace(TokenPlaceKind.COOKIE, "session"),
)


def engine_tokens() -> Tokens:
    der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    provider = TokenProvider(
        "p", ISSUER, ("shop",), (SigningKey("k", "", der),), PLACES, claim_headers=(("sub", "x-sub"),)
    )
    return Tokens((provider,), (TokenRule(None, NeedAny((NeedToken("p"), AllowMissing()))),))


def envoy_config() -> dict[str, Any]:
    base = "type.googleapis.com/envoy.extensions.filters"
    jwk = {**json.loads(ECAlgorithm.to_jwk(KEY.public_key())), "kid": "k"}
    provider = {
        "issuer": ISSUER,
        "audiences": ["shop"],
        "local_jwks": {"inline_string": json.dumps({"keys": [jwk]})},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}, {"name": "x-jwt"}],
        "from_params": ["access_token"],
        "from_cookies": ["session"],
        "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}],
    }
    need = {"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}}
    authn = {
        "@type": f"{base}.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"p": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": need}],
    }
    manager = {
        "@type": f"{base}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {"name": "jwt", "typed_config": authn},
            {"name": "router", "typed_config": {"@type": f"{base}.http.router.v3.Router"}},
        ],
    }
    address = {"socket_address": {"address": "0.0.0.0", "port_value": ENVOY}}
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    return {"static_resources": {"listeners": [{"address": address, "filter_chains": [chain]}]}}


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[GuardedPod]:
    require("root", "engine", "nft")
    async with guarded_pod(f"nt-envoytok-{id(object())}") as made:
        start_envoy(made.namespace, envoy_config(), tmp_path / "envoy.json", ENVOY)
        await made.guard(engine_tokens())
        yield made


def token(key: Any = KEY, header: dict[str, Any] | None = None, **claims: Any) -> str:
    body = {"iss": ISSUER, "aud": "shop", "sub": "jane", "exp": int(time.time()) + 600, **claims}
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm="ES256", headers=header)


def raw(*parts: bytes) -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")
ES = b'{"alg":"ES256"}'
ALIKE = {
    "good": GOOD,
    "good, named": token(header={"kid": "k"}),
    "other kid": token(header={"kid": "other"}),
    "other key": token(OTHER),
    "expired": token(exp=1000),
    "expired just now": token(exp=int(time.time()) - 30),
    "not yet": token(nbf=int(time.time()) + 600),
    "no expiry": token(exp=None),
    "no issuer": token(iss=None),
    "other issuer": token(iss="https://other.test"),
    "other audience": token(aud="api"),
    "no audience": token(aud=None),
    "audience as a URL": token(aud="https://shop/"),
    "audiences": token(aud=["api", "shop"]),
    "empty": "",
    "a word": "x",
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{GOOD}.x",
    "empty signature": f"{HEAD}.{BODY}.",
    "cut signature": GOOD[:-2],
    "bad signature base64": f"{HEAD}.{BODY}.!!!!",
    "bad header base64": f"!!!!.{BODY}.{SIGNATURE}",
    "bad payload base64": f"{HEAD}.!!!!.{SIGNATURE}",
    "header no JSON": raw(b"x", b"{}", b"x"),
    "payload no JSON": raw(ES, b"x", b"x"),
    "no alg": raw(b"{}", b"{}", b"x"),
    "alg a number": raw(b'{"alg":1}', b"{}", b"x"),
    "alg none": raw(b'{"alg":"none"}', b"{}", b"x"),
    "alg unknown": raw(b'{"alg":"ES256K"}', b"{}", b"x"),
    "kid a number": raw(b'{"alg":"ES256","kid":1}', b"{}", b"x"),
    "iss a number": raw(ES, b'{"iss":1}', b"x"),
    "sub a list": raw(ES, b'{"sub":[]}', b"x"),
    "aud a number": raw(ES, b'{"aud":1}', b"x"),
    "exp a text": raw(ES, b'{"exp":"1"}', b"x"),
    "exp negative": raw(ES, b'{"exp":-1}', b"x"),
    "nbf a text": raw(ES, b'{"nbf":"1"}', b"x"),
    "iat a list": raw(ES, b'{"iat":[]}', b"x"),
    "jti a number": raw(ES, b'{"jti":1}', b"x"),
    "altered payload": f"{HEAD}.{raw(b'{}')}.{SIGNATURE}",
}


async def both(pod: GuardedPod, path: str, headers: dict[str, str]) -> list[tuple[int, str, str]]:
    """Status, words and challenge: of the engine, and of Envoy."""
    found = []
    for port in (None, ENVOY):
        options = {} if port is None else {"port": port}
        answer = await pod.ask(path, {"Host": "shop.test", **headers}, **options)
        words = "" if answer.status == 200 else answer.body
        found.append((answer.status, words, answer.headers.get("www-authenticate", "")))
    return found


async def test_the_same_words(pod: GuardedPod) -> None:
    different = {}
    for name, text in ALIKE.items():
        ours, envoys = await both(pod, "/a?b=c", {"Authorization": f"Bearer {text}"})
        if ours != envoys:
            different[name] = (ours, envoys)
    assert different == {}


async def test_the_same_places(pod: GuardedPod) -> None:
    bad = token(OTHER)
    for path, headers in (
        ("/", {}),
        ("/", {"x-jwt": GOOD}),
        ("/", {"x-jwt": bad}),
        ("/", {"authorization": f"bearer {GOOD}"}),
        ("/", {"authorization": f"Basic x Bearer {GOOD}"}),
        ("/", {"authorization": "Basic x"}),
        (f"/?access_token={GOOD}", {}),
        (f"/?access_token={bad}", {}),
        (f"/?a=b&access%5Ftoken={bad}", {}),
        (f"/?access_token={bad.replace('.', '%2E')}", {}),
        (f"/?access_token={bad}", {"authorization": f"Bearer {GOOD}"}),
        (f"/?access_token={GOOD}", {"authorization": f"Bearer {bad}"}),
        ("/", {"cookie": f"session={GOOD}"}),
        ("/", {"cookie": f"a=b; session={bad}"}),
        ("/", {"cookie": f'session="{bad}"'}),
        ("/", {"cookie": f"SESSION={bad}"}),
        ("/", {"x-jwt": bad, "authorization": f"Bearer {GOOD}"}),
    ):
        ours, envoys = await both(pod, path, headers)
        assert ours == envoys, (path, headers)


async def test_what_only_envoy_takes_for_base64(pod: GuardedPod) -> None:
    """White space within a signature, and padding: one spelling is enough."""
    for text in (f"{GOOD[:-10]} {GOOD[-10:]}", f"{GOOD}=="):
        ours, envoys = await both(pod, "/", {"x-jwt": text})
        assert ours[0] == 401
        assert envoys[0] == 200
