"""A table of authorization: policies, and what becomes of requests and connections while they are in force.

Clients: `alice` (a node away, tunnelled), `shop/bob` (on the server's node, no tunnel), `outsider` (no identity,
plaintext, straight to the server). Ports of the server: 80 HTTP, 9000 TCP, 7000 undeclared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

ALICE: Final = "alice"
BOB: Final = "shop/bob"
OUT: Final = "outsider"
SERVER: Final = "web.default.svc.cluster.local"
OPEN: Final = "open"
RESET: Final = "reset"
TEST_ISSUER: Final = "https://issuer.test"


@dataclass(frozen=True)
class Ask:
    """A client does something and something becomes of it."""

    client: str
    verdict: int | str
    port: int = 80
    path: str = "/"
    method: str = "GET"
    host: str = SERVER
    headers: tuple[str, ...] = ()
    tcp: bool = False
    to: str = SERVER
    """What is connected to; `host` is what a request says."""

    def as_item(self, headers: tuple[str, ...] = ()) -> dict[str, Any]:
        """For harness/asker.py."""
        if self.tcp:
            return {"host": self.to, "port": self.port, "tcp": "hello"}
        lines = (f"{self.method} {self.path} HTTP/1.1", f"Host: {self.host}", "Connection: close", *headers)
        return {"host": self.to, "port": self.port, "http": "\r\n".join((*lines, *self.headers, "", ""))}


@dataclass(frozen=True)
class Case:
    """Policies, as the spec of one AuthorizationPolicy or as whole documents, and what is asked."""

    name: str
    asks: tuple[Ask, ...]
    spec: str = ""
    documents: str = ""
    sound: bool = True
    """The control plane finds no fault with it."""

    @property
    def text(self) -> str:
        """The YAML to apply; empty: nothing."""
        if not self.spec:
            return self.documents
        return authorization(self.name, self.spec)


def authorization(name: str, spec: str, annotations: str = "{}") -> str:
    """An AuthorizationPolicy for the server; `spec` goes on behind the selector."""
    indented = "\n".join(f"  {line}" for line in spec.strip().splitlines())
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: default, annotations: {annotations}}}
spec:
  selector: {{matchLabels: {{app: web}}}}
{indented}
---
"""


def peer(mode: str, ports: str = "{}") -> str:
    """A PeerAuthentication for the server."""
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: mode, namespace: default}}
spec: {{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {ports}}}
---
"""


def tcp(client: str, verdict: str, port: int = 9000) -> Ask:
    return Ask(client, verdict, port=port, tcp=True)


def get(client: str, verdict: int | str, path: str = "/", *headers: str, **more: Any) -> Ask:
    return Ask(client, verdict, path=path, headers=headers, **more)


CASES: Final = (
    Case(
        "no-policy",
        (
            get(ALICE, 200), get(BOB, 200), get(OUT, 200), get(OUT, 200, port=7000),
            tcp(ALICE, OPEN), tcp(BOB, OPEN), tcp(OUT, OPEN), tcp(OUT, OPEN, 9001),
        ),
    ),
    Case(
        "allow-nothing",
        (
            get(ALICE, 403), get(BOB, 403), get(OUT, 403), get(ALICE, 403, port=7000),
            tcp(ALICE, RESET), tcp(BOB, RESET), tcp(OUT, RESET), tcp(OUT, RESET, 9001),
        ),
        "action: ALLOW",
    ),
    Case("allow-all", (get(OUT, 200), tcp(OUT, OPEN), get(BOB, 200)), "rules: [{}]"),
    Case("deny-all", (get(ALICE, 403), tcp(BOB, RESET), tcp(ALICE, RESET)), "action: DENY\nrules: [{}]"),
    Case(
        "principal",
        (
            get(ALICE, 200), get(BOB, 403), get(OUT, 403), get(ALICE, 200, port=7000), get(BOB, 403, port=7000),
            tcp(ALICE, OPEN), tcp(BOB, RESET), tcp(OUT, RESET),
        ),
        "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/alice]}}]}]",
    ),
    Case(
        "principal-suffix",
        (get(ALICE, 200), get(BOB, 403), tcp(ALICE, OPEN), tcp(BOB, RESET)),
        'rules: [{from: [{source: {principals: ["*/sa/alice"]}}]}]',
    ),
    Case(
        "namespace",
        (get(ALICE, 403), get(BOB, 200), get(OUT, 403), tcp(ALICE, RESET), tcp(BOB, OPEN)),
        "rules: [{from: [{source: {namespaces: [shop]}}]}]",
    ),
    Case(
        "not-namespace",
        (get(ALICE, 403), get(BOB, 200), get(OUT, 200), tcp(ALICE, RESET), tcp(OUT, OPEN)),
        "action: DENY\nrules: [{from: [{source: {notNamespaces: [shop], principals: ['*']}}]}]",
    ),
    Case(
        "members-only",
        (get(ALICE, 200), get(BOB, 200), get(OUT, 403), tcp(OUT, RESET), tcp(ALICE, OPEN)),
        "action: DENY\nrules: [{from: [{source: {notPrincipals: ['*']}}]}]",
    ),
    Case(
        "method",
        (
            get(ALICE, 200), get(ALICE, 403, method="POST"), get(OUT, 403, method="HEAD"), get(OUT, 403, method="get"),
            tcp(ALICE, RESET),
        ),
        "rules: [{to: [{operation: {methods: [GET]}}]}]",
    ),
    Case(
        "path-prefix",
        (
            get(OUT, 403, "/admin"), get(OUT, 403, "/admin/x?y=1"), get(OUT, 403, "/admin;p=1"),
            get(OUT, 403, "/./admin"), get(OUT, 403, "/x/../admin"), get(OUT, 403, "/%61dmin"),
            get(OUT, 403, "/x/%2e%2e/admin"), get(OUT, 403, "/x\\..\\admin"), get(OUT, 403, "/admin%2fx"),
            get(OUT, 400, "/admin#f"), get(OUT, 400, "/public#/../admin"),
            get(OUT, 200, "/Admin"), get(OUT, 200, "/public"), get(ALICE, 403, "/x/../admin"),
            get(ALICE, 200, "/x/admin"),
        ),
        'action: DENY\nrules: [{to: [{operation: {paths: ["/admin*"]}}]}]',
    ),
    Case(
        "path-exact",
        (
            get(OUT, 403, "/secret"), get(OUT, 403, "/secret?q"), get(OUT, 403, "/%73ecret"), get(OUT, 400, "/secret#"),
            get(OUT, 200, "/secret/"), get(OUT, 200, "/SECRET"), get(BOB, 403, "/secret"), get(BOB, 200, "/other"),
        ),
        "action: DENY\nrules: [{to: [{operation: {paths: [/secret]}}]}]",
    ),
    Case(
        "path-template",
        (
            get(OUT, 200, "/api/v1/info"), get(OUT, 403, "/api/v1/x/info"), get(OUT, 403, "/api//info"),
            get(OUT, 200, "/files/a/b/c"), get(OUT, 403, "/other"),
        ),
        'rules: [{to: [{operation: {paths: ["/api/{*}/info", "/files/{**}"]}}]}]',
    ),
    Case(
        "host",
        (
            get(OUT, 403, host="blocked.example"), get(OUT, 403, host="BLOCKED.example"),
            get(OUT, 403, host="blocked.example:80"), get(OUT, 200, host="free.example"), get(ALICE, 200),
        ),
        "action: DENY\nrules: [{to: [{operation: {hosts: [blocked.example, 'blocked.example:*']}}]}]",
    ),
    Case(
        "header",
        (
            get(OUT, 200, "/", "X-Token: good"), get(OUT, 403), get(OUT, 403, "/", "X-Token: bad"),
            get(OUT, 200, "/", "X-Token: bad", "X-Token: good"), get(OUT, 403, "/", "X-Token: good,bad"),
            get(OUT, 403, "/", "X-Token: Good"),
            get(ALICE, 200, "/", "x-token: good"), get(OUT, 400, "/", "X-Token : good"),
            get(OUT, 400, "/", "X-Token: good", " folded"),
        ),
        "rules: [{when: [{key: 'request.headers[x-token]', values: [good]}]}]",
    ),
    Case(
        "header-absent",
        (
            get(OUT, 200), get(OUT, 403, "/", "X-Role: guest"), get(OUT, 200, "/", "X-Role: admin"),
            get(OUT, 403, "/", "X-Role: admin", "X-Role: guest"),  # no value hides behind another
        ),
        "action: DENY\nrules: [{when: [{key: 'request.headers[x-role]', values: [guest]}]}]",
    ),
    Case(
        "port",
        (get(ALICE, 200), get(OUT, 200, port=7000), tcp(ALICE, RESET), tcp(OUT, RESET), tcp(OUT, OPEN, 9001)),
        'action: DENY\nrules: [{to: [{operation: {ports: ["9000"]}}]}]',
    ),
    Case(
        "http-only-rule-on-tcp",  # an ALLOW rule that needs HTTP allows no connection; a DENY keeps what it can
        (get(OUT, 200, "/x"), get(OUT, 403, "/y"), tcp(OUT, RESET), tcp(ALICE, RESET)),
        "rules: [{to: [{operation: {paths: [/x]}}]}]",
    ),
    Case(
        "when-principal",
        (get(ALICE, 200), get(BOB, 403), tcp(ALICE, OPEN), tcp(BOB, RESET)),
        "rules: [{when: [{key: source.principal, values: [cluster.local/ns/default/sa/alice]}]}]",
    ),
    Case(
        "deny-wins",
        (get(ALICE, 200), get(ALICE, 403, "/private"), get(BOB, 403), get(BOB, 403, "/private")),
        documents=authorization("both-1", "rules: [{from: [{source: {principals: ['*/sa/alice']}}]}]")
        + authorization("both-2", "action: DENY\nrules: [{to: [{operation: {paths: [/private]}}]}]"),
    ),
    Case(
        "audit",
        (get(ALICE, 200, "/a"), get(OUT, 200), tcp(OUT, OPEN)),
        "action: AUDIT\nrules: [{}]",
    ),
    Case(
        "dry-run",
        (get(ALICE, 200), get(OUT, 200), tcp(OUT, OPEN)),
        documents=authorization("dry-run", "action: DENY\nrules: [{}]", "{istio.io/dry-run: 'true'}"),
    ),
    Case(
        "strict",
        (
            get(ALICE, 200), get(BOB, 200), get(OUT, RESET), get(OUT, RESET, port=7000),
            tcp(ALICE, OPEN), tcp(BOB, OPEN), tcp(OUT, RESET), tcp(OUT, RESET, 9001),
        ),
        documents=peer("STRICT"),
    ),
    Case(
        "strict-but-for-a-port",
        (get(ALICE, 200), get(OUT, 200), tcp(ALICE, OPEN), tcp(OUT, RESET), get(OUT, RESET, port=7000)),
        documents=peer("STRICT", "{8080: {mode: PERMISSIVE}}"),
    ),
    Case(
        "strict-for-a-port",
        (get(OUT, RESET), get(ALICE, 200), tcp(OUT, OPEN), get(OUT, 200, port=7000)),
        documents=peer("PERMISSIVE", "{8080: {mode: STRICT}}"),
    ),
    Case(
        "strict-and-allow",
        (get(ALICE, 200, "/x"), get(ALICE, 403, "/y"), get(OUT, RESET, "/x")),
        documents=peer("STRICT") + authorization("strict-and-allow", "rules: [{to: [{operation: {paths: [/x]}}]}]"),
    ),
    Case(
        "custom-without-provider",
        (get(ALICE, 403, "/asked"), get(OUT, 403, "/asked"), get(OUT, 200, "/other")),
        "action: CUSTOM\nprovider: {name: nobody}\nrules: [{to: [{operation: {paths: [/asked]}}]}]",
        sound=False,
    ),
    Case(
        "custom",
        (
            get(ALICE, 200, "/asked"), get(OUT, 403, "/asked", "x-echo-status: 403"), get(OUT, 200, "/asked"),
            get(OUT, 200, "/asked/not", "x-echo-header: a:b"),
        ),
        "action: CUSTOM\nprovider: {name: echo-authorizer}\nrules: [{to: [{operation: {paths: [/asked]}}]}]",
    ),
)  # fmt: skip
