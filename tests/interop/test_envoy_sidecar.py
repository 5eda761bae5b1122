"""Real Envoy as a sidecar under the control plane: redirected traffic is routed as configured."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.control_plane import ControlPlaneProcess, pod, service
from harness.envoy_sidecar import start_sidecar
from harness.netns import Namespace, Network
from harness.processes import wait_until
from harness.requirements import require

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(180)]

REVIEWS, DB, AUTO, HEADLESS = "10.96.0.5", "10.96.0.6", "10.96.0.7", "10.96.0.8"
REVIEWS_V6 = "fd00:10:96::5"
REDIRECT = """
table inet sidecar {
  chain output {
    type nat hook output priority -100
    ip daddr 10.96.0.0/16 meta l4proto tcp redirect to :15001
    ip6 daddr fd00:10:96::/112 meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100
    tcp dport { 9080, 7000 } redirect to :15006
  }
}
"""
VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
"""
SUBSETS = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"""
RULES = """\
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/, authority: other.example.com}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {regex: "/r/[0-9]+"}}]
    rewrite: {uriRegexRewrite: {match: "/r/([0-9]+)", rewrite: '/numbers/\\1'}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /here, authority: example.com, redirectCode: 302}
  - match: [{uri: {exact: /tea}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {exact: /headers}}]
    headers:
      request: {set: {x-set: one}, add: {x-add: two}, remove: [x-drop]}
      response: {set: {x-answer: "yes"}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {exact: /query}, queryParams: {q: {regex: "a+"}}, method: {exact: GET}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {exact: /slow}}]
    timeout: 300ms
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {exact: /gone}}]
    route: [{destination: {host: reviews, subset: v9}}]
"""
SPLIT = """\
  - route:
    - {destination: {host: reviews, subset: v1}, weight: %d}
    - {destination: {host: reviews, subset: v2}, weight: %d}
"""


class Mesh:
    """One sidecar'd pod `web`, three backends, an outsider, and the control plane."""

    def __init__(self, network: Network, plane: ControlPlaneProcess, api_type: str) -> None:
        self.plane = plane
        self.web = network.add("web", default_route=True)
        self.v1 = network.add("v1")
        self.v2 = network.add("v2")
        self.client = network.add("client")
        self.api_type = api_type

    def configure(self) -> None:
        self.plane.put(
            "mesh.yaml",
            service("reviews", REVIEWS).replace(
                "clusterIP:", f'clusterIPs: [{REVIEWS}, "{REVIEWS_V6}"]\n  clusterIP:'
            ),
            service("db", DB, "tcp", 7000, app="reviews"),
            service("auto", AUTO, "", 7001, 9080, app="reviews"),
            service("web", "10.96.0.9"),
            pod("web", self.web.v4, "web"),
            pod("reviews-v1", self.v1.v4, "reviews"),
            pod("reviews-v2", self.v2.v4, "reviews", "v2"),
        )
        self.plane.put("rules.yaml", SUBSETS)
        self.split(80, 20)

    def split(self, one: int, two: int) -> None:
        self.plane.put("routes.yaml", VIRTUAL_SERVICE + RULES + SPLIT % (one, two))

    def start_workloads(self) -> None:
        for namespace, name in ((self.v1, "reviews-v1"), (self.v2, "reviews-v2"), (self.web, "web")):
            echo = [sys.executable, "-m", "nodeagent.cli.main", "echo", "--name", name, "--host", "0.0.0.0"]
            process = namespace.start([*echo, "--http", "9080", "--tcp", "7000"])
            process.wait_for_port(7000, 20)

    def start_envoy(self, folder: Path) -> None:
        self.envoy = start_sidecar(self.web, "web", self.plane.socket, folder, self.api_type)
        self.web.check(["nft", "-f", "-"], stdin=REDIRECT)

    def curl(self, url: str, *options: str, source: Namespace | None = None) -> tuple[int, str]:
        """Status and body."""
        argv = ["curl", "-s", "-m", "10", "-w", "\n%{http_code}", *options, url]
        body, _, status = (source or self.web).check(argv).rpartition("\n")
        return int(status), body

    def reviews(self, path: str = "/", *options: str) -> tuple[int, Any]:
        """Status and decoded answer of the reviews service."""
        status, body = self.curl(
            f"http://reviews:9080{path}", "--resolve", f"reviews:9080:{REVIEWS}", *options
        )
        return status, json.loads(body) if body.startswith("{") else body

    def config_dump(self) -> str:
        return self.web.check(["curl", "-s", "http://127.0.0.1:15000/config_dump?include_eds"])


@pytest.fixture(scope="module", params=["DELTA_GRPC", "GRPC"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    require("root", "curl", "nft", "ip")
    with Network(f"cp-{request.param[:1].lower()}") as network, ControlPlaneProcess() as plane:
        mesh = Mesh(network, plane, request.param)
        mesh.configure()
        mesh.start_workloads()
        wait_until(lambda: plane.json("/status")["resources"].get("Pod") == 3, "configuration in force")
        mesh.start_envoy(tmp_path_factory.mktemp("envoy"))
        yield mesh


def header(answer: Any, name: str) -> list[str]:
    return [value for key, value in answer["headers"] if key.lower() == name]


def test_weights_split_requests(mesh: Mesh) -> None:
    counted = Counter(mesh.reviews()[1]["pod"] for _ in range(100))
    assert set(counted) == {"reviews-v1", "reviews-v2"}
    assert 60 <= counted["reviews-v1"] <= 95, counted


def test_header_match_picks_a_subset(mesh: Mesh) -> None:
    assert {mesh.reviews("/", "-H", "end-user: jason")[1]["pod"] for _ in range(10)} == {"reviews-v2"}


def test_query_and_method_match(mesh: Mesh) -> None:
    assert {mesh.reviews("/query?q=aaa")[1]["pod"] for _ in range(10)} == {"reviews-v2"}


def test_rewrite_of_prefix_and_authority(mesh: Mesh) -> None:
    status, answer = mesh.reviews("/old/page?x=1")
    assert (status, answer["path"], header(answer, "host")) == (200, "/new/page?x=1", ["other.example.com"])


def test_rewrite_by_regex(mesh: Mesh) -> None:
    assert mesh.reviews("/r/42")[1]["path"] == "/numbers/42"


def test_redirect(mesh: Mesh) -> None:
    status, head = mesh.curl(
        "http://reviews:9080/moved", "--resolve", f"reviews:9080:{REVIEWS}", "-o", "/dev/null", "-D", "-"
    )
    assert status == 302
    assert re.search(r"(?im)^location: http://example.com/here\r?$", head), head


def test_direct_response(mesh: Mesh) -> None:
    assert mesh.reviews("/tea") == (418, "short and stout")


def test_header_operations(mesh: Mesh) -> None:
    _, answer = mesh.reviews("/headers", "-H", "x-drop: secret", "-H", "x-set: zero", "-H", "x-add: one")
    assert header(answer, "x-set") == ["one"]
    assert ",".join(header(answer, "x-add")).replace(" ", "") == "one,two"
    assert header(answer, "x-drop") == []
    resolve = ("--resolve", f"reviews:9080:{REVIEWS}")
    _, head = mesh.curl("http://reviews:9080/headers", *resolve, "-o", "/dev/null", "-D", "-")
    assert re.search(r"(?im)^x-answer: yes\r?$", head), head


def test_timeout(mesh: Mesh) -> None:
    assert mesh.reviews("/slow", "-H", "x-echo-delay: 2s")[0] == 504


def test_missing_subset_is_503_and_named(mesh: Mesh) -> None:
    assert mesh.reviews("/gone")[0] == 503
    assert any("subset v9" in message for message in mesh.plane.messages()), mesh.plane.messages()


def test_names_under_which_a_service_is_called(mesh: Mesh) -> None:
    for host in ("reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"):
        for authority in (host, f"{host}:9080"):
            status, body = mesh.curl(f"http://{REVIEWS}:9080/tea", "-H", f"Host: {authority}")
            assert (status, body) == (418, "short and stout"), authority
    assert mesh.curl(f"http://{REVIEWS}:9080/tea")[0] == 418


def test_ipv6_address_of_a_service(mesh: Mesh) -> None:
    assert mesh.curl(f"http://[{REVIEWS_V6}]:9080/tea")[0] == 418
    status, body = mesh.curl("http://reviews:9080/", "--resolve", f"reviews:9080:[{REVIEWS_V6}]")
    assert (status, json.loads(body)["host"]) == (200, "reviews:9080")


def test_tcp_service(mesh: Mesh) -> None:
    assert mesh.web.check(["nc", "-N", "-w", "5", DB, "7000"], stdin="hello\n") == "hello\n"


def test_undeclared_port_is_detected(mesh: Mesh) -> None:
    status, body = mesh.curl("http://auto:7001/x", "--resolve", f"auto:7001:{AUTO}")
    assert (status, json.loads(body)["path"]) == (200, "/x")


def test_inbound_reaches_the_application(mesh: Mesh) -> None:
    status, body = mesh.curl(f"http://{mesh.web.v4}:9080/in", source=mesh.client)
    assert (status, json.loads(body)["pod"]) == (200, "web")
    assert mesh.client.check(["nc", "-w", "1", mesh.web.v4, "7000"], stdin="@in\n") == "@in\n"
    stats = mesh.web.check(["curl", "-s", "http://127.0.0.1:15000/stats?filter=inbound_0.0.0.0_9080"])
    assert re.search(r"downstream_rq_2xx: [1-9]", stats), stats


def test_live_change_takes_effect(mesh: Mesh) -> None:
    mesh.split(0, 100)
    try:
        wait_until(
            lambda: {mesh.reviews()[1]["pod"] for _ in range(10)} == {"reviews-v2"}, "all requests at v2", 3
        )
    finally:
        mesh.split(80, 20)


def test_endpoint_that_becomes_unready_gets_nothing(mesh: Mesh) -> None:
    mesh.plane.put("later.yaml", service("later", HEADLESS), pod("later-1", mesh.v1.v4, "later", ready=False))
    url, resolve = "http://later:9080/", ("--resolve", f"later:9080:{HEADLESS}")
    wait_until(lambda: mesh.curl(url, *resolve)[0] == 503, "503 with no endpoint", 5)
    mesh.plane.put("later.yaml", service("later", HEADLESS), pod("later-1", mesh.v1.v4, "later"))
    wait_until(lambda: mesh.curl(url, *resolve)[0] == 200, "200 with an endpoint", 5)
    mesh.plane.remove("later.yaml")


def test_removed_service_passes_through(mesh: Mesh) -> None:
    """Without the service its address leads nowhere, and Envoy holds nothing of it any more."""
    mesh.plane.put("extra.yaml", service("extra", "10.96.0.20"))
    wait_until(lambda: "extra.default.svc.cluster.local" in mesh.config_dump(), "service known to Envoy", 5)
    mesh.plane.remove("extra.yaml")
    wait_until(lambda: "extra.default.svc.cluster.local" not in mesh.config_dump(), "service gone", 5)


def test_broken_configuration_changes_nothing(mesh: Mesh) -> None:
    broken = VIRTUAL_SERVICE.replace("name: reviews", "name: broken").replace("http:", "htp: 1")
    mesh.plane.put("broken.yaml", broken)
    wait_until(lambda: any("htp" in message for message in mesh.plane.messages()), "reported", 5)
    assert mesh.reviews("/tea")[0] == 418
    mesh.plane.remove("broken.yaml")


def test_envoy_refused_nothing(mesh: Mesh) -> None:
    for client in mesh.plane.json("/debug/syncz"):
        for type_url, state in client["types"].items():
            assert state["nacks"] == 0, (type_url, state)
            assert state["state"] == "SYNCED", (type_url, state)
    assert '"error_state"' not in mesh.config_dump()
    assert "rejected" not in mesh.envoy.output, mesh.envoy.output
