"""Headers that routes change, all the way: from a VirtualService to what the application and the client see."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from harness.mesh import Mesh

pytestmark = pytest.mark.lab

ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews}
      headers:
        request:
          set:
            x-caller: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
            x-cluster: "%UPSTREAM_CLUSTER%"
            x-copied: "user %REQ(x-user)% at %START_TIME(%s)%"
            x-absent: "%REQ(x-nobody-sends-this)%"
            x-claimed: "%REQ(x-forwarded-client-cert)%"
        response:
          set: {x-was: "%RESPONSE_CODE% for %REQ(:path)%, 100%%"}
"""


@pytest.fixture(scope="module")
def headers(mesh: Mesh) -> Iterator[dict[str, list[str]]]:
    """Headers as the application got them, by name."""
    mesh.apply(ROUTE)
    claim = "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/default/sa/boss"
    answer = mesh.ask("client", "-H", "x-user: jane", "-H", claim, "http://reviews:9080/a?b")
    found: dict[str, list[str]] = {}
    for name, value in answer["headers"]:
        found.setdefault(name.lower(), []).append(value)
    yield found
    mesh.delete(ROUTE)


def test_command_operators_tell_of_the_request(mesh: Mesh, headers: dict[str, list[str]]) -> None:
    (client,) = [pod for pod in mesh.state()["pods"] if pod["name"] == "client"]
    assert headers["x-caller"][0] in client["ips"]
    assert headers["x-cluster"] == ["outbound|9080||reviews.default.svc.cluster.local"]
    assert re.fullmatch(r"user jane at [0-9]{10}", headers["x-copied"][0])
    assert "x-absent" not in headers


def test_a_client_cannot_claim_a_certificate(headers: dict[str, list[str]]) -> None:
    assert "x-user" in headers  # what the client adds arrives
    assert "x-forwarded-client-cert" not in headers
    assert "x-claimed" not in headers


def test_applications_are_told_which_attempt_it_is(headers: dict[str, list[str]]) -> None:
    assert headers["x-envoy-attempt-count"] == ["1"]


@pytest.mark.usefixtures("headers")
def test_command_operators_tell_of_the_answer(mesh: Mesh) -> None:
    shown = mesh.curl("client", "-D-", "-o", "/dev/null", "http://reviews:9080/a?b")
    assert "x-was: 200 for /a?b, 100%\r\n" in shown.replace("\n", "\r\n").replace("\r\r\n", "\r\n")
