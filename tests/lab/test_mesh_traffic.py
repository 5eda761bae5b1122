"""The whole stack: unmodified programs in pods, captured, routed and answered across nodes."""

from __future__ import annotations

import json
import time

import pytest
from harness.mesh import Mesh, eventually

pytestmark = pytest.mark.lab

REVIEWS = "http://reviews:9080/"


def virtual_service(http: str, *, name: str = "reviews", host: str = "reviews") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{host}]
  http: {http}
"""


SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""


@pytest.fixture
def routes(mesh: Mesh):
    """Apply YAML for one test, take it away after it."""
    applied: list[str] = []

    def apply(*documents: str, check: bool = True) -> str:
        text = "---".join(documents)
        applied.append(text)
        return mesh.apply(text, check=check)

    yield apply
    for text in applied:
        mesh.delete(text)


# -- names, families, programs --


@pytest.mark.parametrize(
    "host", ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"]
)
def test_every_form_of_the_name_is_answered(mesh: Mesh, host: str) -> None:
    answer = mesh.ask("client", f"http://{host}:9080/path?q=1")
    assert answer["pod"].startswith("reviews-")
    assert answer["path"] == "/path?q=1"


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_both_families_are_captured_and_keep_the_source_address(mesh: Mesh, family: str) -> None:
    answer = mesh.ask("client", family, REVIEWS)
    source = answer["remote"]["ip"]
    addresses = json.loads(mesh.exec("client", "ip", "-j", "addr", "show", "scope", "global"))
    own = {info["local"] for link in addresses for info in link.get("addr_info", []) if "local" in info}
    assert source in own
    assert any(name.lower() == "x-request-id" for name, _ in answer["headers"]), "not captured"


def test_unmodified_programs_work(mesh: Mesh) -> None:
    assert json.loads(mesh.exec("client", "wget", "-qO-", REVIEWS))["pod"].startswith("reviews-")
    script = f"import urllib.request as u; print(u.urlopen('{REVIEWS}', timeout=5).read().decode())"
    assert json.loads(mesh.exec("client", "/usr/bin/python3", "-c", script))["pod"].startswith("reviews-")
    echoed = mesh.exec("client", "sh", "-c", "printf 'hello\\n' | nc -N -w 5 tcp-echo 9000")
    assert echoed == "hello\n"


def test_server_first_protocol_on_an_undeclared_port(mesh: Mesh) -> None:
    started = time.monotonic()
    out = mesh.exec("client", "sh", "-c", "nc -d -w 2 banner 9001 </dev/null", check=False)
    assert out.startswith("220 banner")
    assert time.monotonic() - started < 10


def test_half_close_is_kept(mesh: Mesh) -> None:
    script = (
        "import socket\n"
        "s = socket.create_connection(('tcp-echo', 9000), 5)\n"
        "s.sendall(b'x' * 300000); s.shutdown(socket.SHUT_WR)\n"
        "n = 0\n"
        "while (d := s.recv(65536)): n += len(d)\n"
        "print(n)\n"
    )
    assert mesh.exec("client", "/usr/bin/python3", "-c", script).strip() == "300000"


def test_http2_by_prior_knowledge_is_forwarded(mesh: Mesh) -> None:
    answer = mesh.ask("client", "--http2-prior-knowledge", "http://reviews:9082/")
    assert answer["protocol"].startswith("HTTP/2")


def test_websocket_passes(mesh: Mesh) -> None:
    script = (
        "import asyncio, websockets\n"
        "async def main():\n"
        "    async with websockets.connect('ws://reviews:9080/ws', proxy=None) as w:\n"
        "        await w.send('over the mesh'); print(await w.recv())\n"
        "asyncio.run(main())\n"
    )
    assert "over the mesh" in mesh.exec("client", "python", "-c", script)


def test_outsider_reaches_the_mesh_and_the_mesh_reaches_an_outsider(mesh: Mesh) -> None:
    answer = mesh.ask("outsider", REVIEWS)
    assert answer["pod"].startswith("reviews-")
    assert mesh.ask("client", "http://plain:9080/")["pod"] == "plain"


def test_unknown_port_and_pod_address_pass_through(mesh: Mesh) -> None:
    ip = mesh.ask("client", "http://plain:9080/")["host"]
    assert ip
    assert mesh.curl("client", "http://reviews:9999/", check=False) == ""
    pod_ip = json.loads(mesh.exec("plain", "ip", "-j", "-4", "addr", "show", "scope", "global"))
    address = pod_ip[0]["addr_info"][0]["local"]
    assert mesh.ask("client", f"http://{address}:9080/")["pod"] == "plain"


# -- routing --


def test_weights_split_traffic(mesh: Mesh, routes) -> None:
    routes(
        SUBSETS,
        virtual_service(
            "[{route: [{destination: {host: reviews, subset: v1}, weight: 80},"
            " {destination: {host: reviews, subset: v2}, weight: 20}]}]"
        ),
    )
    seen = mesh.answering_pods("client", 500, REVIEWS)
    assert sum(seen.values()) == 500
    assert 60 <= seen["reviews-v2"] <= 140, seen  # 4.5 standard deviations


def test_header_match_and_live_change(mesh: Mesh, routes) -> None:
    def rule(subset: str) -> str:
        return virtual_service(
            "[{match: [{headers: {end-user: {exact: jason}}}],"
            " route: [{destination: {host: reviews, subset: v2}}]},"
            f" {{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]"
        )

    routes(SUBSETS, rule("v1"))
    assert set(mesh.answering_pods("client", 30, REVIEWS)) == {"reviews-v1"}
    assert set(mesh.answering_pods("client", 30, REVIEWS, "-H", "end-user: jason")) == {"reviews-v2"}
    mesh.apply(rule("v2"))
    eventually(lambda: set(mesh.answering_pods("client", 10, REVIEWS)), lambda seen: seen == {"reviews-v2"})


def test_rewrite_headers_redirect_and_direct_response(mesh: Mesh, routes) -> None:
    routes(
        virtual_service(
            """
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/, authority: other.example}
    headers:
      request: {set: {x-set: a}, add: {x-add: b}, remove: [x-drop]}
      response: {set: {x-answer: c}}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /there, authority: example.org, redirectCode: 302}
  - match: [{uri: {regex: "/teapot/[0-9]+"}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.3s
    route: [{destination: {host: reviews}}]
  - route: [{destination: {host: reviews}}]
"""
        )
    )
    answer = mesh.ask("client", "-H", "x-drop: gone", "http://reviews:9080/old/thing?x=1")
    headers = {name.lower(): value for name, value in answer["headers"]}
    assert answer["path"] == "/new/thing?x=1"
    assert answer["host"] == "other.example"
    assert (headers["x-set"], headers["x-add"], "x-drop" in headers) == ("a", "b", False)
    assert "x-answer: c" in mesh.curl("client", "-i", "http://reviews:9080/old/").lower()
    moved = mesh.curl("client", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", f"{REVIEWS}moved")
    assert moved == "302 http://example.org/there"
    assert mesh.curl("client", f"{REVIEWS}teapot/42") == "short and stout"
    assert mesh.statuses("client", 1, f"{REVIEWS}teapot/4x") == {"200": 1}
    slow = mesh.curl("client", "-w", " %{http_code}", f"{REVIEWS}slow?delay=2s")
    assert slow == "upstream request timeout 504"


def test_tcp_route_by_weight(mesh: Mesh, routes) -> None:
    routes(
        """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp-echo, namespace: default}
spec:
  hosts: [tcp-echo]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: banner, port: {number: 9001}}}]
"""
    )
    eventually(
        lambda: mesh.exec("client", "sh", "-c", "nc -d -w 2 tcp-echo 9000 </dev/null", check=False),
        lambda out: out.startswith("220 banner"),
    )


# -- configuration that is wrong --


def test_bad_configuration_is_named_and_harms_nothing_else(mesh: Mesh, routes) -> None:
    # What is printed of these is for the lab's and the decoder's own tests; here the mesh must go on.
    mesh.apply("kind: VirtualService\n  spec: [", check=False)
    mesh.apply(virtual_service("[{route: [{destination: {hst: reviews}}]}]", name="typo"), check=False)
    missing = virtual_service("[{route: [{destination: {host: reviews, subset: v9}}]}]", name="missing")
    routes(SUBSETS, missing, check=False)
    eventually(lambda: mesh.statuses("client", 5, REVIEWS), lambda seen: seen == {"503": 5})
    assert mesh.ask("client", "http://plain:9080/")["pod"] == "plain"
    assert mesh.exec("client", "sh", "-c", "printf 'ok\\n' | nc -N -w 5 tcp-echo 9000") == "ok\n"


def test_second_virtual_service_for_a_host_is_ignored_and_named(mesh: Mesh, routes) -> None:
    routes(
        SUBSETS, virtual_service("[{route: [{destination: {host: reviews, subset: v1}}]}]", name="a-first")
    )
    printed = mesh.apply(
        virtual_service("[{route: [{destination: {host: reviews, subset: v2}}]}]", name="b-second"),
        check=False,
    )
    try:
        assert set(mesh.answering_pods("client", 20, REVIEWS)) == {"reviews-v1"}
        assert "a-first" in printed
        assert "reviews" in printed
    finally:
        mesh.delete(
            virtual_service("[{route: [{destination: {host: reviews, subset: v2}}]}]", name="b-second")
        )
