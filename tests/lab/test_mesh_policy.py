"""Who may do what in a mesh, through the live data path: a table of cases, and what changes amid connections."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from harness import pki
from harness.asking import AskingMesh
from harness.mesh import NODEAGENT, eventually, run
from harness.meshes import running_mesh
from harness.policy_cases import (
    ALICE,
    BOB,
    CASES,
    OPEN,
    OUT,
    RESET,
    SERVER,
    TEST_ISSUER,
    Ask,
    Case,
    authorization,
    get,
    peer,
    tcp,
)

from nodeagent.controlplane.ca.folder import load_authority

pytestmark = pytest.mark.lab

LAB = """
identity: {}
nodes: [{name: node-a}, {name: node-b}]
pods:
- {name: alice, node: node-a, serviceAccount: alice, labels: {app: alice}}
- {name: bob, namespace: shop, node: node-b, serviceAccount: bob, labels: {app: bob}}
- {name: outsider, node: node-a, serviceAccount: outsider, mesh: false}
- name: web
  node: node-b
  serviceAccount: web
  labels: {app: web}
  command: [nodeagent, echo, --http, "8080", --http, "7000", --tcp, "9000", --tcp, "9001", --h2c, "7100"]
- name: authorizer
  node: node-a
  serviceAccount: authorizer
  labels: {app: authorizer}
  command: [nodeagent, echo, --http, "8080"]
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 9000}
  - {name: other, port: 7000}
  - {name: another, port: 9001}
  - {name: third, port: 7100}
---
apiVersion: v1
kind: Service
metadata: {name: authorizer}
spec: {selector: {app: authorizer}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: echo-authorizer
      envoyExtAuthzHttp:
        service: authorizer.default.svc.cluster.local
        port: 80
        includeRequestHeadersInCheck: [x-echo-status]
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskingMesh]:
    folder = tmp_path_factory.mktemp("mesh-policy")
    meshed = {"alice", "bob", "web", "authorizer"}
    with running_mesh("tp", folder, LAB, kind=AskingMesh, hbone=meshed, services=SERVICES) as mesh:
        yield mesh


def expect(mesh: AskingMesh, asks: Iterable[Ask], *headers: str) -> None:
    """Everything asked is answered as it should be, within the time that a change takes, and stays so."""
    asks = tuple(asks)
    wanted = [ask.verdict for ask in asks]
    eventually(lambda: mesh.asked(asks, *headers), lambda got: got == wanted)
    assert mesh.asked(asks, *headers) == wanted


class TestTable:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_case(self, mesh: AskingMesh, case: Case) -> None:
        if not case.text:
            expect(mesh, case.asks)
            return
        mesh.apply(case.text, check=case.sound)
        try:
            expect(mesh, case.asks)
        finally:
            mesh.delete(case.text)

    def test_it_is_long_enough(self) -> None:
        assert sum(len(case.asks) for case in CASES) >= 60
        names = [case.name for case in CASES]
        assert len(names) == len(set(names))


def addresses(mesh: AskingMesh, pod: str) -> list[str]:
    return next(list(each["ips"]) for each in mesh.state()["pods"] if each["name"] == pod)


def test_by_address(mesh: AskingMesh) -> None:
    """Of who connects, not of who says so."""
    ips = ", ".join(f"'{ip}'" for ip in addresses(mesh, "outsider"))
    policy = authorization(
        "by-address", f"action: DENY\nrules: [{{from: [{{source: {{ipBlocks: [{ips}]}}}}]}}]"
    )
    asks = (get(OUT, 403), get(ALICE, 200), tcp(OUT, RESET), tcp(ALICE, OPEN))
    mesh.apply(policy)
    try:
        expect(mesh, asks)
        expect(mesh, (get(OUT, 403, "/", "X-Forwarded-For: 192.0.2.1"),))
    finally:
        mesh.delete(policy)
    expect(mesh, (get(OUT, 200),))


TOKEN_KEY = pki.rsa_key()


def bearer(**claims: Any) -> str:
    """The header with a token of the test's issuer."""
    body = {"iss": TEST_ISSUER, "sub": "me", "exp": int(time.time()) + 600, **claims}
    return "Authorization: Bearer " + jwt.encode(body, TOKEN_KEY, algorithm="RS256", headers={"kid": "k"})


@pytest.fixture(scope="class")
def tokens_wanted(mesh: AskingMesh) -> Iterator[None]:
    """A RequestAuthentication is in force."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(TOKEN_KEY.public_key()))
    keys = json.dumps({"keys": [{**public, "kid": "k", "alg": "RS256", "use": "sig"}]})
    text = f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  jwtRules: [{{issuer: "{TEST_ISSUER}", jwks: '{keys}'}}]
"""
    mesh.apply(text)
    yield
    mesh.delete(text)


@pytest.mark.usefixtures("tokens_wanted")
class TestTokens:
    """RequestAuthentication, and policies by what tokens say."""

    def test_a_token_must_be_good_if_there_is_one(self, mesh: AskingMesh) -> None:
        stolen = jwt.encode(
            {"iss": TEST_ISSUER, "sub": "me"}, pki.rsa_key(), algorithm="RS256", headers={"kid": "k"}
        )
        expect(
            mesh,
            (
                get(OUT, 200),
                get(OUT, 200, "/", bearer()),
                get(ALICE, 200, "/", bearer()),
                get(OUT, 401, "/", bearer(exp=int(time.time()) - 600)),
                get(OUT, 401, "/", bearer(iss="https://other.test")),
                get(OUT, 401, "/", f"Authorization: Bearer {stolen}"),
                get(OUT, 401, "/", "Authorization: Bearer nonsense"),
                get(OUT, 401, "/?access_token=nonsense"),
            ),
        )

    def test_by_who_the_token_is_of(self, mesh: AskingMesh) -> None:
        spec = f"rules: [{{from: [{{source: {{requestPrincipals: ['{TEST_ISSUER}/me']}}}}]}}]"
        policy = authorization("by-token", spec)
        mesh.apply(policy)
        try:
            expect(
                mesh,
                (
                    get(OUT, 403),
                    get(OUT, 200, "/", bearer()),
                    get(OUT, 403, "/", bearer(sub="you")),
                    tcp(OUT, RESET),
                ),
            )
        finally:
            mesh.delete(policy)

    def test_by_claim(self, mesh: AskingMesh) -> None:
        spec = "rules: [{when: [{key: 'request.auth.claims[groups]', values: [admins]}]}]"
        policy = authorization("by-claim", spec)
        mesh.apply(policy)
        try:
            expect(
                mesh,
                (
                    get(OUT, 403),
                    get(OUT, 403, "/", bearer()),
                    get(OUT, 200, "/", bearer(groups="admins")),
                    get(OUT, 200, "/", bearer(groups=["users", "admins"])),
                    get(OUT, 403, "/", bearer(groups=["users"])),
                ),
            )
        finally:
            mesh.delete(policy)


LIVE = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
    for line in sys.stdin:
        try:
            connection.sendall(eval(line))
            answer = connection.recv(4096)
        except OSError:
            answer = b""
        print((answer or b"reset").split(b"\\r\\n")[0].decode(), flush=True)
"""


class Live:
    """A connection in a pod that is used now and then."""

    def __init__(self, mesh: AskingMesh, client: str, port: int) -> None:
        self.process = mesh.popen(client, "python3", "-c", LIVE, SERVER, str(port))

    def say(self, data: bytes) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{data!r}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("client", [ALICE, "shop/bob", OUT])
def test_a_change_reaches_live_connections(mesh: AskingMesh, client: str) -> None:
    """TCP is reset; HTTP is judged anew at the next request, and the connection stays."""
    request = f"GET / HTTP/1.1\r\nHost: {SERVER}\r\n\r\n".encode()
    plain, http = Live(mesh, client, 9000), Live(mesh, client, 80)
    policy = authorization("live", "action: DENY\nrules: [{}]")
    try:
        assert plain.say(b"one") == "one"
        assert http.say(request) == "HTTP/1.1 200 OK"
        mesh.apply(policy)
        expect(mesh, (get(client, 403), tcp(client, RESET)))
        assert plain.say(b"two") == "reset"
        assert http.say(request) == "HTTP/1.1 403 Forbidden"
        mesh.delete(policy)
        expect(mesh, (get(client, 200),))
        assert http.say(request) == "HTTP/1.1 200 OK"
    finally:
        plain.close()
        http.close()


HANDSHAKE = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
if len(sys.argv) > 2:
    context.load_cert_chain(sys.argv[2])
try:
    with context.wrap_socket(socket.create_connection((sys.argv[1], 15008), timeout=10)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(3) + bytes([4]) + bytes(5))
        print("taken" if connection.recv(100) else "refused")
except OSError:
    print("refused")
"""


class TestStrangers:
    """Who comes to the port for tunnels with another certificate than one of the mesh."""

    def knock(self, mesh: AskingMesh, *certificate: str) -> str:
        (address, *_) = addresses(mesh, "web")
        return mesh.exec("outsider", "python3", "-c", HANDSHAKE, address, *certificate).strip()

    def certificate(
        self, mesh: AskingMesh, folder: Path, *identities: str, signer: Path | None = None
    ) -> str:
        ca = signer or Path("/run/nodeagent/lab", mesh.name, "identity", "ca")
        key = pki.p256()
        now = datetime.datetime.now(datetime.UTC)
        chain = pki.leaf(load_authority(ca, now), key, *map(pki.uri, identities))
        path = folder / "pair.pem"
        path.write_bytes(pki.key_pem(key) + "".join(chain).encode())
        return str(path)

    def test_a_member_is_taken(self, mesh: AskingMesh, tmp_path: Path) -> None:
        pair = self.certificate(mesh, tmp_path, "spiffe://cluster.local/ns/default/sa/alice")
        assert self.knock(mesh, pair) == "taken"

    def test_another_trust_domain_is_refused(self, mesh: AskingMesh, tmp_path: Path) -> None:
        pair = self.certificate(mesh, tmp_path, "spiffe://other.example/ns/default/sa/alice")
        assert self.knock(mesh, pair) == "refused"

    def test_another_authority_is_refused(self, mesh: AskingMesh, tmp_path: Path) -> None:
        pki.authority(tmp_path / "ca")
        identity = "spiffe://cluster.local/ns/default/sa/alice"
        assert (
            self.knock(mesh, self.certificate(mesh, tmp_path, identity, signer=tmp_path / "ca")) == "refused"
        )

    @pytest.mark.parametrize(
        "identities",
        [
            ("spiffe://cluster.local/ns/default/sa/alice", "spiffe://cluster.local/ns/default/sa/bob"),
            ("spiffe://cluster.local/ns/default/sa/alice\x00.evil",),
            ("spiffe://cluster.local/ns/default/sa/alice?x",),
            ("https://cluster.local/ns/default/sa/alice",),
        ],
    )
    def test_a_name_that_may_be_read_in_two_ways_is_refused(
        self, mesh: AskingMesh, tmp_path: Path, identities: tuple[str, ...]
    ) -> None:
        assert self.knock(mesh, self.certificate(mesh, tmp_path, *identities)) == "refused"

    def test_nobody_is_refused(self, mesh: AskingMesh) -> None:
        assert self.knock(mesh) == "refused"


def test_http2_is_not_let_past_policies_on_requests(mesh: AskingMesh) -> None:
    """It is not parsed yet, so that nobody can tell which request it would be."""
    url = f"http://{SERVER}:7100/free"
    command = (
        "curl",
        "-s",
        "-m",
        "5",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--http2-prior-knowledge",
        url,
    )
    policy = authorization("by-path", "action: DENY\nrules: [{to: [{operation: {paths: [/secret]}}]}]")
    eventually(lambda: mesh.exec("outsider", *command, check=False), lambda got: got == "200")
    mesh.apply(policy)
    try:
        expect(mesh, (get(OUT, 403, "/secret"), get(OUT, 200, "/free")))
        assert mesh.exec("outsider", *command, check=False) == "000"
    finally:
        mesh.delete(policy)


class TestShown:
    def test_what_is_in_force_and_for_whom(self, mesh: AskingMesh) -> None:
        policy = authorization("shown", "action: DENY\nrules: [{to: [{operation: {paths: [/x]}}]}]")
        mesh.apply(policy)
        try:
            rows = eventually(
                lambda: mesh.get("policies", "node-b", "shown"),
                lambda rows: len(rows) == 2 and all("default/web" in each["workloads"] for each in rows),
            )
            assert {(row["source"].split()[0], row["action"], row["state"]) for row in rows} == {
                ("Authorization", "DENY", "in its listener"),
                ("virtualInbound", "DENY", "in force"),
            }
        finally:
            mesh.delete(policy)

    def test_who_decided_is_in_the_access_log(self, mesh: AskingMesh) -> None:
        policy = authorization(
            "logged", "action: DENY\nrules: [{to: [{operation: {paths: [/logged-path]}}]}]"
        )
        mesh.apply(policy)
        try:
            expect(mesh, (get(ALICE, 403, "/logged-path"),))
        finally:
            mesh.delete(policy)
        log = Path("/run/nodeagent/lab", mesh.name, "node", "node-b", "access.log")
        wanted = "rbac_access_denied_matched_policy[ns[default]-policy[logged]-rule[0]]"
        eventually(
            lambda: [
                line for line in log.read_text().splitlines() if "/logged-path" in line and wanted in line
            ],
            bool,
        )


def test_a_pod_is_a_member_for_its_own_address_too(mesh: AskingMesh) -> None:
    """What no service stands for is tunnelled as well: STRICT takes it."""
    strict = peer("STRICT")
    mesh.apply(strict)
    try:
        for ip in addresses(mesh, "web"):
            expect(
                mesh,
                (
                    Ask(ALICE, 200, port=8080, to=ip),
                    Ask("shop/bob", 200, port=8080, to=ip),
                    Ask(ALICE, OPEN, port=9000, to=ip, tcp=True),
                    Ask(OUT, RESET, port=9000, to=ip, tcp=True),
                ),
            )
    finally:
        mesh.delete(strict)


def test_strict_and_back_again(mesh: AskingMesh) -> None:
    """The mode changes what new connections may; members notice nothing."""
    strict = peer("STRICT")
    expect(mesh, (get(OUT, 200), tcp(OUT, OPEN)))
    mesh.apply(strict)
    try:
        expect(mesh, (get(OUT, RESET), tcp(OUT, RESET), get(ALICE, 200), tcp(ALICE, OPEN)))
    finally:
        mesh.delete(strict)
    expect(mesh, (get(OUT, 200), tcp(OUT, OPEN)))


def test_what_is_explained_is_what_happens(mesh: AskingMesh) -> None:
    policy = authorization(
        "explained",
        "rules: [{from: [{source: {principals: ['*/sa/alice']}}], to: [{operation: {paths: ['/x*']}}]}]",
    )
    asks = (
        get(ALICE, 200, "/x"),
        get(ALICE, 403, "/y"),
        get(BOB, 403, "/x"),
        tcp(ALICE, RESET),
        tcp(BOB, RESET),
    )
    mesh.apply(policy)
    try:
        expect(mesh, asks)
        for ask in asks:
            command = ("explain", ask.client, f"{SERVER}:{ask.port}{ask.path}", "--name", mesh.name)
            shown = run(str(NODEAGENT), *command, *(["--tcp"] if ask.tcp else []), check=False)
            verdict = shown.splitlines()[-1]
            assert verdict.startswith("allowed" if ask.verdict == 200 else "denied"), shown
            if ask.verdict == 403:
                assert verdict.startswith("denied, answered 403: rbac_access_denied_matched_policy[none]"), (
                    shown
                )
    finally:
        mesh.delete(policy)
