"""What happens to traffic when certificates cannot be renewed: it goes on while they are valid, then it is refused;
nothing goes in plaintext, people are told why, and it mends itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import pki
from harness.mesh import Mesh, counted, eventually
from harness.meshes import running_mesh
from harness.sniffer import sniffing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

LIFETIME = 16
LAB = f"""
identity: {{certLifetime: {LIFETIME}}}
nodes: [{{name: node-a}}, {{name: node-b}}]
pods:
- {{name: client, node: node-a, serviceAccount: client, labels: {{app: client}}}}
- name: far
  node: node-b
  serviceAccount: far
  labels: {{app: far}}
  command: [nodeagent, echo, --http, "8080"]
config: [services.yaml]
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
MARKER = "never-in-plaintext"
CLIENT = "spiffe://cluster.local/ns/default/sa/client"
FAR = "spiffe://cluster.local/ns/default/sa/far"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh-certificates")
    with running_mesh("tc", folder, LAB, services=SERVICES) as mesh:
        eventually(lambda: by_tunnel(mesh), lambda there: there, within=20)
        yield mesh


def by_tunnel(mesh: Mesh) -> bool:
    """Whether the client knows that far is reached by HBONE, and reaches it."""
    rows = mesh.get("workloads", "node-a")
    return any(row["name"] == "far" and row["protocol"] == "HBONE" for row in rows) and answer(mesh) == "200"


def answer(mesh: Mesh) -> str:
    """The status of a request on a connection of its own."""
    return mesh.curl(
        "client", "-o", "/dev/null", "-w", "%{http_code}", f"http://far/{MARKER}", check=False
    ).strip()


def state(mesh: Mesh) -> str:
    rows = {row["identity"]: row["state"] for row in mesh.get("certs", "node-a")}
    return str(rows.get(CLIENT))


def far_has_as_long(mesh: Mesh) -> bool:
    """Whether the other end's certificate does not run out much before the client's: most troubles keep its agent from
    renewing it, too."""
    ends = [
        row["not_after"]
        for node, identity in (("node-a", CLIENT), ("node-b", FAR))
        for row in mesh.get("certs", node)
        if row["identity"] == identity
    ]
    return ends[1] > ends[0] - LIFETIME / 4


def folder(mesh: Mesh) -> Path:
    return Path("/run/nodeagent/lab", mesh.name)


@contextlib.contextmanager
def nothing_in_plaintext(mesh: Mesh) -> Iterator[None]:
    with sniffing(f"na.{mesh.name}.node-a") as segments:
        yield
    assert segments, "the test would see nothing"
    assert not [each for each in segments if MARKER.encode() in each.data]


def without_control_plane(mesh: Mesh) -> Callable[[], None]:
    mesh.lab("stop", "controlplane")

    def mend() -> None:
        mesh.lab("start", "controlplane")

    return mend


def without_token(mesh: Mesh) -> Callable[[], None]:
    token = folder(mesh) / "identity" / "tokens" / "node-a"
    kept = token.read_text()
    token.unlink()

    def mend() -> None:
        token.write_text(kept)
        token.chmod(0o600)

    return mend


def with_another_root(mesh: Mesh) -> Callable[[], None]:
    root = folder(mesh) / "identity" / "root-cert.pem"
    kept = root.read_text()
    root.write_text(pki.authority(mesh.folder / "foreign").bundle)

    def mend() -> None:
        root.write_text(kept)

    return mend


TROUBLES = {
    "CA down": (without_control_plane, "unreachable", "Connection refused"),
    "no token": (without_token, "token", "the token cannot be read"),
    "wrong root": (with_another_root, "tls", "cannot be verified"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_traffic_goes_on_with_what_is_valid_and_never_in_plaintext(mesh: Mesh, name: str) -> None:
    make, reason, message = TROUBLES[name]
    eventually(lambda: (state(mesh), answer(mesh)), lambda now: now == ("Available", "200"), within=20)
    log = folder(mesh) / "logs" / "agent.node-a.log"
    eventually(lambda: far_has_as_long(mesh), bool, within=LIFETIME)
    mend = make(mesh)
    try:
        with nothing_in_plaintext(mesh):
            failed = eventually(
                lambda: counted(mesh, "node-a", "nodeagent_certificate_failures_total", reason=reason),
                lambda count: count > 0,
                within=LIFETIME,
            )
            assert failed
            warnings = eventually(
                lambda: json.dumps(mesh.status("node-a")["warnings"]), lambda text: message in text
            )
            assert "valid for" in warnings, "it tells how long there is to mend it"
            assert "cannot renew the certificate" in log.read_text()
            assert (state(mesh), answer(mesh)) == ("Available", "200")
            eventually(lambda: state(mesh), lambda now: now == "Expired", within=LIFETIME)
            assert answer(mesh) == "503"
            assert "the certificate has expired" in json.dumps(mesh.status("node-a")["warnings"])
    finally:
        mend()
    eventually(lambda: (state(mesh), answer(mesh)), lambda now: now == ("Available", "200"), within=30)
    assert not [text for text in mesh.status("node-a")["warnings"] if "certificate" in text]
