"""Real Envoy enforces what the control plane makes of security policies: RBAC, tokens, external authorizers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from harness import authorizer
from harness.control_plane import ControlPlaneProcess, pod, service
from harness.envoy_sidecar import start_sidecar
from harness.netns import Namespace, Network
from harness.processes import Process, wait_until
from harness.requirements import require

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(180)]

HTTP, TCP, GRPC_AUTHZ, HTTP_AUTHZ = 9080, 7000, 9000, 8000
REDIRECT = """
table inet sidecar {
  chain prerouting {
    type nat hook prerouting priority -100
    tcp dport { 9080, 7000 } redirect to :15006
  }
}
"""
MESH = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: by-grpc
      envoyExtAuthzGrpc: {service: authz.default.svc.cluster.local, port: 9000, timeout: 5s}
    - name: by-http
      envoyExtAuthzHttp:
        service: default/authz-http.default.svc.cluster.local
        port: 8000
        pathPrefix: /check
        includeRequestHeadersInCheck: [x-ext-authz]
        includeAdditionalHeadersInCheck: {x-from: mesh}
        includeRequestBodyInCheck: {maxRequestBytes: 64, allowPartialMessage: true}
        headersToUpstreamOnAllow: [x-user]
        headersToDownstreamOnDeny: [x-reason]
"""
BANNER = "welcome"
INLINE, FETCHED = "https://inline.example", "https://fetched.example"


def policy(name: str, spec: str, kind: str = "AuthorizationPolicy", **annotations: str) -> str:
    head = f"apiVersion: security.istio.io/v1\nkind: {kind}\n"
    return head + f"metadata: {{name: {name}, annotations: {json.dumps(annotations)}}}\nspec: {spec}\n"


class Issuer:
    """Signs tokens of two issuers with one key; its key set is served by HTTP."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        self.key_set = json.dumps({"keys": [{**public, "kid": "one", "alg": "RS256", "use": "sig"}]})
        answer = self.key_set.encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"

    def token(self, issuer: str = INLINE, lifetime: int = 300, **claims: Any) -> str:
        body = {"iss": issuer, "sub": "jane", "exp": int(time.time()) + lifetime, **claims}
        return jwt.encode(body, self.key, algorithm="RS256", headers={"kid": "one"})


class Mesh:
    """The pod `web` behind Envoy, a client without, an authorizer, and the control plane."""

    def __init__(self, network: Network, plane: ControlPlaneProcess, folder: Path) -> None:
        self.plane = plane
        self.web = network.add("web")
        self.client = network.add("client")
        self.other = network.add("other")
        self.authz = network.add("authz")
        self.issuer = Issuer()
        plane.put(
            "mesh.yaml",
            MESH,
            service("web", "10.96.0.1", "http", HTTP),
            service("db", "10.96.0.2", "tcp", TCP, app="web"),
            service("authz", "10.96.0.3", "grpc", GRPC_AUTHZ),
            service("authz-http", "10.96.0.4", "http", HTTP_AUTHZ, app="authz"),
            pod("web", self.web.v4, "web"),
            pod("authz", self.authz.v4, "authz"),
        )
        echo = [sys.executable, "-m", "nodeagent.cli.main", "echo", "--name", "web", "--host", "0.0.0.0"]
        self.web.start([*echo, "--http", str(HTTP), "--tcp", str(TCP), "--tcp-banner", BANNER]).wait_for_port(
            TCP, 20
        )
        self.authorizer: Process = self.authz.start(
            authorizer.command(GRPC_AUTHZ, HTTP_AUTHZ, self.client.v4)
        )
        self.authorizer.wait_for_port(HTTP_AUTHZ, 20)
        wait_until(lambda: plane.json("/status")["resources"].get("Pod") == 2, "configuration in force")
        self.envoy = start_sidecar(self.web, "web", plane.socket, folder)
        self.web.check(["nft", "-f", "-"], stdin=REDIRECT)
        wait_until(lambda: self.ask("/")[0] == 200, "the pod answers through Envoy", 20)

    def apply(self, *policies: str) -> None:
        """Make these the policies in force, in Envoy too."""
        self.plane.put("policies.yaml", *policies)
        generation = self.plane.json("/status")["generation"]
        wait_until(
            lambda: self.plane.json("/status")["generation"] > generation or self._settled(), "applied", 10
        )
        time.sleep(0.3)
        wait_until(self._settled, "taken by Envoy", 10)
        # What was pushed is drained into place by Envoy's main thread.
        time.sleep(0.3)

    def _settled(self) -> bool:
        clients = self.plane.json("/debug/syncz")
        return all(state["state"] == "SYNCED" for client in clients for state in client["types"].values())

    def ask(self, path: str, *options: str, source: Namespace | None = None) -> tuple[int, str]:
        """Status and body of a request to the pod."""
        argv = ["curl", "-s", "-m", "10", "--path-as-is", "-w", "\n%{http_code}", *options]
        done = (source or self.client).exec([*argv, f"http://{self.web.v4}:{HTTP}{path}"])
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def talks(self, source: Namespace | None = None) -> bool:
        """Whether the pod's TCP port echoes."""
        return self.hears("hello\n", source) == f"{BANNER}\nhello\n"

    def hears(self, said: str = "", source: Namespace | None = None) -> str:
        """What the pod's TCP port says, to what it is told."""
        argv = ["nc", "-w", "1", self.web.v4, str(TCP)]
        return (source or self.client).exec(argv, stdin=said).stdout


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    require("root", "curl", "nft", "ip")
    with Network("cp-g") as network, ControlPlaneProcess() as plane:
        found = Mesh(network, plane, tmp_path_factory.mktemp("envoy"))
        try:
            yield found
        finally:
            found.issuer.server.shutdown()
            found.issuer.server.server_close()


def bearer(token: str) -> tuple[str, str]:
    return "-H", f"Authorization: Bearer {token}"


def test_deny_before_allow(mesh: Mesh) -> None:
    mesh.apply(
        policy("allow", "{rules: [{to: [{operation: {methods: [GET], paths: [/public/*]}}]}]}"),
        policy("deny", "{action: DENY, rules: [{to: [{operation: {paths: [/public/secret]}}]}]}"),
    )
    assert mesh.ask("/public/a")[0] == 200
    assert mesh.ask("/public/secret") == (403, "RBAC: access denied")
    assert mesh.ask("/public/x/../secret") == (403, "RBAC: access denied")
    assert mesh.ask("/public/a", "-X", "POST")[0] == 403
    assert mesh.ask("/private")[0] == 403
    # An ALLOW policy with HTTP fields allows nothing on a TCP port.
    assert not mesh.talks()


def test_nothing_but_an_empty_policy_denies_all(mesh: Mesh) -> None:
    mesh.apply(policy("nothing", "{}"))
    assert mesh.ask("/")[0] == 403
    assert not mesh.talks()


def test_addresses_and_ports(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "by-address",
            f"{{rules: [{{from: [{{source: {{ipBlocks: [{mesh.client.v4}]}}}}],"
            f' to: [{{operation: {{ports: ["{TCP}"]}}}}]}}]}}',
        )
    )
    assert mesh.talks()
    assert not mesh.talks(mesh.other)
    assert mesh.ask("/")[0] == 403


def test_hosts_headers_and_templates(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "many",
            '{rules: [{to: [{operation: {hosts: ["*.Example.com"], paths: ["/u/{*}/f/{**}"]}}],'
            ' when: [{key: "request.headers[x-team]", values: [a*], notValues: [ab]}]}]}',
        )
    )
    good = ("-H", "Host: A.EXAMPLE.com", "-H", "X-Team: aa")
    assert mesh.ask("/u/1/f/2/3", *good)[0] == 200
    assert mesh.ask("/u/1/2/f/3", *good)[0] == 403
    assert mesh.ask("/u/1/f/2", "-H", "Host: example.com", "-H", "X-Team: aa")[0] == 403
    assert mesh.ask("/u/1/f/2", "-H", "Host: a.example.com", "-H", "X-Team: ab")[0] == 403
    assert mesh.ask("/u/1/f/2", "-H", "Host: a.example.com")[0] == 403


def test_principals_are_unknown_in_plain_text(mesh: Mesh) -> None:
    mesh.apply(policy("known", '{rules: [{from: [{source: {principals: ["*"]}}]}]}'))
    assert mesh.ask("/")[0] == 403
    mesh.apply(policy("unknown", '{action: DENY, rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}'))
    assert mesh.ask("/")[0] == 403


def test_strict_refuses_plain_text(mesh: Mesh) -> None:
    mesh.apply(policy("strict", "{mtls: {mode: STRICT}}", "PeerAuthentication"))
    assert mesh.ask("/")[0] == 0
    assert not mesh.talks()
    assert mesh.hears() == ""
    selector = "selector: {matchLabels: {app: web}}"
    mesh.apply(
        policy("strict", "{mtls: {mode: STRICT}}", "PeerAuthentication"),
        policy(
            "but", f"{{{selector}, portLevelMtls: {{{HTTP}: {{mode: PERMISSIVE}}}}}}", "PeerAuthentication"
        ),
    )
    assert mesh.ask("/")[0] == 200
    assert not mesh.talks()


def test_audit_and_dry_run_refuse_nothing(mesh: Mesh) -> None:
    mesh.apply(
        policy("audited", "{action: AUDIT, rules: [{}]}"),
        policy("tried", "{action: DENY, rules: [{}]}", **{"istio.io/dry-run": "true"}),
    )
    assert mesh.ask("/")[0] == 200
    stats = mesh.web.check(
        ["curl", "-s", "http://127.0.0.1:15000/stats?filter=istio_dry_run_deny_.shadow_denied"]
    )
    assert any(not line.endswith(": 0") for line in stats.splitlines()), stats


def tokens(mesh: Mesh) -> str:
    rules = [
        {"issuer": INLINE, "jwks": mesh.issuer.key_set, "audiences": ["web"], "outputClaimToHeaders": [
            {"header": "x-sub", "claim": "sub"}]},
        {"issuer": FETCHED, "jwksUri": mesh.issuer.url, "fromParams": ["t"], "forwardOriginalToken": True},
    ]  # fmt: skip
    return policy("tokens", json.dumps({"jwtRules": rules}), "RequestAuthentication")


def test_tokens(mesh: Mesh) -> None:
    mesh.apply(tokens(mesh))
    good = mesh.issuer.token(aud=["web"])
    assert mesh.ask("/")[0] == 200
    status, body = mesh.ask("/", *bearer(good), "-H", "x-sub: forged")
    headers = {name.lower(): value for name, value in json.loads(body)["headers"]}
    assert (status, headers["x-sub"]) == (200, "jane")
    assert "authorization" not in headers
    assert mesh.ask("/", *bearer(good[:-8] + "AAAAAAAA"))[0] == 401
    assert mesh.ask("/", *bearer(mesh.issuer.token("https://other.example", aud="web")))[0] == 401
    assert mesh.ask("/", *bearer(mesh.issuer.token(aud="api")))[0] == 403  # Envoy tells these apart
    assert mesh.ask("/", *bearer(mesh.issuer.token(aud="web", lifetime=-300)))[0] == 401
    wait_until(lambda: mesh.ask(f"/?t={mesh.issuer.token(FETCHED)}")[0] == 200, "the fetched keys", 10)


def test_claims_decide(mesh: Mesh) -> None:
    mesh.apply(
        tokens(mesh),
        policy(
            "admins",
            f'{{rules: [{{from: [{{source: {{requestPrincipals: ["{INLINE}/jane"]}}}}],'
            ' when: [{key: "request.auth.claims[groups]", values: [admin]}]}]}',
        ),
    )
    assert mesh.ask("/")[0] == 403
    assert mesh.ask("/", *bearer(mesh.issuer.token(aud="web", groups=["dev"])))[0] == 403
    assert mesh.ask("/", *bearer(mesh.issuer.token(aud="web", groups=["dev", "admin"])))[0] == 200
    assert mesh.ask("/", *bearer(mesh.issuer.token(aud="web", groups="admin")))[0] == 200


def test_keys_that_cannot_be_had_verify_nothing(mesh: Mesh) -> None:
    rule = {"issuer": FETCHED, "jwksUri": "http://127.0.0.1:1/keys"}
    mesh.apply(policy("gone", json.dumps({"jwtRules": [rule]}), "RequestAuthentication"))
    assert mesh.ask("/")[0] == 200
    assert mesh.ask("/", *bearer(mesh.issuer.token(FETCHED)))[0] == 401
    messages = mesh.plane.messages()
    assert any("keys of http://127.0.0.1:1/keys cannot be fetched" in text for text in messages), messages


def test_external_authorizer_by_grpc(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "ask",
            "{action: CUSTOM, provider: {name: by-grpc}, rules: [{to: [{operation: {paths: [/ask/*]}}]}]}",
        )
    )
    assert mesh.ask("/free")[0] == 200
    assert mesh.ask("/ask/a") == (403, "denied by the authorizer")
    status, body = mesh.ask("/ask/a", "-H", "x-ext-authz: allow")
    assert (status, "x-ext-authz-check-result" in body) == (200, True)


def test_external_authorizer_of_connections(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "ask-tcp",
            "{action: CUSTOM, provider: {name: by-grpc},"
            f' rules: [{{to: [{{operation: {{ports: ["{TCP}"]}}}}]}}]}}',
        )
    )
    assert mesh.talks()
    assert not mesh.talks(mesh.other)


def test_external_authorizer_by_http(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "ask",
            "{action: CUSTOM, provider: {name: by-http}, rules: [{to: [{operation: {paths: [/ask/*]}}]}]}",
        )
    )
    status, answer = mesh.ask("/ask/a", "-D", "-", "-d", "body")
    assert (status, "x-reason: because" in answer) == (403, True)
    status, body = mesh.ask("/ask/a", "-H", "x-ext-authz: allow", "-H", "x-secret: s")
    assert (status, dict(json.loads(body)["headers"]).get("x-user")) == (200, "jane")
    asked = [json.loads(line) for line in mesh.authorizer.output.splitlines() if '"http"' in line]
    assert asked[0]["body"] == "body"
    assert asked[-1]["path"] == "/check/ask/a"
    assert asked[-1]["headers"]["x-from"] == "mesh"
    assert "x-secret" not in asked[-1]["headers"]


def test_without_its_provider_a_custom_policy_denies(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "ask", "{action: CUSTOM, provider: {name: gone}, rules: [{to: [{operation: {paths: [/ask]}}]}]}"
        )
    )
    assert mesh.ask("/ask")[0] == 403
    assert mesh.ask("/free")[0] == 200
    messages = mesh.plane.messages()
    assert any("no extension provider 'gone'" in text for text in messages), messages


def test_a_bad_policy_leaves_the_good_ones(mesh: Mesh) -> None:
    good = policy("good", "{action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]}")
    mesh.apply(good, policy("bad", "{action: DENY, rules: [{to: [{operation: {pathes: [/x]}}]}]}"))
    assert mesh.ask("/no")[0] == 403
    assert mesh.ask("/yes")[0] == 200
    messages = mesh.plane.messages()
    assert any("did you mean paths?" in text for text in messages), messages


def test_envoy_refused_nothing(mesh: Mesh) -> None:
    for client in mesh.plane.json("/debug/syncz"):
        for type_url, state in client["types"].items():
            assert (state["nacks"], state["nack"]) == (0, None), type_url
    assert "rejected" not in mesh.envoy.output, mesh.envoy.output
