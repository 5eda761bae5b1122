"""Tokens through the engine's owner: requests of a client, as the application gets them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness import require
from harness.guarded_pod import UID, WEB, GuardedPod, guarded_pod

from nodeagent.dataplane.access import AccessQuestion, AccessStep, Step
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import (
    AllowMissing,
    Attribute,
    Need,
    NeedAny,
    NeedToken,
    Policy,
    RuleAction,
    Rules,
    SigningKey,
    TextCheck,
    TokenPlace,
    TokenPlaceKind,
    TokenProvider,
    TokenRule,
    Tokens,
)

pytestmark = pytest.mark.netns

_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
_DIGESTS = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ISSUER = "https://issuer.example"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encode_json(value: Any) -> str:
    return encode(json.dumps(value).encode())


def make_key(algorithm: str) -> Any:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        return ec.generate_private_key(_CURVES[algorithm])
    return rsa.generate_private_key(65537, 2048)


def der(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return public


def signature(key: Any, algorithm: str, data: bytes) -> bytes:
    if algorithm == "EdDSA":
        made: bytes = key.sign(data)
        return made
    digest = _DIGESTS[algorithm[2:]]
    if algorithm.startswith("ES"):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
    made = key.sign(data, pss if algorithm.startswith("PS") else padding.PKCS1v15(), digest)
    assert isinstance(made, bytes)
    return made


def token(key: Any, algorithm: str = "ES256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    payload = {"iss": ISSUER, "sub": "jane", "exp": int(time.time()) + 3600, **claims}
    head = {"alg": algorithm, "typ": "JWT", **(header or {})}
    signed = f"{encode_json(head)}.{encode_json(payload)}"
    return f"{signed}.{encode(signature(key, algorithm, signed.encode()))}"


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def tokens(provider: TokenProvider, need: Need | None = None) -> Tokens:
    needed = need or NeedToken(provider.name)
    return Tokens((provider,), (TokenRule(None, needed),), pass_preflight=True)


KEY = make_key("ES256")
PROVIDER = TokenProvider("p", ISSUER, keys=(SigningKey("", "", der(KEY)),), metadata_key="payload")


@pytest.fixture
async def pod() -> AsyncIterator[GuardedPod]:
    require("root", "engine", "nft")
    async with guarded_pod(f"nt-tokens-{id(object())}") as made:
        yield made


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_each_algorithm(pod: GuardedPod, algorithm: str) -> None:
    key, other = make_key(algorithm), make_key(algorithm)
    keys = (SigningKey("other", "", der(other)), SigningKey("mine", algorithm, der(key)))
    await pod.guard(tokens(replace(PROVIDER, keys=keys)))
    assert (await pod.ask("/", bearer(token(key, algorithm)))).status == 200
    assert (await pod.ask("/", bearer(token(key, algorithm, {"kid": "mine"})))).status == 200
    refused = await pod.ask("/", bearer(token(key, algorithm, {"kid": "other"})))
    assert (refused.status, refused.body) == (401, "Jwt verification fails")
    unknown = await pod.ask("/", bearer(token(key, algorithm, {"kid": "third"})))
    assert unknown.body == "Jwks doesn't have key to match kid or alg from Jwt"


async def test_the_answers_are_envoys(pod: GuardedPod) -> None:
    await pod.guard(tokens(replace(PROVIDER, audiences=("a",))))
    missing = await pod.ask("/x?y=1")
    assert (missing.status, missing.body) == (401, "Jwt is missing")
    assert missing.headers["www-authenticate"] == 'Bearer realm="http://127.0.0.1:9000/x?y=1"'
    assert missing.headers["content-type"] == "text/plain"
    assert (await pod.record()).detail == "jwt_authn_access_denied{Jwt_is_missing}"
    expired = await pod.ask("/e", bearer(token(KEY, aud="a", exp=1)))
    assert (expired.status, expired.body) == (401, "Jwt is expired")
    assert expired.headers["www-authenticate"].endswith('", error="invalid_token"')
    assert (await pod.record("/e")).detail == "jwt_authn_access_denied{Jwt_is_expired}"
    other = await pod.ask("/", bearer(token(KEY, aud="b")))
    assert (other.status, other.body) == (403, "Audiences in Jwt are not allowed")
    assert (await pod.ask("/", bearer(token(KEY, aud=["b", "a"])))).status == 200
    assert pod.counter("jwt_denied_total") == 3
    assert pod.counter("jwt_allowed_total") == 1


async def test_claims_are_sent_and_the_token_is_not(pod: GuardedPod) -> None:
    provider = replace(
        PROVIDER,
        payload_header="x-payload",
        pad_payload=True,
        claim_headers=(("sub", "x-sub"), ("a.b", "x-ab"), ("list", "x-list"), ("line", "x-line")),
    )
    await pod.guard(tokens(provider, NeedAny((NeedToken("p"), AllowMissing()))))
    text = token(KEY, a={"b": True}, list=["x", {"b": 1, "a": []}], line="a\r\nx-evil: 1")
    forged = {"X-Sub": "root", "x-payload": "forged", "x-list": "1", "x-line": "2"}
    answer = await pod.ask("/p?access_token=x%2Ey&a=%20b", forged)
    assert answer.status == 401
    answer = await pod.ask("/p?a=%20b", {**forged, **bearer(text)})
    assert answer.header("x-sub") == ["jane"]
    assert answer.header("x-ab") == ["true"]
    assert answer.header("x-list") == [
        "WyJ4Iix7ImEiOltdLCJiIjoxfV0="
    ]  # ["x",{"a":[],"b":1}], as Envoy sends it
    assert answer.header("x-line") == answer.header("x-evil") == []
    assert answer.header("authorization") == []
    (payload,) = answer.header("x-payload")
    assert json.loads(base64.urlsafe_b64decode(payload))["sub"] == "jane"
    assert answer.seen["path"] == "/p?a=%20b"
    answer = await pod.ask(f"/p?a=1&access_token={text}&b=2")
    assert answer.seen["path"] == "/p?a=1&b=2"
    assert (await pod.record("/p?a=1&")).path == "/p?a=1&b=2"
    without = await pod.ask("/", forged)
    assert without.header("x-sub") == without.header("x-payload") == without.header("x-list") == []


async def test_a_token_is_forwarded_if_it_may(pod: GuardedPod) -> None:
    places = (TokenPlace(TokenPlaceKind.COOKIE, "jwt"), TokenPlace(TokenPlaceKind.HEADER, "x-jwt", "v="))
    await pod.guard(tokens(replace(PROVIDER, forward=True, places=places)))
    text = token(KEY)
    assert (await pod.ask("/", {"x-jwt": f"v={text}"})).header("x-jwt") == [f"v={text}"]
    assert (await pod.ask("/", {"cookie": f"a=b; jwt={text}"})).status == 200
    assert (await pod.ask("/", bearer(text))).status == 401


async def test_rules_go_by_claims(pod: GuardedPod) -> None:
    def claim(path: str, value: str) -> TextCheck:
        name = f"envoy.filters.http.jwt_authn\x1fpayload\x1f{path}"
        return TextCheck(Attribute.METADATA, MatchKind.EXACT, value, name)

    provider = replace(PROVIDER, split_claims=("scope",))
    rules = Rules(
        RuleAction.ALLOW,
        (
            Policy("group", claim("groups", "ops")),
            Policy("nested", claim("a\x1fb", "7")),
            Policy("scope", claim("scope", "write")),
        ),
    )
    await pod.guard(tokens(provider, NeedAny((NeedToken("p"), AllowMissing()))), rules)
    for claims, status in (
        ({"groups": ["dev", "ops"]}, 200),
        ({"groups": "ops"}, 200),
        ({"groups": ["opsx"]}, 403),
        ({"a": {"b": "7"}}, 200),
        ({"a": {"b": 7}}, 403),  # a number is no text (Envoy)
        ({"a": {"b": "8"}}, 403),
        ({"scope": "read write"}, 200),
        ({"scope": "read"}, 403),
        ({}, 403),
    ):
        assert (await pod.ask("/", bearer(token(KEY, **claims)))).status == status, claims
    assert (await pod.ask("/")).status == 403


async def test_hostile_tokens(pod: GuardedPod) -> None:
    await pod.guard(tokens(PROVIDER))
    good = token(KEY)
    header, payload, signed = good.split(".")
    mac = hmac.HMAC(der(KEY), hashes.SHA256())
    confused = f"{encode_json({'alg': 'HS256'})}.{payload}"
    mac.update(confused.encode())
    deep = encode(b'{"iss":' + b"[" * 5000 + b"]" * 5000 + b"}")
    twice = encode(b'{"iss":"a","iss":"b"}')
    ones = encode(b"\xff" * 64)
    for text in (
        f"{encode_json({'alg': 'none'})}.{payload}.",
        f"{encode_json({'alg': 'none'})}.{payload}.AA",
        f"{confused}.{encode(mac.finalize())}",
        f"{header}.{payload}.{signed}=",
        f"{header}.{payload}.{signed[:-2]}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{encode_json({'iss': ISSUER, 'sub': 'root'})}.{signed}",
        f"{header}.{deep}.{signed}",
        f"{header}.{twice}.{signed}",
        f"{header}.{payload}.{encode(bytes(64))}",
        f"{header}.{payload}.{ones}",
        token(make_key("ES384"), "ES384"),
        token(KEY, header={"crit": ["b64"], "b64": False}),
        token(KEY, pad="x" * 16000),
        "x" * 50000,
        good + ".",
        good + ", Bearer x",
    ):
        assert (await pod.ask("/", bearer(text))).status == 401, text[:200]
    two = f"Authorization: Bearer {good}\r\nAuthorization: Bearer x\r\n"
    answer = await pod.raw(f"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{two}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert (await pod.ask("/", bearer(good))).status == 200


async def test_verified_tokens_are_remembered_until_they_expire(pod: GuardedPod) -> None:
    await pod.guard(tokens(replace(PROVIDER, clock_skew_s=0)))
    brief = token(KEY, exp=int(time.time()) + 2)
    for _ in range(3):
        assert (await pod.ask("/", bearer(brief))).status == 200
    assert pod.counter("jwt_verified_total") == 1
    assert pod.counter("jwt_cache_hits_total") == 2
    time.sleep(3.1)
    assert (await pod.ask("/", bearer(brief))).body == "Jwt is expired"
    # Other keys: what was verified with the old ones is not good any more.
    lasting = token(KEY)
    assert (await pod.ask("/", bearer(lasting))).status == 200
    await pod.guard(tokens(replace(PROVIDER, keys=(SigningKey("", "", der(make_key("ES256"))),))))
    assert (await pod.ask("/", bearer(lasting))).body == "Jwt verification fails"
    await pod.guard(tokens(replace(PROVIDER, keys=())))
    assert (await pod.ask("/", bearer(lasting))).body == "Jwks doesn't have any valid public key"


async def test_it_is_explained(pod: GuardedPod) -> None:
    name = "envoy.filters.http.jwt_authn\x1fpayload\x1fsub"
    jane = TextCheck(Attribute.METADATA, MatchKind.EXACT, "jane", name)
    await pod.guard(tokens(PROVIDER), Rules(RuleAction.ALLOW, (Policy("jane", jane),)))

    def explain(text: str) -> tuple[int, list[AccessStep]]:
        here = parse_address("127.0.0.1")
        headers = (("authorization", f"Bearer {text}"),)
        question = AccessQuestion(WEB, here, here, method="GET", authority="a", headers=headers)
        answer = pod.engine.explain_access(UID, question)
        return answer.status, [step for step in answer.steps if step.step in (Step.TOKENS, Step.POLICY)]

    assert explain(token(KEY)) == (
        0,
        [AccessStep(Step.TOKENS, ("OK",)), AccessStep(Step.POLICY, ("jane", "matched"))],
    )
    assert explain(token(KEY, sub="joe"))[0] == 403
    assert explain(token(KEY, exp=1)) == (401, [AccessStep(Step.TOKENS, ("Jwt is expired",))])


async def test_a_bad_key_spoils_no_other(pod: GuardedPod, caplog: pytest.LogCaptureFixture) -> None:
    keys = (SigningKey("bad", "", b"x"), *PROVIDER.keys)
    await pod.guard(tokens(replace(PROVIDER, keys=keys)))
    assert "provider 'p', key 'bad': not a SubjectPublicKeyInfo in DER" in caplog.text
    assert (await pod.ask("/", bearer(token(KEY)))).status == 200


async def test_preflights_pass(pod: GuardedPod) -> None:
    await pod.guard(tokens(PROVIDER))
    preflight = {"Origin": "https://a", "Access-Control-Request-Method": "PUT"}
    assert (await pod.ask("/", preflight, method="OPTIONS")).status == 200
    assert (await pod.ask("/", preflight)).status == 401
