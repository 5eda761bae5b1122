"""RequestAuthentication from its YAML to what an application gets: control plane, compiler and engine, with tokens
and key sets of another library."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from envoy.config.listener.v3 import listener_pb2
from harness.guarded_pod import WEB, Answer, GuardedPod, guarded_pod
from harness.requirements import require
from harness.xds_client import node
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from nodeagent.compiler.inbound import compile_inbound
from nodeagent.compiler.pieces import Scope
from nodeagent.controlplane.kinds import ListenerKind
from nodeagent.controlplane.report import Report
from nodeagent.controlplane.resources import INBOUND
from nodeagent.controlplane.sources.base import Batch
from nodeagent.controlplane.sources.documents import read_yaml
from nodeagent.controlplane.sources.objects import read_object
from nodeagent.controlplane.view import View
from nodeagent.controlplane.world import MeshSettings, World
from nodeagent.controlplane.xds.node import read_node

pytestmark = pytest.mark.netns

KEYS: dict[str, tuple[str, Any]] = {
    "rsa": ("PS256", rsa.generate_private_key(65537, 2048)),
    "p256": ("ES256", ec.generate_private_key(ec.SECP256R1())),
    "p521": ("ES512", ec.generate_private_key(ec.SECP521R1())),
    "ed": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
}
_KINDS: dict[str, Any] = {"rsa": RSAAlgorithm, "p256": ECAlgorithm, "p521": ECAlgorithm, "ed": OKPAlgorithm}
ONE, TWO = "https://one.test", "https://two.test"


def key_set(*names: str) -> str:
    """A JWKS of those keys, in one line."""
    keys = [{**json.loads(_KINDS[name].to_jwk(KEYS[name][1].public_key())), "kid": name} for name in names]
    return json.dumps({"keys": keys})


def token(name: str = "rsa", **claims: Any) -> str:
    algorithm, key = KEYS[name]
    body = {"iss": ONE, "sub": "jane", "exp": int(time.time()) + 600, **claims}
    return jwt.encode(body, key, algorithm=algorithm, headers={"kid": name})


def bearer(*arguments: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*arguments, **claims)}"}


WORKLOAD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec: {{nodeName: node-a, serviceAccountName: web}}
status: {{podIP: 10.0.0.1, phase: Running}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: 10.1.0.1, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: {WEB}}}]}}
---
"""


def stages(text: str) -> tuple[Any, ...]:
    """What is asked of requests to the pod `web`."""
    world = World(MeshSettings(hbone=True), Report())
    documents = read_yaml(WORKLOAD + text)
    world.apply(Batch(tuple(read_object(item, str(item.line), lambda key: 1.0) for item in documents)))
    client = read_node(node(pod="web", on_demand=True))
    workload = client.workload(world)
    view = View(world, client.perspective(workload), workload)
    served = ListenerKind().build(view, INBOUND)["virtualInbound"]
    piece = compile_inbound(listener_pb2.Listener.FromString(served.body), Scope("v"))
    assert piece.warnings == ()
    return tuple(piece.ports[WEB].guarding.request)


def authentication(rules: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens}}
spec: {{jwtRules: [{rules}]}}
"""


@pytest.fixture
async def pod() -> AsyncIterator[GuardedPod]:
    require("root", "engine", "nft")
    async with guarded_pod(f"nt-reqauth-{id(object())}") as made:
        yield made


def outcome(answer: Answer) -> str:
    return "OK" if answer.status == 200 else f"{answer.status} {answer.body}"


async def test_two_issuers_with_keys_of_all_kinds(pod: GuardedPod) -> None:
    rules = (
        f"{{issuer: {ONE}, audiences: [shop, api], jwks: '{key_set('rsa', 'p256')}'}}, "
        f"{{issuer: {TWO}, jwks: '{key_set('p521', 'ed')}'}}"
    )
    await pod.guard(*stages(authentication(rules)))
    for headers, expected in (
        ({}, "OK"),
        (bearer("rsa", aud="shop"), "OK"),
        (bearer("p256", aud=["x", "api"]), "OK"),
        (bearer("p521", iss=TWO), "OK"),
        (bearer("ed", iss=TWO), "OK"),
        (bearer("rsa", aud="other"), "403 Audiences in Jwt are not allowed"),
        (bearer("ed", aud="shop"), "401 Jwks doesn't have key to match kid or alg from Jwt"),
        (bearer("rsa", iss="https://three.test"), "401 Jwt issuer is not configured"),
        (bearer("rsa", aud="shop", exp=1000), "401 Jwt is expired"),
        (bearer("rsa", aud="shop", nbf=int(time.time()) + 600), "401 Jwt not yet valid"),
    ):
        assert outcome(await pod.ask("/", headers)) == expected
    assert outcome(await pod.ask(f"/?access_token={token('ed', iss=TWO)}")) == "OK"


async def test_places_of_tokens_and_what_becomes_of_them(pod: GuardedPod) -> None:
    rules = f"""{{issuer: {ONE}, jwks: '{key_set("p256")}',
        fromHeaders: [{{name: X-Token, prefix: "jwt "}}], fromParams: [t], fromCookies: [session],
        outputPayloadToHeader: x-payload,
        outputClaimToHeaders: [{{header: x-sub, claim: sub}}, {{header: x-team, claim: org.team}}]}}"""
    await pod.guard(*stages(authentication(rules)))
    text = token("p256", org={"team": "blue"})
    by_header = await pod.ask("/a?b=c", {"X-Token": f"jwt {text}", "x-sub": "root"})
    assert (by_header.header("x-sub"), by_header.header("x-team")) == (["jane"], ["blue"])
    assert by_header.header("x-payload") == [text.split(".")[1]]
    assert by_header.header("x-token") == []
    by_parameter = await pod.ask(f"/a?b=c&t={text}&d=e")
    assert by_parameter.seen["path"] == "/a?b=c&d=e"
    assert by_parameter.header("x-sub") == ["jane"]
    assert (await pod.ask("/", {"Cookie": f"a=b; session={text}"})).header("x-sub") == ["jane"]
    elsewhere = await pod.ask("/", {"Authorization": "Bearer nonsense", "x-sub": "root"})
    assert elsewhere.header("x-sub") == []
    assert outcome(await pod.ask("/", {"Cookie": "session=nonsense"})).startswith(
        "401 Jwt is not in the form"
    )
    await pod.guard(*stages(authentication(rules[:-1] + ", forwardOriginalToken: true}")))
    assert (await pod.ask("/", {"X-Token": f"jwt {text}"})).header("x-token") == [f"jwt {text}"]


async def test_policies_by_principals_audiences_and_claims(pod: GuardedPod) -> None:
    policy = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-token}
spec:
  action: %s
  rules: [%s]
"""
    rules = authentication(f"{{issuer: {ONE}, jwks: '{key_set('p256')}'}}")
    for rule, yes, no in (
        (f"from: [{{source: {{requestPrincipals: ['{ONE}/jane']}}}}]", {}, {"sub": "joe"}),
        (f"from: [{{source: {{requestPrincipals: ['{ONE}/*']}}}}]", {}, None),
        ("from: [{source: {requestPrincipals: ['*']}}]", {}, None),
        ("when: [{key: 'request.auth.audiences', values: [shop]}]", {"aud": "shop"}, {"aud": "x"}),
        ("when: [{key: 'request.auth.presenter', values: [app]}]", {"azp": "app"}, {}),
        ("when: [{key: 'request.auth.claims[a][b]', values: [c]}]", {"a": {"b": ["c"]}}, {"a": {"b": "d"}}),
        (
            "when: [{key: 'request.auth.claims[scope]', values: [write]}]",
            {"scope": "read write"},
            {"scope": "x"},
        ),
    ):
        await pod.guard(*stages(rules + policy % ("ALLOW", f"{{{rule}}}")))
        assert (await pod.ask("/", bearer("p256", **yes))).status == 200, rule
        assert (await pod.ask("/", {} if no is None else bearer("p256", **no))).status == 403, rule
        await pod.guard(*stages(rules + policy % ("DENY", f"{{{rule}}}")))
        assert (await pod.ask("/", bearer("p256", **yes))).status == 403, rule
        assert (await pod.ask("/")).status == 200, rule
